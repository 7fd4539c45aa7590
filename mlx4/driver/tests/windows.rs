//! Memory windows through the driver on the model.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::Pair;
use common::end::{End, failed, request, sent};
use mlx4::{Access, Region, RegionConfig, Window, WindowKind};
use mlx4_queue::request::{Bind, Data, Operation, Remote};
use mlx4_queue::{Completed, Payload};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::wqe::BindAccess;

/// Bytes of the region that windows are bound to.
const LENGTH: u64 = 0x1_0000;

/// A region over the start of an end's memory that only windows open to others.
fn region(pair: &Pair, end: &End) -> Region {
    let first = end.memory.buffer().iova();
    let pages: Vec<u64> = (0..LENGTH / 4096).map(|page| first + page * 4096).collect();
    let config = RegionConfig {
        pd: &end.pd,
        address: first,
        length: LENGTH,
        pages: &pages,
        log2_page: 12,
        access: Access::LOCAL,
        bind: true,
    };
    pair.hosts[1].hca.region(&config).unwrap()
}

/// The next key of a window.
fn next(rkey: u32) -> u32 {
    rkey & !0xff | rkey.wrapping_add(1) & 0xff
}

/// Binds a window to bytes of a region, for reads and writes; its key.
fn bind(end: &End, kind: WindowKind, rkey: u32, region: &Region, bytes: std::ops::Range<u64>) -> u32 {
    let bind = Bind {
        type_2: kind == WindowKind::Type2,
        access: BindAccess::new().with_remote_read(true).with_remote_write(true),
        zero_based: false,
        rkey: next(rkey),
        lkey: region.lkey(),
        address: end.memory.buffer().iova() + bytes.start,
        length: bytes.end - bytes.start,
    };
    end.qp.post_send(&[request(70, Operation::Bind(bind), Data::Pieces(&[]))]).unwrap();
    sent(end, 70);
    bind.rkey
}

fn write(near: &End, far: &End, offset: u64, rkey: u32) {
    let remote = Remote { address: far.memory.buffer().iova() + offset, rkey };
    let data = [near.memory.piece(0, 8)];
    near.qp.post_send(&[request(80, Operation::Write(remote), Data::Pieces(&data))]).unwrap();
}

fn written(near: &End, far: &End, offset: u64, rkey: u32) {
    near.memory.write(0, b"a window").unwrap();
    write(near, far, offset, rkey);
    sent(near, 80);
    let mut there = [0; 8];
    far.memory.read(usize::try_from(offset).unwrap(), &mut there).unwrap();
    assert_eq!(&there, b"a window");
    far.memory.write(usize::try_from(offset).unwrap(), &[0; 8]).unwrap();
}

/// A write that the key doesn't allow; both ends start again.
fn refused(pair: &Pair, [near, far]: [&End; 2], offset: u64, rkey: u32) {
    write(near, far, offset, rkey);
    assert_eq!(failed(near, 80), Syndrome::REMOTE_ACCESS_ERR);
    End::reconnect(pair, [near, far]);
}

fn window(pair: &Pair, end: &End, kind: WindowKind) -> Window {
    pair.hosts[1].hca.window(&end.pd, kind).unwrap()
}

#[test]
fn window_opens_a_part_of_a_region_until_it_is_bound_elsewhere() {
    let pair = Pair::new(0x0002_c903_00c1_0000);
    let [near, far] = End::connected(&pair);
    let region = region(&pair, &far);
    let window = window(&pair, &far, WindowKind::Type1);
    refused(&pair, [&near, &far], 0x1000, window.rkey());
    let first = bind(&far, WindowKind::Type1, window.rkey(), &region, 0x1000..0x1800);
    written(&near, &far, 0x1000, first);
    written(&near, &far, 0x17f8, first);
    refused(&pair, [&near, &far], 0x17f9, first);
    refused(&pair, [&near, &far], 0xff8, first);
    let second = bind(&far, WindowKind::Type1, first, &region, 0x4000..0x5000);
    refused(&pair, [&near, &far], 0x1000, first);
    written(&near, &far, 0x4000, second);
    let none = bind(&far, WindowKind::Type1, second, &region, 0..0);
    refused(&pair, [&near, &far], 0x4000, none);
    window.destroy().unwrap();
    region.destroy().unwrap();
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn region_stays_while_windows_are_bound_to_it() {
    let pair = Pair::new(0x0002_c903_00c2_0000);
    let [near, far] = End::connected(&pair);
    let region = region(&pair, &far);
    let windows = [WindowKind::Type1, WindowKind::Type1].map(|kind| window(&pair, &far, kind));
    let keys = [&windows[0], &windows[1]]
        .map(|window| bind(&far, WindowKind::Type1, window.rkey(), &region, 0..0x1000));
    let region = region.destroy_unbound().unwrap().expect("two windows are bound to it");
    written(&near, &far, 8, keys[0]);
    let [first, second] = windows;
    first.destroy().unwrap();
    let region = region.destroy_unbound().unwrap().expect("one window is bound to it");
    refused(&pair, [&near, &far], 8, keys[0]);
    written(&near, &far, 8, keys[1]);
    bind(&far, WindowKind::Type1, keys[1], &region, 0..0);
    assert!(region.destroy_unbound().unwrap().is_none());
    second.destroy().unwrap();
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn window_of_a_queue_pair_is_invalidated_from_both_ends() {
    let pair = Pair::new(0x0002_c903_00c3_0000);
    let [near, far] = End::connected(&pair);
    let region = region(&pair, &far);
    let window = window(&pair, &far, WindowKind::Type2);
    let first = bind(&far, WindowKind::Type2, window.rkey(), &region, 0..0x1000);
    written(&near, &far, 0, first);
    let invalidate = request(71, Operation::LocalInvalidate(first), Data::Pieces(&[]));
    far.qp.post_send(&[invalidate]).unwrap();
    sent(&far, 71);
    refused(&pair, [&near, &far], 0, first);
    let second = bind(&far, WindowKind::Type2, first, &region, 0x2000..0x3000);
    written(&near, &far, 0x2000, second);
    far.qp.post_receive([(5, &[far.memory.piece(0x2_0000, 64)][..])]).unwrap();
    let send = request(72, Operation::SendInvalidate(second), Data::Inline(&[b"done"]));
    near.qp.post_send(&[send]).unwrap();
    sent(&near, 72);
    let completion = far.completion();
    let Completed::Received(received) = completion.outcome else { panic!("{completion:?}") };
    assert_eq!(received.payload, Payload::Invalidated(second));
    refused(&pair, [&near, &far], 0x2000, second);
    window.destroy().unwrap();
    region.destroy().unwrap();
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn window_of_a_queue_pair_is_closed_to_all_others() {
    let pair = Pair::new(0x0002_c903_00c4_0000);
    let [near, far] = End::connected(&pair);
    let region = region(&pair, &far);
    let window = window(&pair, &far, WindowKind::Type2);
    let key = bind(&far, WindowKind::Type2, window.rkey(), &region, 0..0x1000);
    written(&near, &far, 0, key);
    // Another connection of the same domains.
    let others = [near.sibling(&pair.hosts[0].hca), far.sibling(&pair.hosts[1].hca)];
    for (here, there) in [(0, 1), (1, 0)] {
        common::end::connect(&others[here], pair.lids[there], others[there].number());
    }
    let remote = Remote { address: far.memory.buffer().iova(), rkey: key };
    let data = [near.memory.piece(0, 8)];
    others[0].post_send(&[request(9, Operation::Write(remote), Data::Pieces(&data))]).unwrap();
    assert_eq!(failed(&near, 9), Syndrome::REMOTE_ACCESS_ERR);
    written(&near, &far, 0, key);
    window.destroy().unwrap();
    region.destroy().unwrap();
    others.into_iter().for_each(|qp| qp.destroy().unwrap());
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}
