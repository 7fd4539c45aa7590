//! UD: datagrams, and the addresses that they come with.

use paraverbs_verbs::{
    AhAttr, Context, GRH_BYTES, Grh, QpType, SendData, SendFlags, SendOp, SendWr, UdDest, Wc, WcOpcode,
    WcStatus,
};

use crate::scene::{End, Fence, Scene, errno};

const EINVAL: i32 = 22;
const EPERM: i32 = 1;
const QKEY: u32 = 0x1234_5678;

/// A UD queue pair that is ready.
fn end(guest: &Context) -> End {
    let end = End::of_type(guest, QpType::Ud);
    end.qp.to_datagrams(1, QKEY).unwrap();
    end
}

/// The queue pair of an end.
fn to<'a>(ah: &'a paraverbs_verbs::Ah, end: &End) -> UdDest<'a> {
    UdDest { ah, remote_qpn: end.qp.qpn(), remote_qkey: QKEY }
}

#[test]
fn datagram_arrives_behind_forty_bytes_and_tells_its_sender() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| end(&guest));
    let ah = one.ah(&other, false);
    one.mr.write(0, b"a datagram").unwrap();
    for (id, op, imm) in [(1, SendOp::Send, None), (2, SendOp::SendImm(9), Some(9))] {
        other.receive(id, 0, 100);
        one.post_datagram(id, op, 0, 10, &to(&ah, &other));
        assert_eq!(one.done(id).opcode, WcOpcode::Send);
        let wc = other.done(id);
        assert_eq!((wc.opcode, wc.byte_len, wc.imm, wc.grh), (WcOpcode::Recv, 50, imm, false));
        assert_eq!((wc.src_qp, wc.slid), (one.qp.qpn(), one.guest.query_port(1).unwrap().lid));
        assert_eq!((wc.sl, wc.dlid_path_bits), (0, 0));
        assert_eq!(other.bytes(GRH_BYTES, 10), b"a datagram");
    }
    drop((ah, one, other));
    scene.stop();
}

#[test]
fn datagram_with_a_grh_can_be_answered_by_what_came_with_it() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| end(&guest));
    let gids = [&one, &other].map(|end| end.guest.query_gid(1, 0).unwrap());
    let grh = Grh { dgid: gids[1], flow_label: 0x1_2345, hop_limit: 5, traffic_class: 7, sgid_index: 0 };
    let ah = one.pd.create_ah(&AhAttr { sl: 0, grh: Some(grh), ..other.path() }).unwrap();
    other.receive(1, 0, 100);
    one.post_datagram(1, SendOp::Send, 0, 10, &to(&ah, &other));
    one.done(1);
    let wc = other.done(1);
    assert!(wc.grh);
    let mut header = [0; GRH_BYTES];
    other.mr.read(0, &mut header).unwrap();
    assert_eq!((header[8..24].to_vec(), header[24..].to_vec()), (gids[0].0.to_vec(), gids[1].0.to_vec()));
    assert_eq!(header[..4], [0x60, 0x71, 0x23, 0x45]);

    let back = AhAttr::to_sender(&wc, &header, 1, |gid| (gid == gids[1]).then_some(0)).unwrap();
    assert_eq!(back.grh.unwrap().dgid, gids[0]);
    let back = other.pd.create_ah(&back).unwrap();
    one.receive(2, 0, 100);
    other.post_datagram(2, SendOp::Send, 0, 4, &UdDest { remote_qpn: wc.src_qp, ..to(&back, &one) });
    other.done(2);
    let wc = one.done(2);
    assert_eq!((wc.grh, wc.src_qp, wc.byte_len), (true, other.qp.qpn(), 44));
    drop((ah, back, one, other));
    scene.stop();
}

#[test]
fn lists_and_inline_data_of_datagrams_go_where_each_says() {
    let scene = Scene::new();
    let guests = scene.guests();
    let [one, other, third] = [&guests[0], &guests[1], &guests[1]].map(end);
    let ah = one.ah(&other, false);
    let flags = SendFlags::SIGNALED;
    let inline: [&[u8]; 2] = [b"in", b"line"];
    let wr = |wr_id, data| SendWr { wr_id, op: SendOp::Send, data, flags };
    let sges = [one.mr.sge(0, 3)];
    one.mr.write(0, b"sge").unwrap();
    for end in [&other, &third] {
        end.receive(7, 0, 100);
    }
    let list = [
        (wr(1, SendData::Inline(&inline)), to(&ah, &other)),
        (wr(2, SendData::Sges(&sges)), to(&ah, &third)),
    ];
    one.qp.post_send_ud_list(&list).unwrap();
    one.done(1);
    one.done(2);
    assert_eq!((other.done(7).byte_len, third.done(7).byte_len), (46, 43));
    assert_eq!((other.bytes(40, 6), third.bytes(40, 3)), (b"inline".to_vec(), b"sge".to_vec()));
    assert_eq!(errno(one.qp.post_send(&wr(3, SendData::Sges(&sges)))), EINVAL, "it has no destination");
    drop((ah, one, other, third));
    drop(guests);
    scene.stop();
}

#[test]
fn datagram_with_a_wrong_qkey_is_dropped_and_counted() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| end(&guest));
    let fence = Fence::new([&one.guest, &other.guest]);
    let ah = one.ah(&other, false);
    let violations = || other.guest.query_port(1).unwrap().qkey_viol_cntr;
    let before = violations();
    other.receive(1, 0, 100);
    one.post_datagram(1, SendOp::Send, 0, 10, &UdDest { remote_qkey: QKEY + 1, ..to(&ah, &other) });
    one.done(1);
    fence.pass();
    other.nothing();
    assert_eq!(violations(), before + 1);
    // With the top bit the queue pair's own goes out.
    one.post_datagram(2, SendOp::Send, 0, 10, &UdDest { remote_qkey: 1 << 31, ..to(&ah, &other) });
    one.done(2);
    other.done(1);
    drop((ah, one, other, fence));
    scene.stop();
}

#[test]
fn datagram_longer_than_a_packet_is_a_length_error() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| end(&guest));
    let ah = one.ah(&other, false);
    let mtu = one.guest.query_port(1).unwrap().active_mtu.bytes();
    other.receive(1, 0, mtu + 40);
    one.post_datagram(1, SendOp::Send, 0, mtu, &to(&ah, &other));
    one.done(1);
    assert_eq!(other.done(1).byte_len, mtu + 40);
    one.post_datagram(2, SendOp::Send, 0, mtu + 1, &to(&ah, &other));
    one.failed(2, WcStatus::LocLenErr);
    drop((ah, one, other));
    scene.stop();
}

#[test]
fn address_handle_of_another_domain_is_refused_by_the_hca() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| end(&guest));
    let pd = one.guest.alloc_pd().unwrap();
    let ah = pd.create_ah(&other.path()).unwrap();
    one.post_datagram(1, SendOp::Send, 0, 4, &to(&ah, &other));
    one.failed(1, WcStatus::LocQpOpErr);
    drop((one, other, ah, pd));
    scene.stop();
}

#[test]
fn addresses_that_are_none_are_refused() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| End::of_type(&guest, QpType::Ud));
    let path = other.path();
    let grh = Grh { sgid_index: 200, ..Grh::default() };
    for wrong in [
        AhAttr { port_num: 0, ..path },
        AhAttr { port_num: 2, ..path },
        AhAttr { sl: 16, ..path },
        AhAttr { grh: Some(grh), ..path },
        AhAttr { grh: Some(Grh { sgid_index: 0, flow_label: 1 << 20, ..grh }), ..path },
    ] {
        assert_eq!(errno(one.pd.create_ah(&wrong)), EINVAL, "{wrong:?}");
    }
    assert_eq!(errno(one.qp.to_datagrams(1, 1 << 31)), EPERM, "a privileged Q_Key");
    one.qp.to_datagrams(1, QKEY).unwrap();
    assert_eq!(one.qp.query().unwrap().qkey, Some(QKEY));
    let ah = one.ah(&other, false);
    let wr = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&[]), flags: SendFlags::SIGNALED };
    let wide = UdDest { ah: &ah, remote_qpn: 1 << 24, remote_qkey: QKEY };
    assert_eq!(errno(one.qp.post_send_ud(&wr, &wide)), EINVAL);
    let mut wcs = [Wc::default()];
    assert_eq!(one.cq.poll(&mut wcs).unwrap(), 0);
    drop((ah, one, other));
    scene.stop();
}
