//! Event queues that guests share: whoever overruns one costs those on it their events, and nobody else anything.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::guest::{Bare, CQ_COOKIE, Guest};
use common::{PATIENCE, Rig, Told, config, eventually, wait_for};
use mlx4_wire::wqe::Opcode;
use paraverbs_hca::Mlx4Config;
use paraverbs_tenant::hca::*;

/// Holds up whoever tells it of a completion, until it is let go.
#[derive(Debug)]
struct Brake {
    held: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
    gone: AtomicBool,
}

impl EventSink for Brake {
    fn completion(&self, _: Cookie) {
        if self.gone.load(Ordering::SeqCst) {
            return;
        }
        self.held.lock().unwrap().send(()).unwrap();
        // It ends with the other side too.
        let _over = self.go.lock().unwrap().recv();
        self.gone.store(true, Ordering::SeqCst);
    }

    fn raise(&self, _: HcaEvent) {}
}

/// Events that the event queues of the card have dropped.
fn dropped(rig: &Rig) -> Vec<u64> {
    let dump = rig.dump();
    let counts = dump.split("\"dropped\":").skip(1);
    counts.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}

/// A completion, and the event that tells of it.
fn completes_with_event(guest: &mut Guest) {
    guest.arm();
    guest.post(Opcode::NOP, &[]);
    wait_for(&guest.bare.told, Told::Completion(CQ_COOKIE));
    guest.sent();
}

#[test]
fn guest_that_overruns_an_event_queue_costs_those_on_it_their_events_and_nobody_else() {
    let two = Mlx4Config { completion_eqs: 2, ..config() };
    let rig = Rig::new(0x0002_c903_00c1_0000, two);
    let lid = rig.active().lid;
    // The first, third, ... share one event queue, the others the other.
    let hca = &rig.hca;
    let (held, holds) = channel();
    let (go, goes) = channel();
    let brake = Brake { held: Mutex::new(held), go: Mutex::new(goes), gone: AtomicBool::new(false) };
    let mut bare = Bare::new(hca, 0);
    hca.detach(bare.id);
    bare.id = hca.attach(Arc::new(brake)).unwrap();
    let mut attacker = Guest::on(bare, QpKind::Rc, false);
    let [mut near, mut neighbour, mut far] = [1, 2, 3].map(|number| Guest::new(hca, number));
    for (guest, to) in [(&near, &far), (&far, &near), (&neighbour, &neighbour), (&attacker, &attacker)] {
        guest.connect(lid, to.qp.number);
    }
    assert!(dropped(&rig).iter().all(|count| *count == 0));

    // One completion that it never takes: whenever it asks, there is an event at once. The thread of the event queue
    // hangs in the first of them, as if it were that slow.
    attacker.post(Opcode::NOP, &[]);
    attacker.arm();
    holds.recv_timeout(PATIENCE).unwrap();
    eventually("events are dropped", || {
        (0..256).for_each(|_| attacker.arm());
        dropped(&rig).iter().any(|count| *count != 0).then_some(())
    });
    assert_eq!(dropped(&rig).iter().filter(|count| **count != 0).count(), 1, "one event queue is full");

    // Those on the other one have their events, commands are answered, and data moves.
    for _ in 0..10 {
        completes_with_event(&mut near);
        completes_with_event(&mut far);
    }
    assert_eq!(hca.query_qp(neighbour.qp.id).unwrap().state, QpState::Rts);
    Guest::new(hca, 4).destroy();
    // The neighbour completes what it posts, and isn't told.
    neighbour.arm();
    neighbour.post(Opcode::NOP, &[]);
    neighbour.sent();
    assert!(neighbour.bare.told.try_recv().is_err());

    // When there is room again it asks anew, and is told.
    drop(go);
    eventually("the neighbour's events come again", || {
        neighbour.arm();
        neighbour.post(Opcode::NOP, &[]);
        neighbour.sent();
        let told: Vec<_> = neighbour.bare.told.try_iter().collect();
        told.contains(&Told::Completion(CQ_COOKIE)).then_some(())
    });
    attacker.sent();
    for guest in [attacker, near, neighbour, far] {
        guest.destroy();
    }
    rig.close();
}
