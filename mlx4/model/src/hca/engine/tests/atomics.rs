//! Masked atomics, and what both ends check of all atomics.

use mlx4_wire::U64;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{DataSeg, MaskedAtomicSeg, Opcode, RemoteAddressSeg};

use super::connections::{atomic, good, remote};
use super::lab::{End, Lab};
use super::machine::{ALL, Access, Buffer, PD};
use super::queues::{Done, QpConfig, Unit, ctrl, part, units};

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
