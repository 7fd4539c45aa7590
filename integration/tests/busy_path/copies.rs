//! Payload goes from one guest's memory to the other's by one copy.

use paraverbs_verbs::SendOp;

use super::scene::{End, MEMORY, Scene};

/// Sizes that end in a packet, between packets, between pages, and beyond what the engine does at once.
const SIZES: [u32; 7] = [1, 8, 2048, 4097, 65_536, 300_001, 1 << 20];

/// Bytes posted by writes, reads and sends, each in pieces that don't fit to those of the other side.
fn exchange(near: &End, far: &End, bytes: u32) -> u64 {
    let (remote_addr, rkey) = (far.mr.addr() + 5, far.mr.rkey());
    let first = bytes / 3;
    let pieces = |end: &End| [end.mr.sge(3, first), end.mr.sge(MEMORY / 2 + 1, bytes - first)];
    near.post_pieces(1, SendOp::Write { remote_addr, rkey }, &pieces(near));
    near.done(1);
    near.post_pieces(2, SendOp::Read { remote_addr, rkey }, &pieces(near));
    near.done(2);
    let second = bytes / 2;
    far.receive(3, [far.mr.sge(0, second), far.mr.sge(MEMORY / 2, bytes - second)]);
    near.post_pieces(4, SendOp::Send, &pieces(near));
    near.done(4);
    far.done(3);
    3 * u64::from(bytes)
}

#[test]
fn payload_is_copied_exactly_once() {
    let scene = Scene::new(None);
    let [near, far] = scene.connection();
    let before = ["payload_bytes", "copied_bytes"].map(|name| scene.count(name));
    let posted: u64 = SIZES.into_iter().map(|bytes| exchange(&near, &far, bytes)).sum();
    let now = ["payload_bytes", "copied_bytes"].map(|name| scene.count(name));
    assert_eq!([now[0] - before[0], now[1] - before[1]], [posted, posted]);
    drop((near, far));
    scene.stop();
}
