//! UD.

use mlx4_wire::U32;
use mlx4_wire::cmd::Opcode as Command;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::mcg::McgMember;
use mlx4_wire::ctx::qp::{QpMailbox, QpState, ServiceType};
use mlx4_wire::wqe::{DatagramSeg, Opcode};
use zerocopy::FromZeros;

use super::lab::{End, Lab};
use super::machine::{Buffer, PD, PORT};
use super::pattern;
use super::queues::{Done, QpConfig, Unit, ctrl, inline, part, units, whole};
use crate::fabric::packet::{Grh, Headers, Packet};

const QKEY: u32 = 0x1234_5678;

/// A UD queue pair in RTS.
pub(super) fn ud(lab: &Lab, machine: usize, config: QpConfig) -> End {
    let end = lab.end(machine, config);
    end.qp.to_rtr(lab.machine(&end), 0, lab.path(machine), 0);
    end.qp.to_rts(lab.machine(&end), 7);
    end
}

fn plain(lab: &Lab, machine: usize) -> End {
    ud(lab, machine, QpConfig::new(ServiceType::UD))
}

pub(super) fn to(lab: &Lab, end: &End) -> DatagramSeg {
    let mut segment = DatagramSeg::new_zeroed();
    segment.av.port.set_port(PORT);
    segment.av.port.set_pd(PD);
    segment.av.remote_lid = lab.path(end.machine).remote_lid;
    segment.remote_qpn.set_number(end.qp.qpn);
    segment.qkey = U32::new(QKEY);
    segment
}

fn wqe(segment: &DatagramSeg, data: Vec<Unit>) -> Vec<Unit> {
    [units(segment), data].concat()
}

fn sent() -> Done {
    Done::Good { opcode: Opcode::SEND.0, bytes: 0 }
}

/// Bytes received, the GRH's room included.
fn received(bytes: u32) -> Done {
    Done::Good { opcode: 1, bytes: bytes + 40 }
}

pub(super) fn receive_into(lab: &Lab, end: &End, bytes: u64) -> Buffer {
    let buffer = lab.machine(end).buffer(40 + bytes);
    end.qp.post_receive(lab.machine(end), &[whole(&buffer)]);
    buffer
}

#[test]
fn datagram_arrives_with_its_addresses() {
    let lab = Lab::new(2);
    let (a, b) = (plain(&lab, 0), plain(&lab, 1));
    let buffer = receive_into(&lab, &b, 2048);
    let data = lab.machine(&a).buffer(2048);
    lab.machine(&a).fill(&data, &pattern(2048, 1));
    let mut segment = to(&lab, &b);
    segment.av.traffic_class.set_sl(5);
    let mut head = ctrl(Opcode::SEND_IMM);
    head.immediate = U32::from_bytes([1, 2, 3, 4]);
    let list = [part(&data, 0, 1), part(&data, 1, 1999)].iter().flat_map(units).collect();
    a.qp.post(lab.machine(&a), head, &wqe(&segment, list));
    assert_eq!(a.sent(&lab), Done::Good { opcode: Opcode::SEND_IMM.0, bytes: 0 });
    let cqe = lab.cqe(1, &b.receive);
    assert_eq!((cqe.owner.opcode().0, cqe.byte_count.get()), (2, 2040));
    assert_eq!(cqe.immediate.to_bytes(), [1, 2, 3, 4]);
    assert_eq!((cqe.source.remote_qpn(), cqe.qp.qpn()), (a.qp.qpn, b.qp.qpn));
    assert_eq!((cqe.slid.get(), cqe.sl.sl()), (lab.machine(&a).port().lid(), 5));
    assert!(!cqe.source.grh());
    assert_eq!(lab.machine(&b).contents(&buffer)[40..2040], pattern(2048, 1)[..2000]);
}

#[test]
fn grh_is_in_the_first_forty_bytes() {
    let lab = Lab::new(2);
    let (a, b) = (plain(&lab, 0), plain(&lab, 1));
    let buffer = receive_into(&lab, &b, 100);
    let mut segment = to(&lab, &b);
    segment.av.source.set_grh(true);
    segment.av.hop_limit = 3;
    segment.av.traffic_class.set_traffic_class(0xab);
    segment.av.traffic_class.set_flow_label(0x1_2345);
    segment.av.remote_gid = lab.machine(&b).port().gid(0).unwrap();
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &wqe(&segment, inline(64, &pattern(70, 9))));
    assert_eq!(a.sent(&lab), sent());
    let cqe = lab.cqe(1, &b.receive);
    assert!(cqe.source.grh());
    let bytes = lab.machine(&b).contents(&buffer);
    // After the GRH: BTH, DETH, 70 bytes and two of padding, ICRC.
    assert_eq!(bytes[..8], [0x6a, 0xb1, 0x23, 0x45, 0, 12 + 8 + 72 + 4, 0x1b, 3]);
    assert_eq!(bytes[8..24], lab.machine(&a).port().gid(0).unwrap());
    assert_eq!(bytes[24..40], lab.machine(&b).port().gid(0).unwrap());
    assert_eq!(bytes[40..110], pattern(70, 9));
}

#[test]
fn wrong_keys_drop_datagrams_and_are_counted() {
    let lab = Lab::new(2);
    let (a, b) = (plain(&lab, 0), plain(&lab, 1));
    // Entry 1 of the P_Key table is empty.
    let other_partition = ud(&lab, 0, QpConfig { pkey_index: 1, ..QpConfig::new(ServiceType::UD) });
    receive_into(&lab, &b, 100);
    let mut segment = to(&lab, &b);
    other_partition.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &wqe(&segment, inline(64, b"partition")));
    assert_eq!(other_partition.sent(&lab), sent());
    segment.qkey = U32::new(QKEY + 1);
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &wqe(&segment, inline(64, b"key")));
    // With the top bit set, the queue pair's own Q_Key is sent.
    segment.qkey = U32::new(1 << 31);
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &wqe(&segment, inline(64, b"right")));
    assert_eq!([a.sent(&lab), a.sent(&lab)], [sent(), sent()]);
    assert_eq!(b.received(&lab), received(5));
    let port = lab.machine(&b).port();
    assert_eq!((port.p_key_violations.get(), port.q_key_violations.get()), (1, 1));
}

#[test]
fn datagram_without_a_fitting_buffer_is_dropped() {
    let lab = Lab::new(1);
    let (a, b) = (plain(&lab, 0), plain(&lab, 0));
    let machine = lab.machine(&a);
    let send = |bytes: usize| {
        let list = inline(64, &pattern(bytes, 0));
        a.qp.post(machine, ctrl(Opcode::SEND), &wqe(&to(&lab, &b), list));
        assert_eq!(a.sent(&lab), sent());
    };
    let dropped = || machine.hca.counters().dropped_datagrams.get();
    let before = dropped();
    send(10);
    receive_into(&lab, &b, 10);
    send(11);
    assert!(b.receive.peek(machine).is_none());
    send(10);
    assert_eq!(b.received(&lab), received(10));
    assert_eq!(dropped() - before, 2);
}

#[test]
fn bad_work_requests_stop_the_send_queue_until_it_is_resumed() {
    let lab = Lab::new(1);
    let (a, b) = (plain(&lab, 0), plain(&lab, 0));
    let machine = lab.machine(&a);
    let data = machine.buffer(5000);
    let mut wrong_pd = to(&lab, &b);
    wrong_pd.av.port.set_pd(PD + 1);
    let mut wrong_port = to(&lab, &b);
    wrong_port.av.port.set_port(2);
    let mut wrong_key = part(&data, 0, 100);
    wrong_key.lkey = U32::new(data.key + 1);
    let good = to(&lab, &b);
    let cases = [
        (wqe(&wrong_pd, units(&part(&data, 0, 4))), Syndrome::LOCAL_QP_OP_ERR),
        (wqe(&wrong_port, units(&part(&data, 0, 4))), Syndrome::LOCAL_QP_OP_ERR),
        (wqe(&good, units(&part(&data, 0, 4097))), Syndrome::LOCAL_LENGTH_ERR),
        (wqe(&good, units(&wrong_key)), Syndrome::LOCAL_PROT_ERR),
        (wqe(&good, units(&part(&data, 4990, 11))), Syndrome::LOCAL_PROT_ERR),
        (units(&good)[..2].to_vec(), Syndrome::LOCAL_QP_OP_ERR),
    ];
    for (list, syndrome) in cases {
        // Errors are reported even if success would not be.
        let mut silent = ctrl(Opcode::SEND);
        silent.flags.set_completion(mlx4_wire::wqe::Completion::ON_ERROR);
        a.qp.put(machine, silent, &list);
        a.qp.post(machine, silent, &wqe(&good, vec![]));
        assert_eq!(a.sent(&lab), Done::Failed(syndrome));
        assert_eq!(a.sent(&lab), Done::Failed(Syndrome::WR_FLUSH_ERR));
        assert_eq!(a.qp.state(), QpState::SQER);
        a.qp.transition(machine, Command::SQERR2RTS_QP, &QpMailbox::new_zeroed());
        lab.settle();
        assert!(a.send.peek(machine).is_none());
    }
    receive_into(&lab, &b, 4096);
    a.qp.post(machine, ctrl(Opcode::SEND), &wqe(&good, units(&part(&data, 0, 4096))));
    assert_eq!((a.sent(&lab), b.received(&lab)), (sent(), received(4096)));
}

#[test]
fn receiver_without_right_to_its_buffer_fails() {
    let lab = Lab::new(1);
    let (a, b) = (plain(&lab, 0), plain(&lab, 0));
    let machine = lab.machine(&a);
    let buffer = receive_into(&lab, &b, 100);
    machine.deregister(&buffer);
    a.qp.post(machine, ctrl(Opcode::SEND), &wqe(&to(&lab, &b), inline(64, b"x")));
    assert_eq!(a.sent(&lab), sent());
    assert_eq!(b.received(&lab), Done::Failed(Syndrome::LOCAL_PROT_ERR));
    assert_eq!(b.qp.state(), QpState::ERR);
}

const GROUP: [u8; 16] = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

#[test]
fn multicast_reaches_every_member_on_the_senders_hca() {
    let lab = Lab::new(1);
    let ends: Vec<_> = (0..3).map(|_| plain(&lab, 0)).collect();
    let machine = &lab.machines[0];
    let member = |end: &End| McgMember::new().with_qpn(end.qp.qpn);
    machine
        .set_group(&GROUP, &[member(&ends[0]).with_block_loopback(true), member(&ends[1]), member(&ends[2])]);
    for end in &ends {
        receive_into(&lab, end, 64);
    }
    let mut segment = to(&lab, &ends[0]);
    segment.av.remote_lid.set(0xc005);
    segment.remote_qpn.set_number(0xff_ffff);
    segment.av.source.set_grh(true);
    segment.av.remote_gid = GROUP;
    ends[0].qp.post(machine, ctrl(Opcode::SEND), &wqe(&segment, inline(64, b"to all")));
    assert_eq!(ends[0].sent(&lab), sent());
    assert_eq!([ends[1].received(&lab), ends[2].received(&lab)], [received(6); 2]);
    assert!(ends[0].receive.peek(machine).is_none());
    // A member that doesn't block loopback gets its own.
    ends[1].qp.post(machine, ctrl(Opcode::SEND), &wqe(&segment, inline(64, b"again")));
    receive_into(&lab, &ends[1], 64);
    assert_eq!([ends[0].received(&lab), ends[1].received(&lab)], [received(5); 2]);
}

#[test]
fn multicast_from_the_fabric_reaches_members_by_gid() {
    let lab = Lab::new(1);
    let end = plain(&lab, 0);
    let machine = &lab.machines[0];
    machine.set_group(&GROUP, &[McgMember::new().with_qpn(end.qp.qpn).with_block_loopback(true)]);
    receive_into(&lab, &end, 64);
    let grh = Grh { dgid: GROUP, ..Grh::default() };
    let headers = Headers {
        dlid: 0xc001,
        slid: 9,
        grh: Some(grh),
        pkey: 0x7fff,
        qkey: QKEY,
        dest_qp: 0xff_ffff,
        src_qp: end.qp.qpn,
        ..Headers::default()
    };
    let mut payload = *b"from afar";
    let payload = [vm_memory::VolatileSlice::from(&mut payload[..])];
    let arrive = |headers| {
        let packet = Packet { headers, payload: &payload };
        crate::hca::engine::receive_datagram(&machine.hca, PORT, &packet);
    };
    let before = machine.hca.counters().dropped_datagrams.get();
    arrive(Headers { grh: None, ..headers });
    arrive(Headers { grh: Some(Grh { dgid: [0xff; 16], ..grh }), ..headers });
    arrive(headers);
    assert_eq!(end.received(&lab), received(9));
    assert_eq!(machine.hca.counters().dropped_datagrams.get() - before, 1);
}
