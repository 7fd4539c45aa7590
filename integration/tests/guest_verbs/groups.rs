//! Multicast groups.

use paraverbs_verbs::{Access, AhAttr, Context, Gid, Grh, QpInit, QpType, SendOp, UdDest};

use crate::scene::{End, Fence, Scene, errno};

const EINVAL: i32 = 22;
const QKEY: u32 = 0x1234_5678;
const MLID: u16 = 0xc123;

fn group(last: u8) -> Gid {
    let mut gid = [0; 16];
    (gid[0], gid[1], gid[15]) = (0xff, 0x12, last);
    Gid(gid)
}

fn member(guest: &Context, block_self_mcast_lb: bool) -> End {
    let pd = guest.alloc_pd().unwrap();
    let end = End::with(guest, pd, |init| QpInit { qp_type: QpType::Ud, block_self_mcast_lb, ..init });
    end.qp.to_datagrams(1, QKEY).unwrap();
    end
}

/// Sends to a group.
fn send(from: &End, wr_id: u64, gid: Gid) {
    let grh = Grh { dgid: gid, hop_limit: 1, ..Grh::default() };
    let ah = from.pd.create_ah(&AhAttr { grh: Some(grh), ..AhAttr::to_lid(MLID, 1) }).unwrap();
    let to = UdDest { ah: &ah, remote_qpn: UdDest::MULTICAST, remote_qkey: QKEY };
    from.post_datagram(wr_id, SendOp::Send, 0, 6, &to);
    from.done(wr_id);
}

#[test]
fn message_to_a_group_comes_to_all_its_members_and_to_nobody_else() {
    let scene = Scene::new();
    let guests = scene.guests();
    let fence = Fence::new([&guests[0], &guests[1]]);
    let [sender, one, other, stranger, apart] =
        [0, 1, 1, 1, 0].map(|guest: usize| member(&guests[guest], false));
    for end in [&one, &other, &sender] {
        end.qp.attach_mcast(&group(1), MLID).unwrap();
        end.qp.attach_mcast(&group(1), MLID).unwrap();
    }
    apart.qp.attach_mcast(&group(2), MLID).unwrap();
    for end in [&sender, &one, &other, &stranger, &apart] {
        end.receive(5, 0, 100);
    }
    sender.mr.write(100_000, b"all of").unwrap();
    let grh = Grh { dgid: group(1), hop_limit: 1, ..Grh::default() };
    let ah = sender.pd.create_ah(&AhAttr { grh: Some(grh), ..AhAttr::to_lid(MLID, 1) }).unwrap();
    let to = UdDest { ah: &ah, remote_qpn: UdDest::MULTICAST, remote_qkey: QKEY };
    sender.post_datagram(1, SendOp::Send, 100_000, 6, &to);
    let mut ids = [crate::scene::completion(&sender.cq).wr_id, crate::scene::completion(&sender.cq).wr_id];
    ids.sort_unstable();
    assert_eq!(ids, [1, 5], "the sender is a member too");
    for end in [&one, &other] {
        let wc = end.done(5);
        assert_eq!((wc.grh, wc.byte_len, wc.src_qp), (true, 46, sender.qp.qpn()));
        assert_eq!(end.bytes(40, 6), b"all of");
        assert_eq!(end.bytes(24, 16), group(1).0);
    }
    fence.pass();
    stranger.nothing();
    apart.nothing();
    drop((ah, [sender, one, other, stranger, apart], fence, guests));
    scene.stop();
}

#[test]
fn own_messages_of_a_queue_pair_that_blocks_them_come_to_the_others_only() {
    let scene = Scene::new();
    let guests = scene.guests();
    let fence = Fence::new([&guests[0], &guests[1]]);
    let (sender, other) = (member(&guests[0], true), member(&guests[1], true));
    for end in [&sender, &other] {
        end.qp.attach_mcast(&group(3), MLID).unwrap();
        end.receive(5, 0, 100);
    }
    send(&sender, 1, group(3));
    other.done(5);
    fence.pass();
    sender.nothing();
    // What the other sends does come.
    send(&other, 2, group(3));
    sender.done(5);
    let rc = other.guest.create_cq(1, None).unwrap();
    let init = QpInit { block_self_mcast_lb: true, ..QpInit::new(&rc) };
    assert_eq!(errno(other.pd.create_qp(&init)), EINVAL, "RC has no multicast");
    drop((sender, other, rc, fence, guests));
    scene.stop();
}

#[test]
fn queue_pair_that_has_left_a_group_gets_no_more_of_it() {
    let scene = Scene::new();
    let guests = scene.guests();
    let fence = Fence::new([&guests[0], &guests[1]]);
    let (sender, one, other) =
        (member(&guests[0], false), member(&guests[1], false), member(&guests[1], false));
    for end in [&one, &other] {
        end.qp.attach_mcast(&group(4), MLID).unwrap();
        end.receive(5, 0, 100);
    }
    one.qp.detach_mcast(&group(4), MLID).unwrap();
    assert_eq!(errno(one.qp.detach_mcast(&group(4), MLID)), EINVAL, "it is not in it any more");
    send(&sender, 1, group(4));
    other.done(5);
    fence.pass();
    one.nothing();
    // Groups are left with the queue pair.
    drop(other);
    send(&sender, 2, group(4));
    fence.pass();
    one.nothing();
    drop((sender, one, fence, guests));
    scene.stop();
}

#[test]
fn what_is_no_group_or_no_datagram_queue_pair_is_refused() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let end = member(&guest, false);
    let unicast = guest.query_gid(1, 0).unwrap();
    assert_eq!(errno(end.qp.attach_mcast(&unicast, MLID)), EINVAL);
    assert_eq!(errno(end.qp.attach_mcast(&group(1), 7)), EINVAL);
    assert_eq!(errno(end.qp.attach_mcast(&group(1), 0xffff)), EINVAL);
    let rc = End::new(&guest);
    rc.qp.to_init(1, Access::NONE).unwrap();
    assert_eq!(errno(rc.qp.attach_mcast(&group(1), MLID)), EINVAL);
    drop((end, rc, guest));
    scene.stop();
}
