//! Completion queues of guests: another size, moderation.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::guest::{CQ_COOKIE, DATA, Guest};
use common::{Rig, Told, config, wait_for};
use mlx4_wire::wqe::Opcode;
use paraverbs_tenant::hca::*;

/// Where a guest has another ring.
const OTHER_RING: usize = DATA + 0x4_0000;

/// Gives a guest's queue another ring, at one place or the other.
fn resize(guest: &mut Guest, entries: u32, offset: usize) {
    let hca = &guest.bare.hca;
    let geometry = CqGeometry { entries };
    let layout = hca.cq_layout(&geometry).unwrap();
    let ring = [guest.bare.piece(offset, usize::try_from(layout.ring_bytes).unwrap())];
    hca.resize_cq(guest.cq.id, &geometry, &ring).unwrap();
    guest.completions.moved(&guest.bare.memory, offset, entries as usize);
}

#[test]
fn queue_of_another_size_has_what_was_unread_and_goes_on() {
    let rig = Rig::new(0x0002_c903_00d1_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let places = [OTHER_RING, OTHER_RING + 0x2_0000];
    for (round, entries) in [512, 16, 64, 1024, 32].into_iter().cycle().take(25).enumerate() {
        for _ in 0..7 {
            near.post(Opcode::NOP, &[]);
        }
        // One is polled, the others wait until the queue has moved.
        near.sent();
        resize(&mut near, entries, places[round % 2]);
        for _ in 0..6 {
            near.sent();
        }
        assert_eq!(near.completions.poll(&near.bare.memory), None);
    }
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn ring_that_is_none_of_the_geometry_is_refused_and_the_queue_stays() {
    let rig = Rig::new(0x0002_c903_00d2_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let resize = |cq, entries, length| {
        let ring = [near.bare.piece(OTHER_RING, length)];
        near.bare.hca.resize_cq(cq, &CqGeometry { entries }, &ring)
    };
    assert_eq!(resize(near.cq.id, 512, 4096), Err(HcaError::Refused));
    assert_eq!(resize(near.cq.id, 100, 4096), Err(HcaError::Geometry));
    assert_eq!(resize(near.cq.id, 1 << 23, 4096), Err(HcaError::Geometry));
    assert_eq!(resize(CqId(77), 16, 4096), Err(HcaError::Refused));
    near.post(Opcode::NOP, &[]);
    near.sent();
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn moderated_queue_notifies_all_the_same() {
    let rig = Rig::new(0x0002_c903_00d3_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let hca = &rig.hca;
    let info = hca.device();
    assert_eq!((info.max_moderation_count, info.max_moderation_us), (u16::MAX, u16::MAX));
    hca.moderate_cq(near.cq.id, 100, 50).unwrap();
    assert_eq!(hca.moderate_cq(CqId(77), 1, 1), Err(HcaError::Refused));
    near.arm();
    near.post(Opcode::NOP, &[]);
    wait_for(&near.bare.told, Told::Completion(CQ_COOKIE));
    near.sent();
    near.destroy();
    far.destroy();
    rig.close();
}
