//! Regions that work requests register, through the driver on the model.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::Pair;
use common::end::{End, failed, request, sent};
use mlx4::{Access, QpRights};
use mlx4_queue::request::{Data, Operation, Remote};
use mlx4_wire::ctx::qp::QpState;

const RIGHTS: QpRights = QpRights { fast_register: true, lso: false, forced_gid: None };

#[test]
fn pages_of_a_request_are_reached_until_their_key_is_invalidated() {
    let pair = Pair::new(0x0002_c903_00c5_0000);
    let ends = [QpRights::default(), RIGHTS];
    let [near, far] = [0, 1].map(|host: usize| End::with_rights(&pair.hosts[host].hca, ends[host]));
    near.connect(pair.lids[1], far.qp.number());
    far.connect(pair.lids[0], near.qp.number());
    let mut region = pair.hosts[1].hca.fast_region(&far.pd, 8).unwrap();
    let first = far.memory.buffer().iova();
    let address = 0x7000_0000_0100;
    let mut before = None;
    for base in [8, 32] {
        // Backwards, every second page, from the middle of the first on.
        let pages: Vec<u64> = (0..4).rev().map(|page| first + (base + 2 * page) * 4096).collect();
        let register = region.register(Access::ALL, (address, 3 * 4096), &pages, 12).unwrap();
        far.qp.post_send(&[request(1, register, Data::Pieces(&[]))]).unwrap();
        sent(&far, 1);
        near.memory.write(0, &[u8::try_from(base).unwrap(); 8192]).unwrap();
        let data = [near.memory.piece(0, 8192)];
        let write = |rkey| request(2, Operation::Write(Remote { address, rkey }), Data::Pieces(&data));
        near.qp.post_send(&[write(region.key())]).unwrap();
        sent(&near, 2);
        let at = |page: u64, offset: usize| {
            let mut byte = [0];
            far.memory.read(usize::try_from((base + 2 * page) * 4096).unwrap() + offset, &mut byte).unwrap();
            u64::from(byte[0])
        };
        assert_eq!([at(3, 0xff), at(3, 0x100), at(2, 0), at(2, 4095), at(1, 0xff), at(1, 0x100)], {
            [0, base, base, base, base, 0]
        });
        let refused = |rkey| {
            near.qp.post_send(&[write(rkey)]).unwrap();
            failed(&near, 2);
            End::reconnect(&pair, [&near, &far]);
        };
        before.replace(region.key()).into_iter().for_each(refused);
        far.qp.post_send(&[request(3, region.invalidate(), Data::Pieces(&[]))]).unwrap();
        sent(&far, 3);
        refused(region.key());
    }
    region.destroy().unwrap();
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn queue_pair_without_the_right_registers_nothing() {
    let pair = Pair::new(0x0002_c903_00c6_0000);
    let [near, far] = End::connected(&pair);
    let mut region = pair.hosts[1].hca.fast_region(&far.pd, 1).unwrap();
    let pages = [far.memory.buffer().iova()];
    let register = region.register(Access::ALL, (0, 4096), &pages, 12).unwrap();
    far.qp.post_send(&[request(1, register, Data::Pieces(&[]))]).unwrap();
    failed(&far, 1);
    assert_eq!(far.qp.query().unwrap().state, QpState::ERR);
    // The same request, with the right.
    let able = End::with_rights(&pair.hosts[1].hca, RIGHTS);
    able.connect(pair.lids[0], near.qp.number());
    let mut own = pair.hosts[1].hca.fast_region(&able.pd, 1).unwrap();
    let register = own.register(Access::ALL, (0, 4096), &pages, 12).unwrap();
    able.qp.post_send(&[request(1, register, Data::Pieces(&[]))]).unwrap();
    sent(&able, 1);
    region.destroy().unwrap();
    own.destroy().unwrap();
    [near, far, able].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn pages_that_are_not_those_of_the_range_are_refused() {
    let pair = Pair::new(0x0002_c903_00c7_0000);
    let hca = &pair.hosts[0].hca;
    let pd = hca.pd().unwrap();
    assert!(hca.fast_region(&pd, 0).is_err() && hca.fast_region(&pd, 512).is_err());
    let mut region = hca.fast_region(&pd, 2).unwrap();
    let key = region.key();
    for (range, pages, log2_page) in [
        ((0, 0), &[][..], 12),
        ((0, 4097), &[0x1000], 12),
        ((0, 3 * 4096), &[0x1000, 0x2000, 0x3000], 12),
        ((0, 4096), &[0x1800], 12),
        ((u64::MAX, 2), &[0x1000], 12),
        ((0, 4096), &[0x1000], 11),
        ((0, 4096), &[0x1000], 32),
    ] {
        assert!(region.register(Access::LOCAL, range, pages, log2_page).is_err(), "{range:?} {pages:x?}");
    }
    assert_eq!(region.key(), key);
    region.destroy().unwrap();
    pair.close();
}
