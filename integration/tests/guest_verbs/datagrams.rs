//! UD: datagrams, and the addresses that they come with.

use paraverbs_verbs::{
    AhAttr, Context, GRH_BYTES, Grh, QpInit, QpType, SendData, SendFlags, SendOp, SendWr, UdDest, Wc,
    WcOpcode, WcStatus,
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

/// The header of IP over InfiniBand, IPv4 and TCP, without lengths and checksums.
fn header() -> [u8; 44] {
    let mut header = [0; 44];
    header[..2].copy_from_slice(&[0x08, 0x00]);
    (header[4], header[12], header[13]) = (0x45, 64, 6);
    header[16..24].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    header[28..32].copy_from_slice(&1_000_000u32.to_be_bytes());
    header[36] = 0x50;
    header
}

/// The sum of 16-bit words in ones' complement: all ones where the checksum in it is right.
fn sum(words: &[&[u8]]) -> u16 {
    let words = words
        .iter()
        .flat_map(|bytes| bytes.chunks(2))
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum.to_le_bytes()[0..2].try_into().map(u16::from_le_bytes).unwrap()
}

#[test]
fn long_message_is_cut_into_packets_with_headers_that_are_right() {
    const MSS: u16 = 1500;
    const LENGTH: u32 = 4000;
    let scene = Scene::new();
    let [guest, peer] = scene.guests();
    assert!(guest.query_device().unwrap().max_tso >= LENGTH);
    let pd = guest.alloc_pd().unwrap();
    let one = End::with(&guest, pd, |init| QpInit { qp_type: QpType::Ud, max_lso_header: 44, ..init });
    one.qp.to_datagrams(1, QKEY).unwrap();
    let other = end(&peer);
    let ah = one.ah(&other, false);
    let payload: Vec<u8> = (0..LENGTH).map(|at| (at * 7 / 3).to_le_bytes()[0]).collect();
    one.mr.write(0, &payload).unwrap();
    for id in 0..3 {
        other.receive(id, usize::try_from(id).unwrap() * 4096, 4096);
    }
    let (header, sges) = (header(), [one.mr.sge(0, 1000), one.mr.sge(1000, LENGTH - 1000)]);
    let data = SendData::Segmented { header: &header, mss: MSS, sges: &sges };
    let wr = SendWr { wr_id: 9, op: SendOp::Send, data, flags: SendFlags::SIGNALED };
    one.qp.post_send_ud(&wr, &to(&ah, &other)).unwrap();
    assert_eq!(one.done(9).opcode, WcOpcode::Tso);
    let mut received = Vec::new();
    for (id, bytes) in (0..).zip([1500, 1500, 1000usize]) {
        assert_eq!(other.done(id).byte_len as usize, GRH_BYTES + 44 + bytes);
        let packet = other.bytes(usize::try_from(id).unwrap() * 4096 + GRH_BYTES, 44 + bytes);
        let (ip, tcp) = (&packet[4..24], &packet[24..]);
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), 40 + bytes);
        assert_eq!(sum(&[ip]), 0xffff, "checksum of the IP header");
        assert_eq!(tcp[4..8], (1_000_000 + u32::try_from(received.len()).unwrap()).to_be_bytes());
        let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
        assert_eq!(sum(&[&ip[12..], &[0, 6], &length, tcp]), 0xffff, "checksum of TCP");
        received.extend_from_slice(&packet[44..]);
    }
    assert_eq!(received, payload);
    drop((ah, one, other, guest, peer));
    scene.stop();
}
