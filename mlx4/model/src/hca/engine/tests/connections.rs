//! RC and UC when all goes well.

use mlx4_wire::U32;
use mlx4_wire::U64;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::doorbell::CqArmCommand;
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{AtomicSeg, Completion, DataSeg, Opcode, RemoteAddressSeg};
use zerocopy::FromZeros;

use super::lab::{End, Lab};
use super::machine::Buffer;
use super::pattern;
use super::queues::{Done, QpConfig, Unit, ctrl, inline, part, units, whole};
use crate::node::counters::{Counter, View};

pub(super) fn good(opcode: Opcode, bytes: u32) -> Done {
    Done::Good { opcode: opcode.0, bytes }
}

pub(super) fn remote(buffer: &Buffer, offset: u64) -> RemoteAddressSeg {
    let mut seg = RemoteAddressSeg::new_zeroed();
    seg.address = U64::new(buffer.va.wrapping_add(offset));
    seg.rkey = U32::new(buffer.key);
    seg
}

pub(super) fn one_sided(target: &RemoteAddressSeg, data: &[DataSeg]) -> Vec<Unit> {
    [units(target), data.iter().flat_map(units).collect()].concat()
}

pub(super) fn atomic(target: &RemoteAddressSeg, swap_add: u64, compare: u64, data: &DataSeg) -> Vec<Unit> {
    let mut seg = AtomicSeg::new_zeroed();
    seg.swap_add = U64::new(swap_add);
    seg.compare = U64::new(compare);
    [units(target), units(&seg), units(data)].concat()
}

#[test]
fn send_is_gathered_and_scattered() {
    for service in [ServiceType::RC, ServiceType::UC] {
        let (lab, a, b) = Lab::pair(service);
        let (from, to) = (lab.machine(&a).buffer(9000), lab.machine(&b).buffer(10_000));
        lab.machine(&a).fill(&from, &pattern(9000, 5));
        let scatter = [part(&to, 0, 1), part(&to, 1, 4094), part(&to, 5000, 0), part(&to, 4095, 5905)];
        b.qp.post_receive(lab.machine(&b), &scatter);
        let gather = [part(&from, 0, 4000), part(&from, 7, 0), part(&from, 4000, 5000)];
        let mut head = ctrl(Opcode::SEND_IMM);
        head.immediate = U32::from_bytes([9, 8, 7, 6]);
        let list: Vec<_> = gather.iter().flat_map(units).collect();
        a.qp.post(lab.machine(&a), head, &list);
        assert_eq!(a.sent(&lab), good(Opcode::SEND_IMM, 0), "{service:?}");
        let cqe = lab.cqe(1, &b.receive);
        assert_eq!((cqe.owner.opcode().0, cqe.byte_count.get()), (2, 9000));
        assert_eq!((cqe.immediate.to_bytes(), cqe.qp.qpn()), ([9, 8, 7, 6], b.qp.qpn));
        assert_eq!(lab.machine(&b).contents(&to)[..9000], pattern(9000, 5));
        assert_eq!(lab.machine(&b).contents(&to)[9000..], [0; 1000]);
    }
}

#[test]
fn inline_data_crosses_chunks() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let to = lab.machine(&b).buffer(400);
    for len in [0, 1, 28, 44, 45, 104, 105] {
        b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
        a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, &pattern(len, 2)));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        assert_eq!(b.received(&lab), Done::Good { opcode: 1, bytes: u32::try_from(len).unwrap() });
        assert_eq!(lab.machine(&b).contents(&to)[..len], pattern(len, 2));
    }
}

#[test]
fn write_places_data_and_tells_with_immediate_only() {
    for service in [ServiceType::RC, ServiceType::UC] {
        let (lab, a, b) = Lab::pair(service);
        let (from, to) = (lab.machine(&a).buffer(5000), lab.machine(&b).buffer(8000));
        lab.machine(&a).fill(&from, &pattern(5000, 6));
        let list = one_sided(&remote(&to, 1000), &[whole(&from)]);
        a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &list);
        assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
        assert_eq!(lab.machine(&b).contents(&to)[1000..6000], pattern(5000, 6));
        assert!(b.receive.peek(lab.machine(&b)).is_none());

        b.qp.post_receive(lab.machine(&b), &[]);
        let mut head = ctrl(Opcode::RDMA_WRITE_IMM);
        head.immediate = U32::from_bytes([1, 2, 3, 4]);
        a.qp.post(lab.machine(&a), head, &one_sided(&remote(&to, 0), &[part(&from, 10, 20)]));
        assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE_IMM, 0));
        let cqe = lab.cqe(1, &b.receive);
        assert_eq!((cqe.owner.opcode().0, cqe.byte_count.get()), (0, 20));
        assert_eq!(cqe.immediate.to_bytes(), [1, 2, 3, 4]);
    }
}

#[test]
fn read_fetches_data() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let (to, from) = (lab.machine(&a).buffer(5000), lab.machine(&b).buffer(8000));
    lab.machine(&b).fill(&from, &pattern(8000, 7));
    let list = one_sided(&remote(&from, 2000), &[part(&to, 0, 100), part(&to, 100, 4900)]);
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_READ), &list);
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_READ, 5000));
    assert_eq!(lab.machine(&a).contents(&to), pattern(8000, 7)[2000..7000]);
}

#[test]
fn requests_without_bytes_need_no_key() {
    let (lab, a, _b) = Lab::pair(ServiceType::RC);
    let nowhere = RemoteAddressSeg::new_zeroed();
    for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
        a.qp.post(lab.machine(&a), ctrl(opcode), &one_sided(&nowhere, &[]));
        assert_eq!(a.sent(&lab), good(opcode, 0));
    }
    a.qp.post(lab.machine(&a), ctrl(Opcode::NOP), &[]);
    assert_eq!(a.sent(&lab), good(Opcode::NOP, 0));
}

#[test]
fn atomics_work_on_host_order_and_return_what_was_there() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let (result, memory) = (lab.machine(&a).buffer(64), lab.machine(&b).buffer(64));
    let value = |lab: &Lab| {
        let bytes: [u8; 8] = lab.machine(&b).contents(&memory)[16..24].try_into().unwrap();
        u64::from_ne_bytes(bytes)
    };
    let run = |opcode, swap_add, compare| {
        let list = atomic(&remote(&memory, 16), swap_add, compare, &part(&result, 24, 8));
        a.qp.post(lab.machine(&a), ctrl(opcode), &list);
        assert_eq!(a.sent(&lab), good(opcode, 8));
        let bytes: [u8; 8] = lab.machine(&a).contents(&result)[24..32].try_into().unwrap();
        u64::from_ne_bytes(bytes)
    };
    assert_eq!(run(Opcode::ATOMIC_FA, 0x0102_0304_0506_0708, 0), 0);
    assert_eq!(run(Opcode::ATOMIC_FA, u64::MAX, 0), 0x0102_0304_0506_0708);
    assert_eq!(value(&lab), 0x0102_0304_0506_0707);
    assert_eq!(run(Opcode::ATOMIC_CS, 5, 6), 0x0102_0304_0506_0707);
    assert_eq!(run(Opcode::ATOMIC_CS, 5, 0x0102_0304_0506_0707), 0x0102_0304_0506_0707);
    assert_eq!(value(&lab), 5);
}

#[test]
fn long_messages_take_several_bursts() {
    const LEN: u64 = 1 << 22;
    for service in [ServiceType::RC, ServiceType::UC] {
        let (lab, a, b) = Lab::pair(service);
        let (from, to) = (lab.machine(&a).buffer(LEN), lab.machine(&b).buffer(LEN + 3));
        let data = pattern(usize::try_from(LEN).unwrap(), 8);
        lab.machine(&a).fill(&from, &data);
        b.qp.post_receive(lab.machine(&b), &[part(&to, 0, 333_333), part(&to, 333_333, LEN - 333_330)]);
        let gather: Vec<_> = [part(&from, 0, 7), part(&from, 7, LEN - 7)].iter().flat_map(units).collect();
        a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &gather);
        // One call is far from enough.
        lab.machine(&a).hca.run();
        assert!(a.send.peek(lab.machine(&a)).is_none() && b.receive.peek(lab.machine(&b)).is_none());
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        assert_eq!(b.received(&lab), Done::Good { opcode: 1, bytes: 1 << 22 });
        assert!(lab.machine(&b).contents(&to)[..data.len()] == data);
        if service == ServiceType::UC {
            continue;
        }
        lab.machine(&b).fill(&to, &vec![0; 1 << 22]);
        let list = one_sided(&remote(&to, 0), &[whole(&from)]);
        a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &list);
        assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
        assert!(lab.machine(&b).contents(&to)[..data.len()] == data);
        lab.machine(&a).fill(&from, &vec![0; 1 << 22]);
        a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_READ), &list);
        assert_eq!(a.sent(&lab), good(Opcode::RDMA_READ, 1 << 22));
        assert!(lab.machine(&a).contents(&from) == data);
    }
}

#[test]
fn owner_bit_is_followed_through_many_passes() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let to = lab.machine(&b).buffer(64);
    let mut index = 0u16;
    // More than the 16 bits of the counter: passes of 64 slots, 31 at a time behind one doorbell.
    for round in 0..2200u32 {
        for i in 0..31u32 {
            b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
            let mut head = ctrl(Opcode::SEND);
            if i != 30 {
                head.flags.set_completion(Completion::ON_ERROR);
            }
            a.qp.put(lab.machine(&a), head, &inline(16, &round.to_be_bytes()));
        }
        lab.machine(&a).ring(a.qp.qpn);
        index = index.wrapping_add(31);
        let cqe = lab.cqe(0, &a.send);
        assert_eq!(cqe.wqe_index.get(), index.wrapping_sub(1));
        for i in 0..31 {
            let cqe = lab.cqe(1, &b.receive);
            assert_eq!(cqe.wqe_index.get(), index.wrapping_sub(31).wrapping_add(i));
        }
        assert_eq!(lab.machine(&b).contents(&to)[..4], round.to_be_bytes());
        assert!(a.send.peek(lab.machine(&a)).is_none());
    }
}

#[test]
fn armed_queue_tells_of_solicited_completions() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let (m, to) = (lab.machine(&b), lab.machine(&b).buffer(64));
    let completions = |m: &super::machine::Machine| {
        let events = m.take_events();
        events.iter().filter(|event| **event == (EventType::COMPLETION, b.receive.cqn)).count()
    };
    let send = |solicited| {
        b.qp.post_receive(m, &[whole(&to)]);
        let mut head = ctrl(Opcode::SEND);
        head.flags.set_solicited(solicited);
        a.qp.post(lab.machine(&a), head, &inline(16, b"x"));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        completions(m)
    };
    assert_eq!(send(true), 0);
    b.received(&lab);
    b.receive.arm(m, CqArmCommand::SOLICITED);
    let interrupts = m.interrupts();
    assert_eq!([send(false), send(true), send(true)], [0, 1, 0]);
    assert_eq!(m.interrupts(), interrupts + 1);
    // Entries that are there already fire at once.
    b.receive.arm(m, CqArmCommand::NEXT);
    assert_eq!(completions(m), 1);
}

#[test]
fn first_packet_in_rtr_establishes_the_connection() {
    let lab = Lab::new(2);
    let config = QpConfig::new(ServiceType::RC);
    let (a, b) = (lab.end(0, config), lab.end(1, config));
    a.qp.to_rtr(lab.machine(&a), b.qp.qpn, lab.path(1), 0);
    b.qp.to_rtr(lab.machine(&b), a.qp.qpn, lab.path(0), 5);
    a.qp.to_rts(lab.machine(&a), 5);
    let to = lab.machine(&b).buffer(64);
    for _ in 0..2 {
        a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &one_sided(&remote(&to, 0), &[]));
        assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
    }
    let events = lab.machine(&b).take_events();
    assert_eq!(events, [(EventType::COMMUNICATION_ESTABLISHED, b.qp.qpn)]);
    assert_eq!(b.qp.state(), QpState::RTR);
    assert_eq!((a.qp.qp.query().next_send_psn.number(), b.qp.qp.query().msn.number()), (7, 2));
}

#[test]
fn connection_to_oneself_and_inside_an_hca() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let config = QpConfig::new(ServiceType::RC);
    let own = lab.end(0, config);
    own.qp.to_rtr(machine, own.qp.qpn, lab.path(0), 3);
    own.qp.to_rts(machine, 3);
    let (a, b) = lab.connect((0, config), (0, config));
    for (from, to) in [(&own, &own), (&a, &b)] {
        let buffer = machine.buffer(100);
        to.qp.post_receive(machine, &[whole(&buffer)]);
        from.qp.post(machine, ctrl(Opcode::SEND), &inline(16, b"hello"));
        assert_eq!(from.sent(&lab), good(Opcode::SEND, 0));
        assert_eq!(to.received(&lab), Done::Good { opcode: 1, bytes: 5 });
    }
}

/// What an end's port has counted: packets and words sent, packets and words received.
fn counters(lab: &Lab, end: &End) -> [u64; 4] {
    let counters = &lab.machine(end).port().counters;
    [Counter::XmitPkts, Counter::XmitData, Counter::RcvPkts, Counter::RcvData]
        .map(|counter| counters.get(View::Extended, counter))
}

/// Checks what a port has counted since. The subnet manager may have sent some more MADs, of 72 words, and got answers.
fn check_counters(now: [u64; 4], before: [u64; 4], expected: [u64; 4]) {
    let more = [0, 1, 2, 3].map(|i| now[i] - before[i] - expected[i]);
    assert_eq!([more[1], more[3]], [72 * more[0], 72 * more[2]]);
}

#[test]
fn packets_that_are_refused_or_not_answered_are_counted_too() {
    let check = |what: &str, work: &dyn Fn(&Lab, &End, &End), reliable_words: u64, naks: bool| {
        let (lab, a, b) = Lab::pair(ServiceType::RC);
        let before = [counters(&lab, &a), counters(&lab, &b)];
        work(&lab, &a, &b);
        let tries = match what {
            "no receive" => lab.machine(&b).hca.counters().rnr_naks.get(),
            "no answer" => lab.machine(&a).hca.counters().timeouts.get(),
            _ => 1,
        };
        assert_ne!(tries, 0, "{what}");
        let (packets, words) = (tries, tries * reliable_words);
        let back = if naks { [tries, 7 * tries] } else { [0, 0] };
        check_counters(counters(&lab, &a), before[0], [packets, words, back[0], back[1]]);
        check_counters(counters(&lab, &b), before[1], [back[0], back[1], packets, words]);
    };
    let send = |lab: &Lab, a: &End, expected: Syndrome| {
        a.qp.post(lab.machine(a), ctrl(Opcode::SEND), &inline(16, b"never"));
        assert_eq!(a.sent(lab), Done::Failed(expected));
    };
    check("no receive", &|lab, a, _| send(lab, a, Syndrome::RNR_RETRY_EXC_ERR), 8, true);
    let silent = |lab: &Lab, a: &End, b: &End| {
        b.qp.qp.error();
        send(lab, a, Syndrome::TRANSPORT_RETRY_EXC_ERR);
    };
    check("no answer", &silent, 8, false);
    let intrude = |lab: &Lab, a: &End, b: &End| {
        let (from, to) = (lab.machine(a).buffer(8), lab.machine(b).buffer(8));
        let mut there = remote(&to, 0);
        there.rkey = U32::new(there.rkey.get() ^ 1);
        a.qp.post(lab.machine(a), ctrl(Opcode::RDMA_WRITE), &one_sided(&there, &[whole(&from)]));
        assert_eq!(a.sent(lab), Done::Failed(Syndrome::REMOTE_ACCESS_ERR));
    };
    check("a wrong key", &intrude, 12, true);
}

#[test]
fn packets_are_counted_at_both_ports() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let (before_a, before_b) = (counters(&lab, &a), counters(&lab, &b));
    let (from, to) = (lab.machine(&a).buffer(2050), lab.machine(&b).buffer(2050));
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &one_sided(&remote(&to, 0), &[whole(&from)]));
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
    // Three packets of LRH, BTH and ICRC (6 words) with one RETH (4); the ACK has an AETH.
    let data = 3 * 6 + 4 + 513;
    check_counters(counters(&lab, &a), before_a, [3, data, 1, 7]);
    check_counters(counters(&lab, &b), before_b, [1, 7, 3, data]);
    assert_eq!(lab.machine(&b).hca.counters().payload_bytes.get(), 2050);
}

#[test]
fn path_with_grh_is_taken_where_both_ends_have_it() {
    let lab = Lab::new(2);
    let config = QpConfig::new(ServiceType::RC);
    let gid = |machine: usize| lab.machines[machine].port().gid(0).unwrap();
    let global = |to: usize, gid: [u8; 16]| {
        let mut path = lab.path(to);
        path.source.set_grh(true);
        path.remote_gid = gid;
        path
    };
    let lost = Done::Failed(mlx4_wire::cqe::Syndrome::TRANSPORT_RETRY_EXC_ERR);
    let cases = [
        (global(1, gid(1)), global(0, gid(0)), good(Opcode::RDMA_WRITE, 0)),
        (global(1, gid(1)), lab.path(0), lost),
        (lab.path(1), global(0, gid(0)), lost),
        (global(1, gid(0)), global(0, gid(0)), lost),
        (global(1, gid(1)), global(0, gid(1)), lost),
    ];
    for (there, back, expected) in cases {
        let (a, b) = (lab.end(0, config), lab.end(1, config));
        a.qp.to_rtr(lab.machine(&a), b.qp.qpn, there, 0);
        a.qp.to_rts(lab.machine(&a), 0);
        b.qp.to_rtr(lab.machine(&b), a.qp.qpn, back, 0);
        a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &[[0; 16]]);
        assert_eq!(a.sent(&lab), expected);
    }
}

#[test]
fn partition_is_not_checked_where_the_path_says_so() {
    let lab = Lab::new(2);
    let (config, other) =
        (QpConfig::new(ServiceType::RC), QpConfig { pkey_index: 1, ..QpConfig::new(ServiceType::RC) });
    let (a, b) = (lab.end(0, config), lab.end(1, other));
    let mut unchecked = lab.path(0);
    unchecked.pkey_check.set_disable(true);
    a.qp.to_rtr(lab.machine(&a), b.qp.qpn, lab.path(1), 0);
    a.qp.to_rts(lab.machine(&a), 0);
    b.qp.to_rtr(lab.machine(&b), a.qp.qpn, unchecked, 0);
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &[[0; 16]]);
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
}

#[test]
fn receive_queue_of_the_larger_stride_comes_first_in_the_buffer() {
    let lab = Lab::new(2);
    let config = QpConfig { strides: (6, 7), ..QpConfig::new(ServiceType::RC) };
    let (a, b) = lab.connect((0, config), (1, config));
    let to = lab.machine(&b).buffer(64);
    for round in 0..100u8 {
        // All eight entries that the stride has room for, without an end.
        b.qp.post_receive(lab.machine(&b), &[0; 8].map(|_| part(&to, 0, 4)));
        a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, &[round; 32]));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        assert_eq!(b.received(&lab), Done::Good { opcode: 1, bytes: 32 });
        assert_eq!(lab.machine(&b).contents(&to)[..4], [round; 4]);
    }
}
