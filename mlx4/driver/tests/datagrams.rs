//! Datagrams, multicast and a shared receive queue through the driver on the model.

mod common;

use common::Pair;
use common::end::{End, SIGNALLED, sent};
use mlx4::{Attributes, GlobalRoute, Path, QpRights, QueuePairConfig};
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{Data, Destination, Operation, SendRequest, Sge};
use mlx4_queue::{Completed, Completion, Received};
use mlx4_wire::ctx::qp::QpState;

const QKEY: u32 = 0x1234;

fn received(completion: &Completion) -> Received {
    match completion.outcome {
        Completed::Received(received) => received,
        other => panic!("{other:?}"),
    }
}

fn datagram<'a>(wr_id: u64, data: Data<'a>, to: &'a Destination) -> SendRequest<'a> {
    SendRequest { wr_id, operation: Operation::Send, data, flags: SIGNALLED, destination: Some(to) }
}

#[test]
fn datagram_arrives_with_its_source_behind_40_bytes() {
    let pair = Pair::new(0x0002_c903_0011_0000);
    let ends = [0, 1].map(|i: usize| End::new(&pair.hosts[i].hca, Service::Ud));
    ends.iter().for_each(|end| end.start_datagrams(QKEY));
    let [near, far] = &ends;
    far.qp.post_receive([(7, &[far.memory.piece(0, 4096)][..])]).unwrap();
    let dgid = pair.hosts[1].hca.gids(1).unwrap()[0];
    let grh = GlobalRoute { dgid, sgid_index: 0, hop_limit: 1, traffic_class: 0, flow_label: 0 };
    let path = Path { grh: Some(grh), ..Path::local(1, pair.lids[1], 3) };
    let av = pair.hosts[0].hca.address_vector(&near.pd, &path).unwrap();
    let to = Destination { av, qpn: far.qp.number(), qkey: QKEY };
    near.qp.post_send(&[datagram(1, Data::Inline(&[b"a datagram"]), &to)]).unwrap();
    sent(near, 1);
    let completion = far.completion();
    let message = received(&completion);
    assert_eq!((completion.wr_id, message.bytes), (7, 50));
    assert_eq!((message.source_qpn, message.slid, message.sl), (near.qp.number(), pair.lids[0], 3));
    assert!(message.grh);
    let mut payload = [0; 10];
    far.memory.read(40, &mut payload).unwrap();
    assert_eq!(&payload, b"a datagram");
    ends.into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn multicast_reaches_who_is_attached_and_nobody_after_it_is_detached() {
    let pair = Pair::new(0x0002_c903_0012_0000);
    let hca = &pair.hosts[0].hca;
    let ends: Vec<End> = (0..4).map(|_| End::new(hca, Service::Ud)).collect();
    ends.iter().for_each(|end| end.start_datagrams(QKEY));
    let mut group = [0; 16];
    group[..4].copy_from_slice(&[0xff, 0x12, 0x40, 0x1b]);
    group[15] = 9;
    let (sender, members) = ends.split_first().unwrap();
    for member in members {
        hca.attach_multicast(member.qp.object(), &group, false).unwrap();
        // A second time changes nothing.
        hca.attach_multicast(member.qp.object(), &group, false).unwrap();
        member.qp.post_receive([(1, &[member.memory.piece(0, 4096)][..])]).unwrap();
    }
    hca.detach_multicast(members[1].qp.object(), &group).unwrap();
    let grh = GlobalRoute { dgid: group, sgid_index: 0, hop_limit: 0, traffic_class: 0, flow_label: 0 };
    let path = Path { grh: Some(grh), ..Path::local(1, 0xc000, 0) };
    let av = hca.address_vector(&sender.pd, &path).unwrap();
    let to = Destination { av, qpn: 0xff_ffff, qkey: QKEY };
    sender.qp.post_send(&[datagram(1, Data::Inline(&[b"to all"]), &to)]).unwrap();
    sent(sender, 1);
    for member in [&members[0], &members[2]] {
        assert_eq!(received(&member.completion()).bytes, 46);
    }
    assert_eq!(members[1].cq.poll(1, |_| {}).unwrap(), 0);
    hca.detach_multicast(members[0].qp.object(), &group).unwrap();
    hca.detach_multicast(members[2].qp.object(), &group).unwrap();
    assert!(hca.detach_multicast(members[2].qp.object(), &group).is_err());
    ends.into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn member_that_blocks_its_own_messages_gets_those_of_others_only() {
    let pair = Pair::new(0x0002_c903_0016_0000);
    let hca = &pair.hosts[0].hca;
    let ends: Vec<End> = (0..3).map(|_| End::new(hca, Service::Ud)).collect();
    ends.iter().for_each(|end| end.start_datagrams(QKEY));
    let mut group = [0; 16];
    (group[0], group[15]) = (0xff, 7);
    // The first blocks, the second doesn't; the third sends only.
    for (end, block) in ends.iter().zip([true, false]) {
        hca.attach_multicast(end.qp.object(), &group, block).unwrap();
    }
    let grh = GlobalRoute { dgid: group, sgid_index: 0, hop_limit: 0, traffic_class: 0, flow_label: 0 };
    let path = Path { grh: Some(grh), ..Path::local(1, 0xc000, 0) };
    for end in &ends {
        for id in 10..14 {
            end.qp.post_receive([(id, &[end.memory.piece(0, 4096)][..])]).unwrap();
        }
    }
    let send = |end: &End, path: &Path, qpn, text: &[u8]| {
        let av = hca.address_vector(&end.pd, path).unwrap();
        let to = Destination { av, qpn, qkey: QKEY };
        end.qp.post_send(&[datagram(1, Data::Inline(&[text]), &to)]).unwrap();
    };
    // What the first sends to the group and then to itself arrives in this order, if at all.
    send(&ends[0], &path, 0xff_ffff, b"group");
    sent(&ends[0], 1);
    send(&ends[0], &Path::local(1, pair.lids[0], 0), ends[0].qp.number(), b"me");
    let mut first = [ends[0].completion(), ends[0].completion()];
    first.sort_by_key(|completion| completion.wr_id);
    assert_eq!((first[0].wr_id, received(&first[1]).bytes), (1, 42));
    assert_eq!(received(&ends[1].completion()).bytes, 45);
    // The second is a member too, and gets its own.
    send(&ends[1], &path, 0xff_ffff, b"all");
    let mut second = [ends[1].completion(), ends[1].completion()];
    second.sort_by_key(|completion| completion.wr_id);
    assert_eq!(received(&second[1]).bytes, 43);
    assert_eq!(received(&ends[0].completion()).bytes, 43);
    // Whoever isn't one reaches both.
    send(&ends[2], &path, 0xff_ffff, b"both");
    sent(&ends[2], 1);
    assert_eq!([received(&ends[0].completion()).bytes, received(&ends[1].completion()).bytes], [44, 44]);
    for end in &ends[..2] {
        hca.detach_multicast(end.qp.object(), &group).unwrap();
    }
    ends.into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn queue_pair_in_error_has_taken_its_last_request_from_its_shared_queue() {
    let pair = Pair::new(0x0002_c903_0017_0000);
    let hca = &pair.hosts[0].hca;
    let end = End::new(hca, Service::Rc);
    let srq = hca.shared_receive_queue(&end.pd, 16, 1).unwrap();
    let config = QueuePairConfig {
        service: Service::Rc,
        pd: &end.pd,
        uar: &end.uar,
        send_cq: &end.cq,
        receive_cq: &end.cq,
        send: SendSize { requests: 4, sges: 1, inline: 0 },
        receives: 0,
        receive_sges: 0,
        srq: Some(&srq),
    };
    let qp = hca.queue_pair(&config).unwrap();
    common::end::connect(&qp, pair.lids[0], qp.number());
    qp.modify(QpState::ERR, &Attributes::default()).unwrap();
    let qpn = qp.number();
    pair.hosts[0].wait_for(mlx4::Event::Qp { qpn, event: mlx4::QpEventKind::LastWqe });
    qp.destroy().unwrap();
    srq.destroy().unwrap();
    end.destroy();
    pair.close();
}

#[test]
fn queue_pair_with_a_gid_of_its_own_sends_no_datagram_with_another() {
    let pair = Pair::new(0x0002_c903_0018_0000);
    let gids = pair.hosts[0].hca.gids(1).unwrap();
    let rights = QpRights { forced_gid: Some(0), ..QpRights::default() };
    let near = End::of(&pair.hosts[0].hca, Service::Ud, rights);
    let far = End::new(&pair.hosts[1].hca, Service::Ud);
    [&near, &far].iter().for_each(|end| end.start_datagrams(QKEY));
    let dgid = pair.hosts[1].hca.gids(1).unwrap()[0];
    // Another entry of the table, which a free queue pair's datagrams have.
    let grh = GlobalRoute { dgid, sgid_index: 1, hop_limit: 1, traffic_class: 0, flow_label: 0 };
    let path = Path { grh: Some(grh), ..Path::local(1, pair.lids[1], 0) };
    let source = |end: &End| {
        let av = pair.hosts[0].hca.address_vector(&end.pd, &path).unwrap();
        let to = Destination { av, qpn: far.qp.number(), qkey: QKEY };
        far.qp.post_receive([(7, &[far.memory.piece(0, 4096)][..])]).unwrap();
        end.qp.post_send(&[datagram(1, Data::Inline(&[b"from whom"]), &to)]).unwrap();
        sent(end, 1);
        assert!(received(&far.completion()).grh);
        // Behind 8 bytes of the GRH.
        let mut source = [0; 16];
        far.memory.read(8, &mut source).unwrap();
        source
    };
    assert_eq!(source(&near), gids[0]);
    let free = End::new(&pair.hosts[0].hca, Service::Ud);
    free.start_datagrams(QKEY);
    assert_ne!(source(&free), gids[0]);
    free.destroy();
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

/// A TCP segment of IP over InfiniBand, whose lengths the device fills in.
fn tcp_header(sequence: u32) -> Vec<u8> {
    let mut header = vec![0x08, 0x00, 0, 0];
    header.extend([0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    header.extend([0, 80, 1, 0]);
    header.extend(sequence.to_be_bytes());
    header.extend([0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    header
}

#[test]
fn long_message_is_cut_into_datagrams_with_a_header_each() {
    let pair = Pair::new(0x0002_c903_0019_0000);
    let rights = QpRights { lso: true, ..QpRights::default() };
    let near = End::of(&pair.hosts[0].hca, Service::Ud, rights);
    let far = End::new(&pair.hosts[1].hca, Service::Ud);
    [&near, &far].iter().for_each(|end| end.start_datagrams(QKEY));
    let payload: Vec<u8> = (0..=250u8).cycle().take(2500).collect();
    near.memory.write(0, &payload).unwrap();
    for (id, offset) in (0..3).zip((0..).step_by(4096)) {
        far.qp.post_receive([(id, &[far.memory.piece(offset, 4096)][..])]).unwrap();
    }
    let av = pair.hosts[0].hca.address_vector(&near.pd, &Path::local(1, pair.lids[1], 0)).unwrap();
    let to = Destination { av, qpn: far.qp.number(), qkey: QKEY };
    let (header, pieces) = (tcp_header(1000), [near.memory.piece(0, 1000), near.memory.piece(1000, 1500)]);
    let data = Data::Segmented { header: &header, segment: 1000, pieces: &pieces };
    near.qp.post_send(&[datagram(1, data, &to)]).unwrap();
    sent(&near, 1);
    for (packet, part) in payload.chunks(1000).enumerate() {
        let completion = far.completion();
        assert_eq!(completion.wr_id, packet as u64);
        let bytes = received(&completion).bytes as usize;
        assert_eq!(bytes, 40 + header.len() + part.len());
        let mut message = vec![0; bytes - 40];
        far.memory.read(packet * 4096 + 40, &mut message).unwrap();
        let (head, body) = message.split_at(header.len());
        assert_eq!(body, part);
        let sequence = u32::from_be_bytes([head[28], head[29], head[30], head[31]]);
        assert_eq!(sequence, 1000 + 1000 * u32::try_from(packet).unwrap());
        assert_eq!(usize::from(u16::from_be_bytes([head[6], head[7]])), 40 + part.len());
    }
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn only_datagrams_are_cut_out_of_long_messages_and_have_a_forced_gid() {
    let pair = Pair::new(0x0002_c903_001a_0000);
    let hca = &pair.hosts[0].hca;
    let end = End::new(hca, Service::Rc);
    let config = QueuePairConfig {
        service: Service::Rc,
        pd: &end.pd,
        uar: &end.uar,
        send_cq: &end.cq,
        receive_cq: &end.cq,
        send: SendSize { requests: 4, sges: 1, inline: 0 },
        receives: 1,
        receive_sges: 1,
        srq: None,
    };
    for rights in [
        QpRights { lso: true, ..QpRights::default() },
        QpRights { forced_gid: Some(0), ..QpRights::default() },
    ] {
        assert!(hca.queue_pair_with(&config, rights).is_err(), "{rights:?}");
    }
    let ud = QueuePairConfig { service: Service::Ud, ..config };
    let far = QpRights { forced_gid: Some(0x80), ..QpRights::default() };
    assert!(hca.queue_pair_with(&ud, far).is_err());
    end.destroy();
    pair.close();
}

#[test]
fn many_groups_share_chains_and_all_can_be_left() {
    let pair = Pair::new(0x0002_c903_0013_0000);
    let hca = &pair.hosts[0].hca;
    let end = End::new(hca, Service::Ud);
    let group = |n: u8| {
        let mut group = [0; 16];
        group[0] = 0xff;
        // The hash of the model spreads little over these.
        (group[7], group[15]) = (n, n);
        group
    };
    // More groups than the table's hash reaches without chains.
    for n in 0..100 {
        hca.attach_multicast(end.qp.object(), &group(n), false).unwrap();
    }
    for n in (0..100).step_by(3).chain((0..100).filter(|n| n % 3 != 0)) {
        hca.detach_multicast(end.qp.object(), &group(n)).unwrap();
    }
    for n in 0..100 {
        assert!(hca.detach_multicast(end.qp.object(), &group(n)).is_err(), "{n}");
    }
    end.destroy();
    pair.close();
}

#[test]
fn two_queue_pairs_receive_from_one_shared_queue() {
    let pair = Pair::new(0x0002_c903_0014_0000);
    let hca = &pair.hosts[1].hca;
    let far = End::new(hca, Service::Rc);
    let srq = hca.shared_receive_queue(&far.pd, 16, 1).unwrap();
    let config = QueuePairConfig {
        service: Service::Rc,
        pd: &far.pd,
        uar: &far.uar,
        send_cq: &far.cq,
        receive_cq: &far.cq,
        send: SendSize { requests: 4, sges: 1, inline: 0 },
        receives: 0,
        receive_sges: 0,
        srq: Some(&srq),
    };
    let receivers = [hca.queue_pair(&config).unwrap(), hca.queue_pair(&config).unwrap()];
    let senders = [0, 1].map(|_| End::new(&pair.hosts[0].hca, Service::Rc));
    for (sender, receiver) in senders.iter().zip(&receivers) {
        sender.connect(pair.lids[1], receiver.number());
        common::end::connect(receiver, pair.lids[0], sender.qp.number());
    }
    srq.object().arm(4).unwrap();
    for (id, offset) in (0..8).zip((0..).step_by(64)) {
        srq.post(id, &[far.memory.piece(offset, 64)]).unwrap();
    }
    let mut ids = Vec::new();
    for round in 0..6 {
        let sender = &senders[round % 2];
        let request = common::end::request(1, Operation::Send, Data::Inline(&[b"hello"]));
        sender.qp.post_send(&[request]).unwrap();
        sent(sender, 1);
        let completion = far.completion();
        assert_eq!(completion.qpn, receivers[round % 2].number());
        ids.push(completion.wr_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
    let srqn = srq.object().number();
    pair.hosts[1].wait_for(mlx4::Event::Srq { srqn, limit: true });
    assert_eq!(srq.object().limit().unwrap(), 0);
    receivers.into_iter().for_each(|qp| qp.destroy().unwrap());
    srq.destroy().unwrap();
    far.destroy();
    senders.into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn send_queue_in_error_is_started_again() {
    let pair = Pair::new(0x0002_c903_0015_0000);
    let ends = [0, 1].map(|i: usize| End::new(&pair.hosts[i].hca, Service::Ud));
    ends.iter().for_each(|end| end.start_datagrams(QKEY));
    let [near, far] = &ends;
    let path = Path::local(1, pair.lids[1], 0);
    let av = pair.hosts[0].hca.address_vector(&near.pd, &path).unwrap();
    let to = Destination { av, qpn: far.qp.number(), qkey: QKEY };
    let bad = Sge { lkey: near.memory.region().lkey() ^ 1, ..near.memory.piece(0, 8) };
    near.qp.post_send(&[datagram(1, Data::Pieces(&[bad]), &to)]).unwrap();
    let completion = near.completion();
    assert!(matches!(completion.outcome, Completed::Failed { send: true, .. }), "{completion:?}");
    assert_eq!(near.qp.query().unwrap().state, QpState::SQER);
    // The driver took it to RTS, so it learns only now where it is.
    near.qp.modify(QpState::RTS, &Attributes::default()).unwrap();
    assert_eq!(near.qp.query().unwrap().state, QpState::RTS);
    near.qp.post_send(&[datagram(2, Data::Inline(&[b"again"]), &to)]).unwrap();
    sent(near, 2);
    ends.into_iter().for_each(End::destroy);
    pair.close();
}
