//! Large sends (LSO) of UD.

use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::wqe::{CtrlSeg, DatagramSeg, LsoHeader, Opcode};

use super::connections::good;
use super::datagrams::{receive_into, to, ud};
use super::lab::{End, Lab};
use super::machine::Buffer;
use super::pattern;
use super::queues::{Done, QpConfig, Unit, ctrl, inline, part, units};

/// A queue pair whose largest message is a large send's.
fn large() -> QpConfig {
    QpConfig { log2_max_message: 17, ..QpConfig::new(ServiceType::UD) }
}

/// The LSO segment of a header, in units.
fn lso(header: &[u8], segment_size: u16) -> Vec<Unit> {
    let first = LsoHeader::new()
        .with_segment_size(segment_size)
        .with_header_bytes(u16::try_from(header.len()).unwrap());
    let mut bytes = [&first.into_bits().to_bytes()[..], header].concat();
    bytes.resize(bytes.len().next_multiple_of(16), 0xee);
    bytes.chunks_exact(16).map(|unit| unit.try_into().unwrap()).collect()
}

fn wqe(segment: &DatagramSeg, lso: Vec<Unit>, data: &[Unit]) -> Vec<Unit> {
    [units(segment), lso, data.to_vec()].concat()
}

fn head() -> CtrlSeg {
    ctrl(Opcode::LSO)
}

fn long_head() -> CtrlSeg {
    let mut head = head();
    head.opcode.set_large_header(true);
    head
}

/// What a packet brought, without the room for a GRH.
fn packet(lab: &Lab, end: &End, buffer: &Buffer) -> Vec<u8> {
    match end.received(lab) {
        Done::Good { opcode: 1, bytes } => {
            lab.machine(end).contents(buffer)[40..usize::try_from(bytes).unwrap()].to_vec()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn payload_goes_out_in_packets_behind_copies_of_the_header() {
    let lab = Lab::new(2);
    let (a, b) = (ud(&lab, 0, large()), ud(&lab, 1, large()));
    let data = lab.machine(&a).buffer(2500);
    lab.machine(&a).fill(&data, &pattern(2500, 3));
    let list: Vec<Unit> = [part(&data, 0, 999), part(&data, 999, 1501)].iter().flat_map(units).collect();
    // A header inside its chunk, and one that is longer.
    for (head, header) in [(head(), pattern(60, 9)), (long_head(), pattern(100, 8))] {
        let buffers = [0; 3].map(|_| receive_into(&lab, &b, 2048));
        a.qp.post(lab.machine(&a), head, &wqe(&to(&lab, &b), lso(&header, 1000), &list));
        assert_eq!(a.sent(&lab), good(Opcode::LSO, 0));
        for (buffer, part) in buffers.iter().zip(pattern(2500, 3).chunks(1000)) {
            assert_eq!(packet(&lab, &b, buffer), [&header[..], part].concat());
        }
    }
    assert!(a.send.peek(lab.machine(&a)).is_none() && b.receive.peek(lab.machine(&b)).is_none());
    // Each packet has a PSN, and one that fits is one packet; so is a payload without bytes.
    assert_eq!(a.qp.qp.query().next_send_psn.number(), 7 + 6);
    for bytes in [1000, 0] {
        let buffer = receive_into(&lab, &b, 2048);
        let list = inline(80, &pattern(bytes, 1)[..bytes.min(40)]);
        a.qp.post(lab.machine(&a), head(), &wqe(&to(&lab, &b), lso(b"head", 1000), &list));
        assert_eq!(a.sent(&lab), good(Opcode::LSO, 0));
        let expected = [b"head", &pattern(bytes, 1)[..bytes.min(40)]].concat();
        assert_eq!(packet(&lab, &b, &buffer), expected);
    }
}

/// IP over InfiniBand: EtherType, reserved bytes, IPv4 or IPv6 without options, TCP with FIN, PSH, ACK and CWR.
fn tcp_header(version: u8) -> Vec<u8> {
    let ip = match version {
        4 => [&[0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, 6, 0, 0][..], &[10, 0, 0, 1, 10, 0, 0, 2]].concat(),
        _ => [&[0x60, 0, 0, 0, 0, 0, 6, 64][..], &pattern(32, 1)].concat(),
    };
    let ether = if version == 4 { [0x08, 0, 0, 0] } else { [0x86, 0xdd, 0, 0] };
    let tcp = [0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0, 1, 2, 3, 4, 0x50, 0x99, 0x10, 0, 0, 0, 0, 0];
    [&ether[..], &ip, &tcp].concat()
}

/// The sum over 16-bit words, as the standard has it: all ones if a checksum in it is right.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

#[test]
fn tcp_segments_are_right_packet_by_packet() {
    let lab = Lab::new(2);
    let (a, b) = (ud(&lab, 0, large()), ud(&lab, 1, large()));
    let data = lab.machine(&a).buffer(2501);
    lab.machine(&a).fill(&data, &pattern(2501, 3));
    let mut head = long_head();
    head.flags.set_ip_checksum(true);
    head.flags.set_l4_checksum(true);
    for (version, ip_bytes, addresses) in [(4, 20, 12..20), (6, 40, 8..40)] {
        let buffers = [0; 3].map(|_| receive_into(&lab, &b, 2048));
        let list = units(&part(&data, 0, 2501));
        a.qp.post(lab.machine(&a), head, &wqe(&to(&lab, &b), lso(&tcp_header(version), 1000), &list));
        assert_eq!(a.sent(&lab), good(Opcode::LSO, 0));
        for (i, (buffer, part)) in buffers.iter().zip(pattern(2501, 3).chunks(1000)).enumerate() {
            let got = packet(&lab, &b, buffer);
            let (ip, tcp) = got[4..].split_at(ip_bytes);
            assert_eq!((&got[..4], &tcp[20..]), (&tcp_header(version)[..4], part));
            let length = u16::from_be_bytes(if version == 4 { [ip[2], ip[3]] } else { [ip[4], ip[5]] });
            let counted = if version == 4 { got.len() - 4 } else { tcp.len() };
            assert_eq!(usize::from(length), counted);
            if version == 4 {
                let id = u16::from_be_bytes([ip[4], ip[5]]);
                assert_eq!((sum(ip), id), (0xffff, 0xffffu16.wrapping_add(u16::try_from(i).unwrap())));
            }
            let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
            assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(1000 * u32::try_from(i).unwrap()));
            assert_eq!(tcp[13], [0x90, 0x10, 0x19][i]);
            let pseudo =
                [&ip[addresses.clone()], &[0, 6], &u16::try_from(tcp.len()).unwrap().to_be_bytes()].concat();
            assert_eq!(sum(&[&pseudo[..], tcp].concat()), 0xffff);
        }
    }
}

#[test]
fn large_send_that_does_not_fit_is_refused() {
    let lab = Lab::new(2);
    let b = ud(&lab, 1, large());
    let data = lab.machines[0].buffer(140_000);
    let list = |bytes| units(&part(&data, 0, bytes));
    let mut not_there = part(&data, 0, 100);
    not_there.lkey.set(0x100);
    let long = pattern(100, 1);
    let cases = [
        (head(), lso(b"head", 4093), list(5000), Syndrome::LOCAL_LENGTH_ERR),
        (head(), lso(b"head", 4000), list((1 << 17) + 1), Syndrome::LOCAL_LENGTH_ERR),
        (head(), lso(b"head", 0), list(100), Syndrome::LOCAL_QP_OP_ERR),
        (head(), lso(b"", 1000), list(100), Syndrome::LOCAL_QP_OP_ERR),
        (head(), lso(&long, 1000), list(100), Syndrome::LOCAL_QP_OP_ERR),
        (long_head(), lso(&long, 1000)[..2].to_vec(), vec![], Syndrome::LOCAL_QP_OP_ERR),
        (head(), lso(b"head", 1000), units(&not_there), Syndrome::LOCAL_PROT_ERR),
    ];
    for (head, header, list, syndrome) in cases {
        let a = ud(&lab, 0, large());
        a.qp.post(lab.machine(&a), head, &wqe(&to(&lab, &b), header, &list));
        assert_eq!((a.sent(&lab), a.qp.state()), (Done::Failed(syndrome), QpState::SQER));
    }
    let (a, _c) = lab.connect((0, QpConfig::new(ServiceType::RC)), (1, QpConfig::new(ServiceType::RC)));
    a.qp.post(lab.machine(&a), head(), &wqe(&to(&lab, &b), lso(b"head", 1000), &list(100)));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::LOCAL_QP_OP_ERR));
}

#[test]
fn large_send_of_many_packets_takes_several_bursts() {
    let lab = Lab::new(2);
    let (a, b) = (ud(&lab, 0, large()), ud(&lab, 1, large()));
    let data = lab.machine(&a).buffer(16384);
    let before = lab.machine(&b).hca.counters().dropped_datagrams.get();
    a.qp.post(lab.machine(&a), head(), &wqe(&to(&lab, &b), lso(b"head", 16), &units(&part(&data, 0, 16384))));
    lab.machine(&a).hca.run();
    assert!(a.send.peek(lab.machine(&a)).is_none());
    assert_eq!(a.sent(&lab), good(Opcode::LSO, 0));
    // Nobody has posted a buffer.
    assert_eq!(lab.machine(&b).hca.counters().dropped_datagrams.get() - before, 1024);
}
