//! Commands that fail, and cards: what the HCA may still have stays out of use until it is reset.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use common::guest::{Bare, Guest, MEMORY, PAGE, QP_RING, geometry, transitions};
use common::{PATIENCE, Rig, config, impatient};
use mlx4::Profile;
use mlx4_model::hca::Fault;
use mlx4_pci::PciDevice;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::Opcode as Request;
use paraverbs_tenant::hca::*;

/// In the entry that ends a command: its type, token, and status.
const TYPE: usize = 0x01;
const TOKEN: usize = 0x06;
const STATUS: usize = 0x0f;

/// How a command fails, although the card has done it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Status(Status),
    /// Its end is told of another one.
    Unanswered,
}

/// Fails commands that work.
#[derive(Debug, Default)]
struct Breaker {
    next: Mutex<Option<(Opcode, How)>>,
    now: Mutex<Option<How>>,
    /// Answers of this command have nothing in them.
    empty: Mutex<Option<Opcode>>,
}

impl Breaker {
    fn install(rig: &Rig) -> Arc<Self> {
        let breaker = Arc::new(Self::default());
        rig.device.hca().inject(Arc::<Self>::clone(&breaker));
        breaker
    }

    /// The next command of this kind fails.
    fn fail(&self, opcode: Opcode, how: How) {
        *self.next.lock().unwrap() = Some((opcode, how));
    }
}

impl Fault for Breaker {
    fn answer(&self, opcode: Opcode, mailbox: &mut [u8], _: &mut u64) {
        if *self.empty.lock().unwrap() == Some(opcode) {
            mailbox.fill(0);
        }
        let mut next = self.next.lock().unwrap();
        if let Some((_, how)) = next.filter(|(wanted, _)| *wanted == opcode) {
            *next = None;
            *self.now.lock().unwrap() = Some(how);
        }
    }

    fn event(&self, eqe: &mut [u8]) {
        if eqe[TYPE] != EventType::COMMAND.0 {
            return;
        }
        match self.now.lock().unwrap().take() {
            Some(How::Status(status)) => eqe[STATUS] = status.0,
            Some(How::Unanswered) => eqe[TOKEN] ^= 0xff,
            None => {}
        }
    }
}

/// The card resets: everything is forgotten, and nothing left behind.
fn restart(rig: &Rig, guests: impl IntoIterator<Item = Bare>) {
    rig.hca.restart().unwrap();
    guests.into_iter().for_each(Bare::leave);
    assert_eq!(rig.device.dma().quarantined(), 0);
}

#[test]
fn object_whose_destruction_fails_keeps_what_it_uses() {
    for (opcode, how, wanted) in [
        (Opcode::HW2SW_CQ, How::Status(Status::BAD_RES_STATE), HcaError::Failed),
        (Opcode::TO_RST_QP, How::Status(Status::INTERNAL_ERR), HcaError::Failed),
        (Opcode::HW2SW_MPT, How::Status(Status::BAD_RES_STATE), HcaError::Failed),
    ] {
        let rig = Rig::new(0x0002_c903_00b1_0000, impatient());
        let breaker = Breaker::install(&rig);
        let hca = Arc::clone(&rig.hca);
        let guest = Guest::new(&hca, 0);
        hca.modify_qp(guest.qp.id, &transitions(1, 1)[0]).unwrap();
        breaker.fail(opcode, how);
        let results = [hca.destroy_qp(guest.qp.id), hca.destroy_cq(guest.cq.id), hca.destroy_mr(guest.mr)];
        let failed: Vec<HcaError> = results.iter().filter_map(|result| result.err()).collect();
        assert_eq!(failed.first(), Some(&wanted), "{opcode}");
        // Once only: the object is out of use, whatever the card has of it.
        let again = [hca.destroy_qp(guest.qp.id), hca.destroy_mr(guest.mr)];
        assert_eq!(again, [Err(HcaError::Refused); 2]);
        // A queue pair that is left has its CQ, too.
        let cq = if opcode == Opcode::TO_RST_QP { HcaError::Busy } else { HcaError::Refused };
        assert_eq!(hca.destroy_cq(guest.cq.id), Err(cq));
        let (pd, uar) = (hca.dealloc_pd(guest.pd), hca.dealloc_uar(guest.uar));
        let uses_pd = opcode != Opcode::HW2SW_CQ;
        assert_eq!(pd, if uses_pd { Err(HcaError::Busy) } else { Ok(()) }, "{opcode}");
        assert_eq!(uar, if opcode == Opcode::HW2SW_MPT { Ok(()) } else { Err(HcaError::Busy) }, "{opcode}");
        // Another guest isn't touched.
        Guest::new(&hca, 1).destroy();
        restart(&rig, [guest.bare]);
        Guest::new(&hca, 0).destroy();
        rig.close();
    }
}

#[test]
fn object_that_the_card_may_have_made_keeps_what_it_uses() {
    for opcode in [Opcode::SW2HW_CQ, Opcode::SW2HW_MPT] {
        let rig = Rig::new(0x0002_c903_00b4_0000, impatient());
        let breaker = Breaker::install(&rig);
        let hca = Arc::clone(&rig.hca);
        let bare = Bare::new(&hca, 0);
        let (pd, uar) = (hca.alloc_pd(bare.id).unwrap().id, hca.alloc_uar(bare.id).unwrap());
        breaker.fail(opcode, How::Status(Status::INTERNAL_ERR));
        let of_cq = opcode == Opcode::SW2HW_CQ;
        let made =
            if of_cq { bare.cq(uar).map(drop) } else { bare.mr(pd, RegionAccess::default()).map(drop) };
        assert_eq!(made, Err(HcaError::Failed), "{opcode}");
        let expected = if of_cq { (Ok(()), Err(HcaError::Busy)) } else { (Err(HcaError::Busy), Ok(())) };
        assert_eq!((hca.dealloc_pd(pd), hca.dealloc_uar(uar)), expected, "{opcode}");
        restart(&rig, [bare]);
        rig.close();
    }
}

#[test]
fn number_of_a_lost_object_is_not_used_again() {
    let profile = Profile { log2_cqs: 8, ..Profile::default() };
    let rig = Rig::new(0x0002_c903_00b2_0000, common::impatient_with(profile));
    let breaker = Breaker::install(&rig);
    let bare = Bare::new(&rig.hca, 0);
    let uar = rig.hca.alloc_uar(bare.id).unwrap();
    let lost = bare.cq(uar).unwrap();
    breaker.fail(Opcode::HW2SW_CQ, How::Status(Status::INTERNAL_ERR));
    assert_eq!(rig.hca.destroy_cq(lost.id), Err(HcaError::Failed));
    let mut numbers = BTreeSet::new();
    for _ in 0..300 {
        let cq = bare.cq(uar).unwrap();
        assert_ne!(cq.number, lost.number);
        numbers.insert(cq.number);
        rig.hca.destroy_cq(cq.id).unwrap();
    }
    assert_eq!(numbers.len(), 127, "all others are used");
    restart(&rig, [bare]);
    rig.close();
}

#[test]
fn card_that_does_not_answer_once_is_given_up() {
    for opcode in [Opcode::HW2SW_CQ, Opcode::HW2SW_MPT, Opcode::SW2HW_MPT, Opcode::SW2HW_CQ, Opcode::QUERY_QP]
    {
        let rig = Rig::new(0x0002_c903_00b3_0000, impatient());
        let breaker = Breaker::install(&rig);
        let told = fatal(&rig);
        let hca = Arc::clone(&rig.hca);
        let guests = [0, 1].map(|number| Guest::new(&hca, number));
        let [guest, other] = &guests;
        hca.destroy_qp(guest.qp.id).unwrap();
        hca.modify_qp(other.qp.id, &transitions(1, 1)[0]).unwrap();
        breaker.fail(opcode, How::Unanswered);
        let first = match opcode {
            Opcode::HW2SW_CQ => hca.destroy_cq(guest.cq.id),
            Opcode::HW2SW_MPT => hca.destroy_mr(guest.mr),
            Opcode::SW2HW_MPT => guest.bare.mr(guest.pd, common::guest::ALL).map(drop),
            Opcode::SW2HW_CQ => guest.bare.cq(guest.uar).map(drop),
            _ => hca.query_qp(other.qp.id).map(drop),
        };
        assert_eq!(first, Err(HcaError::TimedOut), "{opcode}");
        told.recv_timeout(PATIENCE).unwrap();
        // Nobody waits for it again, whosever object it is; and nobody else tells that it is lost.
        let results = [
            hca.destroy_qp(other.qp.id),
            hca.destroy_mr(other.mr),
            hca.query_port(1).map(drop),
            other.bare.mr(other.pd, common::guest::ALL).map(drop),
            other.bare.cq(other.uar).map(drop),
        ];
        assert_eq!(results, [Err(HcaError::Lost); 5], "{opcode}");
        // What they use is kept, until the reset.
        assert!(hca.dealloc_pd(other.pd).is_err() && hca.dealloc_uar(other.uar).is_err());
        restart(&rig, guests.map(|guest| guest.bare));
        assert!(told.try_recv().is_err(), "told twice");
        Guest::new(&hca, 0).destroy();
        rig.close();
    }
}

#[test]
fn region_whose_change_fails_is_lost_with_both_memories() {
    let rig = Rig::new(0x0002_c903_00b4_0000, impatient());
    let breaker = Breaker::install(&rig);
    let hca = Arc::clone(&rig.hca);
    let guest = Guest::new(&hca, 0);
    let change = MrChange { pd: None, access: Some(RegionAccess::default()), memory: None };
    breaker.fail(Opcode::HW2SW_MPT, How::Status(Status::INTERNAL_ERR));
    assert_eq!(hca.modify_mr(guest.mr, &change), Err(HcaError::Failed));
    assert_eq!(hca.destroy_mr(guest.mr), Err(HcaError::Refused));
    restart(&rig, [guest.bare]);
    rig.close();
}

#[test]
fn queue_pair_that_may_be_in_a_group_keeps_its_number() {
    let profile = Profile { log2_qps: 8, log2_mcgs: 8, ..Profile::default() };
    let rig = Rig::new(0x0002_c903_00b5_0000, common::impatient_with(profile));
    let breaker = Breaker::install(&rig);
    let hca = &rig.hca;
    let guest = Bare::new(hca, 0);
    let (pd, uar) = (hca.alloc_pd(guest.id).unwrap().id, hca.alloc_uar(guest.id).unwrap());
    let cq = guest.cq(uar).unwrap().id;
    let geometry = geometry(QpKind::Ud, false);
    let layout = hca.qp_layout(&geometry).unwrap();
    let ring = [guest.piece(QP_RING, usize::try_from(layout.ring_bytes).unwrap())];
    let spec = QpSpec {
        guest: guest.id,
        cookie: Cookie(1),
        pd: Some(pd),
        uar: Some(uar),
        send_cq: Some(cq),
        recv_cq: Some(cq),
        srq: None,
        xrcd: None,
        geometry,
        memory: RingMemory { ring: &ring, record: Some(guest.at(MEMORY - PAGE)) },
        lso: false,
        block_loopback: true,
        forced_gid: None,
    };
    let group = |byte| McastGroup { mgid: Gid([byte; 16]), mlid: 0xc000 };
    let qp = hca.create_qp(&spec).unwrap();
    assert_eq!(hca.attach_mcast(qp.id, &group(0xfe)), Err(HcaError::NoGroup));
    assert_eq!(hca.detach_mcast(qp.id, &group(0xff)), Err(HcaError::NoGroup));
    hca.attach_mcast(qp.id, &group(0xff)).unwrap();
    hca.attach_mcast(qp.id, &group(0xff)).unwrap();
    assert_eq!(hca.destroy_qp(qp.id), Err(HcaError::Busy), "it is in a group");
    hca.detach_mcast(qp.id, &group(0xff)).unwrap();
    hca.attach_mcast(qp.id, &group(0xff)).unwrap();
    breaker.fail(Opcode::WRITE_MCG, How::Status(Status::BAD_PARAM));
    assert_eq!(hca.detach_mcast(qp.id, &group(0xff)), Err(HcaError::Failed));
    hca.destroy_qp(qp.id).unwrap();
    for _ in 0..400 {
        let other = hca.create_qp(&spec).unwrap();
        assert_ne!(other.number, qp.number);
        hca.destroy_qp(other.id).unwrap();
    }
    hca.destroy_cq(cq).unwrap();
    hca.dealloc_uar(uar).unwrap();
    hca.dealloc_pd(pd).unwrap();
    restart(&rig, [guest]);
    rig.close();
}

fn fatal(rig: &Rig) -> Receiver<()> {
    let (sender, fatal) = channel();
    let sender = Mutex::new(sender);
    rig.hca.on_fatal(Box::new(move || {
        // The test may have ended.
        let _ended = sender.lock().unwrap().send(());
    }));
    fatal
}

#[test]
fn failed_card_is_told_once_and_comes_back_while_doorbells_ring() {
    let rig = Rig::new(0x0002_c903_00b6_0000, config());
    let lid = rig.active().lid;
    let told = fatal(&rig);
    let hca = Arc::clone(&rig.hca);
    let stop = AtomicBool::new(false);
    let guests = Guest::pair(&hca, lid);
    let old = guests.iter().map(|guest| (guest.uar, guest.qp.id, guest.cq.id)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                for (uar, qp, cq) in &old {
                    hca.ring(Doorbell { uar: *uar, target: Target::Send(*qp) }, u64::MAX);
                    hca.ring(Doorbell { uar: *uar, target: Target::Arm(*cq) }, u64::MAX);
                }
            }
        });
        rig.device.hca().fail_firmware(0x1234);
        told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(hca.query_port(1), Err(HcaError::Lost));
        assert_eq!(hca.query_qp(guests[0].qp.id), Err(HcaError::Lost));
        assert!(hca.destroy_cq(guests[0].cq.id).is_err());
        hca.restart().unwrap();
        assert!(told.try_recv().is_err(), "told twice");
        stop.store(true, Ordering::SeqCst);
    });
    let [first, second] = &guests;
    assert_eq!(hca.query_qp(first.qp.id), Err(HcaError::Refused));
    assert_eq!(hca.destroy_qp(second.qp.id), Err(HcaError::Refused));
    assert_eq!(hca.destroy_mr(first.mr), Err(HcaError::Refused));
    assert_eq!(hca.dealloc_pd(first.pd), Err(HcaError::Refused));
    assert_eq!(hca.dealloc_uar(first.uar), Err(HcaError::Refused));
    assert_eq!(hca.alloc_pd(first.bare.id), Err(HcaError::Refused));
    guests.into_iter().for_each(|guest| guest.bare.leave());

    let lid = rig.active().lid;
    let [mut near, mut far] = Guest::pair(&hca, lid);
    far.post_receive(64, 64);
    near.write(0, b"again");
    let body = near.data(0, 5);
    near.post(Request::SEND, &body);
    near.sent();
    assert_eq!((far.completion().bytes, far.read(64, 5)), (5, b"again".to_vec()));
    for (uar, qp, cq) in old {
        hca.ring(Doorbell { uar, target: Target::Send(qp) }, u64::MAX);
        hca.ring(Doorbell { uar, target: Target::Arm(cq) }, u64::MAX);
    }
    near.destroy();
    far.destroy();
    assert_eq!(rig.device.hca().counters().bad_doorbells.get(), 0);
    // The second life's failure is told too, also to who asks late.
    rig.device.hca().fail_firmware(0x5678);
    told.recv_timeout(PATIENCE).unwrap();
    let late = fatal(&rig);
    late.recv_timeout(PATIENCE).unwrap();
    hca.restart().unwrap();
    rig.close();
}

#[test]
fn card_that_is_closed_under_its_guests_uses_no_memory_any_more() {
    let rig = Rig::new(0x0002_c903_00b7_0000, impatient());
    let guest = Guest::new(&rig.hca, 0);
    assert!(rig.hca.close().is_err(), "objects were in use");
    assert_eq!(rig.hca.query_qp(guest.qp.id), Err(HcaError::Lost));
    assert_eq!(rig.hca.qp_layout(&geometry(QpKind::Rc, false)), Err(HcaError::Lost));
    assert_eq!(rig.hca.driver(mlx4::Hca::objects).err(), Some(HcaError::Lost));
    guest.ring();
    guest.bare.leave();
    rig.closed();
    // It can be brought up again, and closed twice.
    rig.hca.restart().unwrap();
    Guest::new(&rig.hca, 0).destroy();
    rig.hca.close().unwrap();
    rig.close();
}

#[test]
fn card_that_does_not_come_up_again_is_lost_and_can_be_brought_up_later() {
    let rig = Rig::new(0x0002_c903_00b8_0000, impatient());
    let breaker = Breaker::install(&rig);
    let told = fatal(&rig);
    let hca = Arc::clone(&rig.hca);
    let guest = Guest::new(&hca, 0);
    for opcode in [Opcode::QUERY_FW, Opcode::QUERY_DEV_CAP, Opcode::MAD_IFC] {
        *breaker.empty.lock().unwrap() = Some(opcode);
        assert!(hca.restart().is_err(), "{opcode}");
        assert_eq!(hca.query_port(1), Err(HcaError::Lost));
        assert_eq!(hca.attach(common::Sink::pair().0).err(), Some(HcaError::Lost));
        assert_eq!(hca.destroy_qp(guest.qp.id), Err(HcaError::Lost));
        guest.ring();
    }
    // Whoever asked for the restart knows how it went.
    assert!(told.try_recv().is_err());
    // Guests' memory can be unmapped while the card is down.
    guest.bare.leave();
    *breaker.empty.lock().unwrap() = None;
    hca.restart().unwrap();
    assert_eq!(rig.device.dma().quarantined(), 0);
    Guest::new(&hca, 0).destroy();
    rig.device.hca().fail_firmware(0x9abc);
    told.recv_timeout(PATIENCE).unwrap();
    hca.restart().unwrap();
    rig.close();
}
