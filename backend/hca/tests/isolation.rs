//! Event queues that guests share: who has asked for a completion event gets it, whatever others do; and whoever may have
//! lost an asynchronous event is told so.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::guest::{Bare, CQ_COOKIE, Guest, QP_COOKIE};
use common::{PATIENCE, Rig, Told, config, eventually, wait_for};
use mlx4::Profile;
use mlx4_model::hca::Fault;
use mlx4_wire::cmd::Opcode as CommandOpcode;
use mlx4_wire::mad::smp::SmpAttribute;
use mlx4_wire::wqe::Opcode;
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_tenant::hca::*;

/// Holds up whoever tells it of something, until it is let go.
#[derive(Debug)]
struct Brake {
    held: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
    gone: AtomicBool,
}

impl Brake {
    fn hold(&self) {
        if self.gone.load(Ordering::SeqCst) {
            return;
        }
        self.held.lock().unwrap().send(()).unwrap();
        // It ends with the other side too.
        let _over = self.go.lock().unwrap().recv();
        self.gone.store(true, Ordering::SeqCst);
    }
}

/// Holds up whoever tells of a completion.
#[derive(Debug)]
struct OnCompletion(Brake);

impl EventSink for OnCompletion {
    fn completion(&self, _: Cookie) {
        self.0.hold();
    }

    fn raise(&self, _: HcaEvent) {}
}

/// Holds up whoever tells of an object's event.
#[derive(Debug)]
struct OnEvent(Brake);

impl EventSink for OnEvent {
    fn completion(&self, _: Cookie) {}

    fn raise(&self, event: HcaEvent) {
        if matches!(event, HcaEvent::Object { .. }) {
            self.0.hold();
        }
    }
}

/// A guest whose events go to a sink, with a connection; what says that it holds somebody up, and what lets go.
fn braking<S: EventSink + 'static>(
    hca: &Arc<Mlx4Hca>,
    sink: impl FnOnce(Brake) -> S,
) -> (Guest, Receiver<()>, Sender<()>) {
    let (held, holds) = channel();
    let (go, goes) = channel();
    let brake = Brake { held: Mutex::new(held), go: Mutex::new(goes), gone: AtomicBool::new(false) };
    let mut bare = Bare::new(hca, 0);
    hca.detach(bare.id);
    bare.id = hca.attach(Arc::new(sink(brake))).unwrap();
    (Guest::on(bare, QpKind::Rc, false), holds, go)
}

/// Events that the event queues of the card have dropped.
fn dropped(rig: &Rig) -> Vec<u64> {
    let dump = rig.dump();
    let counts = dump.split("\"dropped\":").skip(1);
    counts.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}

#[test]
fn guest_that_asks_for_events_without_pause_costs_nobody_an_event() {
    let one = Mlx4Config { completion_eqs: 1, ..config() };
    let rig = Rig::new(0x0002_c903_00c1_0000, one);
    let lid = rig.active().lid;
    let (mut attacker, holds, go) = braking(&rig.hca, OnCompletion);
    let mut neighbour = Guest::new(&rig.hca, 1);
    for guest in [&attacker, &neighbour] {
        guest.connect(lid, guest.qp.number);
    }
    // One completion that it never takes: whenever it asks, there is an event at once. The thread of the event queue
    // hangs in the first of them, as if it were that slow.
    attacker.post(Opcode::NOP, &[]);
    attacker.arm();
    holds.recv_timeout(PATIENCE).unwrap();
    // More often than the event queue has entries.
    (0..10_000).for_each(|_| attacker.arm());
    neighbour.arm();
    neighbour.post(Opcode::NOP, &[]);
    neighbour.sent();
    assert!(dropped(&rig).iter().all(|count| *count == 0));
    assert!(neighbour.bare.told.try_recv().is_err());
    drop(go);
    wait_for(&neighbour.bare.told, Told::Completion(CQ_COOKIE));
    attacker.sent();
    [attacker, neighbour].into_iter().for_each(Guest::destroy);
    rig.close();
}

/// Another P_Key in the first place of every port's table, from some moment on.
#[derive(Debug)]
struct Repartitioned;

/// Where a management datagram has the id of its attribute, and a P_Key table its first key.
const ATTRIBUTE: usize = 0x10;
const FIRST_PKEY: usize = 0x40;
const NEW_PKEY: u16 = 0x8123;

impl Fault for Repartitioned {
    fn answer(&self, opcode: CommandOpcode, mailbox: &mut [u8], _: &mut u64) {
        let pkeys = SmpAttribute::P_KEY_TABLE.0.to_be_bytes();
        if opcode == CommandOpcode::MAD_IFC && mailbox[ATTRIBUTE..][..2] == pkeys {
            mailbox[FIRST_PKEY..][..2].copy_from_slice(&NEW_PKEY.to_be_bytes());
        }
    }
}

/// Makes the card tell that a send queue is drained.
fn drain(guest: &Guest) {
    let hca = &guest.bare.hca;
    let drain = QpModify { sqd_event: Some(true), ..QpModify::state(QpState::Rts, QpState::Sqd) };
    hca.modify_qp(guest.qp.id, &drain).unwrap();
    let drained = || (!hca.query_qp(guest.qp.id).unwrap().draining).then_some(());
    eventually("the end of draining", drained);
    hca.modify_qp(guest.qp.id, &QpModify::state(QpState::Sqd, QpState::Rts)).unwrap();
}

#[test]
fn when_asynchronous_events_are_dropped_every_guest_is_told_and_nothing_old_is_known_of_ports() {
    // So few objects that the event queue has 2048 entries.
    let profile = Profile { log2_qps: 7, log2_srqs: 7, log2_cqs: 8, log2_mcgs: 8, ..Profile::default() };
    let rig = Rig::new(0x0002_c903_00c2_0000, Mlx4Config { profile, ..config() });
    let lid = rig.active().lid;
    let hca = &rig.hca;
    let (attacker, holds, go) = braking(hca, OnEvent);
    let victims = [1, 2].map(|number| Guest::new(hca, number));
    for guest in [&attacker, &victims[0], &victims[1]] {
        guest.connect(lid, guest.qp.number);
    }
    assert_eq!(hca.query_pkey(1, 0), Ok(0xffff));
    // The thread of the event queue hangs in the first event, as if it were that slow.
    drain(&attacker);
    holds.recv_timeout(PATIENCE).unwrap();
    while dropped(&rig).iter().all(|count| *count == 0) {
        (0..64).for_each(|_| drain(&attacker));
    }
    // A change of which nobody will be told.
    rig.device.hca().inject(Arc::new(Repartitioned));
    assert_eq!(hca.query_pkey(1, 0), Ok(0xffff));
    drain(&victims[0]);
    drop(go);
    for guest in &victims {
        wait_for(&guest.bare.told, Told::Event(HcaEvent::Lost));
    }
    assert_eq!(hca.query_pkey(1, 0), Ok(NEW_PKEY));
    // Those that come now come.
    drain(&victims[0]);
    let kind = AsyncKind::SendQueueDrained;
    wait_for(&victims[0].bare.told, Told::Event(HcaEvent::Object { cookie: QP_COOKIE, kind, syndrome: 0 }));
    attacker.destroy();
    victims.into_iter().for_each(Guest::destroy);
    rig.close();
}
