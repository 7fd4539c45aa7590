//! What a guest tries that isn't his: the HCA refuses it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::guest::{ADDRESS, ALL, Bare, Guest, PAGE, QP_COOKIE};
use common::rings::{SEND_STRIDE, data, remote};
use common::{Rig, Told, config, wait_for};
use mlx4::Profile;
use mlx4_pci::{DoorbellKind, PciDevice};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::wqe::Opcode;
use paraverbs_hca::Mlx4Config;
use paraverbs_tenant::hca::*;

/// A third guest, with a region of his own that nobody else may use.
fn victim(rig: &Rig) -> (Bare, PdId, MrId, MrKeys) {
    let bare = Bare::new(&rig.hca, 2);
    let pd = rig.hca.alloc_pd(bare.id).unwrap().id;
    let (mr, keys) = bare.mr(pd, ALL).unwrap();
    (bare, pd, mr, keys)
}

fn leave(rig: &Rig, (bare, pd, mr, _): (Bare, PdId, MrId, MrKeys)) {
    assert!(bare.told.try_recv().is_err(), "the victim was told something");
    rig.hca.destroy_mr(mr).unwrap();
    rig.hca.dealloc_pd(pd).unwrap();
    bare.leave();
}

#[test]
fn local_key_of_another_guest_is_refused() {
    let rig = Rig::new(0x0002_c903_00a1_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let victim = victim(&rig);
    let stolen = data(victim.3.lkey, ADDRESS, 64);
    near.post(Opcode::RDMA_WRITE, &[remote(far.keys.rkey, ADDRESS), stolen].concat());
    assert_eq!(near.completion().syndrome, Some(Syndrome::LOCAL_PROT_ERR.0));
    assert_eq!(rig.device.hca().counters().rejected_lkeys.get(), 1);
    leave(&rig, victim);
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn remote_key_of_another_guest_is_refused() {
    let rig = Rig::new(0x0002_c903_00a2_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let victim = victim(&rig);
    let body = [remote(victim.3.rkey, ADDRESS), near.data(0, 64)].concat();
    near.post(Opcode::RDMA_WRITE, &body);
    assert_eq!(near.completion().syndrome, Some(Syndrome::REMOTE_ACCESS_ERR.0));
    assert_eq!(rig.device.hca().counters().rejected_rkeys.get(), 1);
    let kind = AsyncKind::QpAccessError;
    wait_for(&far.bare.told, Told::Event(HcaEvent::Object { cookie: QP_COOKIE, kind, syndrome: 0 }));
    leave(&rig, victim);
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn request_that_goes_on_behind_the_ring_is_refused() {
    let rig = Rig::new(0x0002_c903_00a3_0000, config());
    let lid = rig.active().lid;
    // The send queue ends with the ring; what is behind it is mapped, but no ring's.
    let mut near = Guest::with_send_last(&rig.hca, 0);
    let far = Guest::new(&rig.hca, 1);
    near.connect(lid, far.qp.number);
    far.connect(lid, near.qp.number);
    for _ in 1..near.send.entries {
        near.post(Opcode::NOP, &[]);
        near.sent();
    }
    let end = near.send.offset + near.send.entries * SEND_STRIDE;
    assert_eq!(end % PAGE, 0);
    // Its last slot begins a request of twice a slot's size, whose other half would be good.
    let pieces: Vec<u8> = (0..6).flat_map(|_| near.data(0, 8)).collect();
    let body = [remote(far.keys.rkey, ADDRESS), pieces].concat();
    near.bare.memory.write(end - SEND_STRIDE + 16, &body).unwrap();
    let units = u32::try_from((16 + body.len()) / 16).unwrap();
    near.send.post_as(&near.bare.memory, Opcode::RDMA_WRITE, &body[..48], units);
    near.ring();
    assert_eq!(near.completion().syndrome, Some(Syndrome::LOCAL_QP_OP_ERR.0));
    assert_eq!(rig.hca.query_qp(near.qp.id).unwrap().state, QpState::Err);
    assert_eq!(far.read(0, 48), [0; 48]);
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn doorbell_through_another_page_rings_nothing() {
    let rig = Rig::new(0x0002_c903_00a4_0000, config());
    let lid = rig.active().lid;
    let [mut near, mut far] = Guest::pair(&rig.hca, lid);
    // A change of state lets the card look at a queue, too: first that is over.
    for guest in [&mut near, &mut far] {
        guest.post(Opcode::NOP, &[]);
        guest.sent();
    }
    near.send.post(&near.bare.memory, Opcode::NOP, &[]);
    let send = Target::Send(near.qp.id);
    // The guest's doorbell, in the name of another's page; and the card's own check of the same.
    rig.hca.ring(Doorbell { uar: far.uar, target: send }, u64::MAX);
    let page = far.uar.0 & 0xff_ffff;
    let stranger = rig.device.doorbell(page, DoorbellKind::Send(near.qp.number)).unwrap();
    stranger.ring(u64::from(near.qp.number << 8));
    assert_eq!(rig.device.hca().counters().bad_doorbells.get(), 1);
    // What was rung before it would be done by then.
    far.post(Opcode::NOP, &[]);
    far.sent();
    assert_eq!(near.completions.poll(&near.bare.memory), None);
    near.ring();
    near.sent();
    // Ids that name nothing do nothing.
    for uar in [near.uar, UarId(0), UarId(u32::MAX)] {
        for target in [Target::Send(QpId(0)), Target::Send(QpId(u32::MAX)), Target::Arm(CqId(77))] {
            rig.hca.ring(Doorbell { uar, target }, u64::MAX);
        }
    }
    assert_eq!(rig.device.hca().counters().bad_doorbells.get(), 1);
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn doorbells_while_queue_pairs_come_and_go_hurt_nobody() {
    let rig = Rig::new(0x0002_c903_00a5_0000, config());
    let lid = rig.active().lid;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let ids = std::sync::Mutex::new(Vec::<(UarId, QpId, CqId)>::new());
    std::thread::scope(|scope| {
        let hca = Arc::clone(&rig.hca);
        scope.spawn(|| {
            let hca = hca;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                for (uar, qp, cq) in ids.lock().unwrap().clone() {
                    hca.ring(Doorbell { uar, target: Target::Send(qp) }, u64::MAX);
                    hca.ring(Doorbell { uar, target: Target::Arm(cq) }, u64::MAX);
                }
            }
        });
        for _ in 0..30 {
            let [mut near, far] = Guest::pair(&rig.hca, lid);
            ids.lock().unwrap().extend([&near, &far].map(|guest| (guest.uar, guest.qp.id, guest.cq.id)));
            near.post(Opcode::NOP, &[]);
            near.sent();
            near.destroy();
            far.destroy();
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    assert_eq!(rig.device.hca().counters().bad_doorbells.get(), 0);
    rig.close();
}

/// Regions of 4 MiB, all of them the same page over and over, until the HCA refuses one.
fn fill(guest: &Bare, pd: PdId) -> Vec<MrId> {
    const PAGES: usize = 1000;
    let pages = vec![guest.piece(0, PAGE); PAGES];
    let length = (PAGES * PAGE) as u64;
    let mut all = Vec::new();
    loop {
        let spec = MrSpec { pd, access: ALL, start: ADDRESS, length, pages: &pages };
        match guest.hca.create_mr(&spec) {
            Ok((mr, _)) => all.push(mr),
            Err(error) => {
                assert_eq!(error, HcaError::NoResources);
                return all;
            }
        }
    }
}

#[test]
fn guest_gets_a_quarter_of_the_translation_entries_and_no_more() {
    let profile = Profile { log2_mtts: 16, ..config().profile };
    let rig = Rig::new(0x0002_c903_00a9_0000, Mlx4Config { profile, ports: false, ..config() });
    let guests = [0, 1].map(|n| Bare::new(&rig.hca, n));
    let pds = [0, 1].map(|n: usize| rig.hca.alloc_pd(guests[n].id).unwrap().id);
    for _ in 0..2 {
        let greedy = fill(&guests[0], pds[0]);
        // What isn't a power of two is rounded up: 1000 pages take 1024 entries.
        assert_eq!(greedy.len(), (1 << 14) / 1024);
        let uar = rig.hca.alloc_uar(guests[0].id).unwrap();
        assert_eq!(guests[0].cq(uar).err(), Some(HcaError::NoResources), "rings count too");
        rig.hca.dealloc_uar(uar).unwrap();
        let other = fill(&guests[1], pds[1]);
        assert_eq!(other.len(), greedy.len());
        greedy.into_iter().chain(other).for_each(|mr| rig.hca.destroy_mr(mr).unwrap());
    }
    pds.into_iter().for_each(|pd| rig.hca.dealloc_pd(pd).unwrap());
    guests.into_iter().for_each(Bare::leave);
    rig.close();
}
