//! Masked atomics, and what both ends check of all atomics.

use mlx4_wire::U64;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{DataSeg, MaskedAtomicSeg, Opcode, RemoteAddressSeg};

use super::connections::{atomic, good, one_sided, remote};
use super::lab::{End, Lab};
use super::machine::{ALL, Access, Buffer, PD};
use super::queues::{Done, QpConfig, TestCq, TestQp, Unit, ctrl, part, units};

fn rc() -> QpConfig {
    QpConfig::new(ServiceType::RC)
}

/// A masked compare and swap: values and masks.
fn masked_swap(
    target: &RemoteAddressSeg,
    (compare, compare_mask): (u64, u64),
    (swap, swap_mask): (u64, u64),
    data: &DataSeg,
) -> Vec<Unit> {
    let seg = MaskedAtomicSeg {
        swap: U64::new(swap),
        compare: U64::new(compare),
        swap_mask: U64::new(swap_mask),
        compare_mask: U64::new(compare_mask),
    };
    [units(target), units(&seg), units(data)].concat()
}

/// Executes an atomic; gives what it returned.
fn run(lab: &Lab, end: &End, opcode: Opcode, list: &[Unit], result: &Buffer) -> u64 {
    end.qp.post(lab.machine(end), ctrl(opcode), list);
    assert_eq!(end.sent(lab), good(opcode, 8));
    u64::from_ne_bytes(lab.machine(end).contents(result)[..8].try_into().unwrap())
}

#[test]
fn masked_atomics_change_what_their_masks_have_in_both_directions() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let (result, memory) = (lab.machine(from).buffer(8), lab.machine(to).buffer(8));
        let value = || u64::from_ne_bytes(lab.machine(to).contents(&memory).try_into().unwrap());
        let (target, data) = (remote(&memory, 0), part(&result, 0, 8));
        lab.machine(to).fill(&memory, &0x1122_3344_5566_7788u64.to_ne_bytes());
        // Compared are the lowest 16 bits, swapped the highest.
        let swap = |compare, new| {
            let list = masked_swap(&target, (compare, 0xffff), (new, 0xffff << 48), &data);
            run(&lab, from, Opcode::MASKED_ATOMIC_CS, &list, &result)
        };
        assert_eq!(swap(0xffff_7788, 0xaabb_ffff_ffff_ffff), 0x1122_3344_5566_7788);
        assert_eq!(value(), 0xaabb_3344_5566_7788);
        assert_eq!(swap(0x7789, 0), 0xaabb_3344_5566_7788);
        assert_eq!(value(), 0xaabb_3344_5566_7788);
        // Two fields of 32 bits: nothing is carried from one to the other.
        let add = |add, tops| {
            run(&lab, from, Opcode::MASKED_ATOMIC_FA, &atomic(&target, add, tops, &data), &result)
        };
        assert_eq!(add(0x0000_0001_ffff_ffff, 1 << 31), 0xaabb_3344_5566_7788);
        assert_eq!(value(), 0xaabb_3345_5566_7787);
        assert_eq!(add(0xffff_ffff, 0), 0xaabb_3345_5566_7787);
        assert_eq!(value(), 0xaabb_3346_5566_7786);
    }
}

/// What is to happen to a masked atomic at the other end: rights of the queue pair and the region, and how far
/// from an aligned address it is.
struct Case {
    queue_pair: bool,
    region: bool,
    offset: u64,
    syndrome: Syndrome,
    event: EventType,
}

#[test]
fn masked_atomics_need_the_rights_and_alignment_of_others() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let cases = [
        Case {
            queue_pair: false,
            region: true,
            offset: 0,
            syndrome: Syndrome::REMOTE_INVAL_REQ_ERR,
            event: EventType::WQ_INVALID_REQUEST,
        },
        Case {
            queue_pair: true,
            region: false,
            offset: 0,
            syndrome: Syndrome::REMOTE_ACCESS_ERR,
            event: EventType::WQ_ACCESS_ERROR,
        },
        Case {
            queue_pair: true,
            region: true,
            offset: 4,
            syndrome: Syndrome::REMOTE_INVAL_REQ_ERR,
            event: EventType::WQ_ACCESS_ERROR,
        },
        Case {
            queue_pair: true,
            region: true,
            offset: 64,
            syndrome: Syndrome::REMOTE_ACCESS_ERR,
            event: EventType::WQ_ACCESS_ERROR,
        },
    ];
    for case in &cases {
        let memory = far.register(64, Access { atomic: case.region, ..ALL }, PD);
        let data = part(&lab.machines[0].buffer(8), 0, 8);
        let target = remote(&memory, case.offset);
        let lists = [
            (Opcode::MASKED_ATOMIC_CS, masked_swap(&target, (0, 0), (1, 1), &data)),
            (Opcode::MASKED_ATOMIC_FA, atomic(&target, 1, 0, &data)),
        ];
        for (opcode, list) in lists {
            let rights = (true, true, case.queue_pair);
            let (a, b) = lab.connect((0, rc()), (1, QpConfig { rights, ..rc() }));
            far.take_events();
            a.qp.post(lab.machine(&a), ctrl(opcode), &list);
            assert_eq!(a.sent(&lab), Done::Failed(case.syndrome), "{opcode:?}");
            assert_eq!((b.qp.state(), far.take_events()), (QpState::ERR, vec![(case.event, b.qp.qpn)]));
        }
        assert_eq!(far.contents(&memory), [0; 64]);
    }
}

/// A new requester in the place of one that lost the answers: it sends again from an earlier PSN.
fn again(lab: &Lab, a: &End, b: &End, psn: u32) -> End {
    // Its number is the old one's, so that the other end's context needs no change.
    let machine = lab.machine(a);
    machine.running().qps.remove(a.qp.qpn);
    a.qp.qp.reset();
    let (send, receive) = (TestCq::new(machine, 6), TestCq::new(machine, 6));
    let qp = TestQp::with_number(machine, &send, &receive, rc(), a.qp.qpn);
    qp.to_rtr(machine, b.qp.qpn, lab.path(b.machine), 0);
    qp.to_rts(machine, psn);
    End { machine: a.machine, qp, send, receive }
}

#[test]
fn atomic_that_comes_again_gets_its_answer_again_and_is_not_executed_twice() {
    let lab = Lab::new(2);
    let (near, far) = (&lab.machines[0], &lab.machines[1]);
    let (a, b) = lab.connect((0, rc()), (1, QpConfig { log2_reads: (0, 1), ..rc() }));
    let psn = a.qp.qp.query().next_send_psn.number();
    let (result, memory) = (near.buffer(8), far.buffer(8));
    let add = |end: &End, n| {
        let list = atomic(&remote(&memory, 0), n, 0, &part(&result, 0, 8));
        run(&lab, end, Opcode::ATOMIC_FA, &list, &result)
    };
    // The PSNs wrap meanwhile.
    assert_eq!([1, 10, 100].map(|n| add(&a, n)), [0, 1, 11]);
    let value = || u64::from_ne_bytes(far.contents(&memory).try_into().unwrap());
    assert_eq!(value(), 111);
    let a = again(&lab, &a, &b, (psn + 1) & 0xff_ffff);
    assert_eq!([10, 100].map(|n| add(&a, n)), [1, 11]);
    assert_eq!(value(), 111);
    // What follows is new.
    assert_eq!((add(&a, 1000), value()), (111, 1111));
    // Only two are remembered; who asks for an older one hears nothing.
    let a = again(&lab, &a, &b, psn);
    let list = atomic(&remote(&memory, 0), 1, 0, &part(&result, 0, 8));
    a.qp.post(near, ctrl(Opcode::ATOMIC_FA), &list);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    assert_eq!((value(), b.qp.state()), (1111, QpState::RTS));
}

#[test]
fn more_reads_and_atomics_than_the_responder_has_resources_for_are_an_invalid_request() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let memory = far.buffer(64);
    let data = part(&lab.machines[0].buffer(8), 0, 8);
    let (read, add) = (one_sided(&remote(&memory, 0), &[data]), atomic(&remote(&memory, 8), 1, 0, &data));
    let requests = [(Opcode::RDMA_READ, &read), (Opcode::ATOMIC_FA, &add), (Opcode::RDMA_READ, &read)];
    // By log2 of what each end may have: how many of three that are posted at once are done.
    for (requester, responder, done) in [(2, 1, 2), (2, 0, 1), (0, 0, 3), (1, 2, 3), (4, 2, 3)] {
        let config = |log2_reads| QpConfig { log2_reads, ..rc() };
        let (a, b) = lab.connect((0, config((requester, 0))), (1, config((0, responder))));
        far.take_events();
        for (opcode, list) in requests {
            a.qp.put(lab.machine(&a), ctrl(opcode), list);
        }
        lab.machine(&a).ring(a.qp.qpn);
        for (opcode, _) in &requests[..done] {
            assert_eq!(a.sent(&lab), good(*opcode, 8));
        }
        if done < 3 {
            assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_INVAL_REQ_ERR));
            let events = far.take_events();
            assert_eq!((b.qp.state(), events), (QpState::ERR, vec![(EventType::WQ_ACCESS_ERROR, b.qp.qpn)]));
        }
    }
    // One after the other, or fenced, they are never too many.
    let (a, _b) = lab
        .connect((0, QpConfig { log2_reads: (2, 0), ..rc() }), (1, QpConfig { log2_reads: (0, 0), ..rc() }));
    for (opcode, list) in requests {
        a.qp.post(lab.machine(&a), ctrl(opcode), list);
        assert_eq!(a.sent(&lab), good(opcode, 8));
    }
    for (opcode, list) in requests {
        let mut head = ctrl(opcode);
        head.size.set_fence(true);
        head.size.set_units(u32::try_from(list.len() + 1).unwrap());
        a.qp.put(lab.machine(&a), head, list);
    }
    lab.machine(&a).ring(a.qp.qpn);
    for (opcode, _) in requests {
        assert_eq!(a.sent(&lab), good(opcode, 8));
    }
}
