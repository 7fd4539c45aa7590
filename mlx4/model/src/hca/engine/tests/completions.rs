//! Completion queues: entries of 64 bytes, moderation, resizing, and failure.

use std::time::{Duration, Instant};

use mlx4_wire::cqe::{CQE_FILL, Cqe, CqeOpcode};
use mlx4_wire::ctx::cq::{CqContext, CqStatus};
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::doorbell::CqArmCommand;
use mlx4_wire::eqe::{CqErrorEvent, CqErrorSyndrome, EventType};
use mlx4_wire::wqe::Opcode;
use mlx4_wire::{Number24, U16};
use zerocopy::FromZeros;

use super::connections::good;
use super::lab::{End, Lab};
use super::machine::Machine;
use super::queues::{Done, NOWHERE, QpConfig, TestCq, TestQp, ctrl, inline, whole};
use crate::hca::cq::{Cq, CqFailed};

fn moderate(cq: &Cq, machine: &Machine, period: u16, count: u16) {
    let mut request = CqContext::new_zeroed();
    (request.period, request.max_count) = (U16::new(period), U16::new(count));
    cq.set_moderation(&machine.burst(), &request);
}

/// Completion events of a queue that have come.
fn events(machine: &Machine, cq: &TestCq) -> usize {
    machine.take_events().into_iter().filter(|event| *event == (EventType::COMPLETION, cq.cqn)).count()
}

fn push(machine: &Machine, cq: &TestCq) -> bool {
    cq.cq(machine).push(&machine.burst(), &Cqe::new_zeroed(), false).unwrap()
}

#[test]
fn entries_of_64_bytes_hold_theirs_in_the_upper_half() {
    let lab = Lab::with_ports(2, 1, true);
    let config = QpConfig::new(ServiceType::RC);
    let (a, b) = lab.connect((0, config), (1, config));
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    b.receive.arm(far, CqArmCommand::NEXT);
    far.take_events();
    let to = far.buffer(64);
    // More than the queue holds: the owner bit turns.
    for _ in 0..100 {
        b.qp.post_receive(far, &[whole(&to)]);
        a.qp.post(near, ctrl(Opcode::SEND), &inline(16, b"half"));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        assert_eq!(b.received(&lab), Done::Good { opcode: 1, bytes: 4 });
    }
    assert_eq!(events(far, &b.receive), 1);
    let lower: Vec<u8> =
        b.receive.bytes(far).chunks_exact(64).flat_map(|entry| entry[..32].to_vec()).collect();
    assert!(lower.iter().all(|byte| *byte == CQE_FILL));
}

/// Indices count modulo 2^24: a solicited entry that was read long ago must not look as if it were to come.
#[test]
fn solicited_entry_of_long_ago_is_not_taken_for_an_unread_one() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let queue = TestCq::new(machine, 6);
    queue.cq(machine).push(&machine.burst(), &Cqe::new_zeroed(), true).unwrap();
    queue.poll(machine).unwrap();
    for _ in 0..3 {
        queue.skip(machine, 5 << 20);
        push(machine, &queue);
        queue.poll(machine).unwrap();
        queue.arm(machine, CqArmCommand::SOLICITED);
        assert_eq!(events(machine, &queue), 0);
    }
    queue.cq(machine).push(&machine.burst(), &Cqe::new_zeroed(), true).unwrap();
    assert_eq!(events(machine, &queue), 1);
    queue.arm(machine, CqArmCommand::SOLICITED);
    assert_eq!(events(machine, &queue), 1, "it is still unread");
}

/// The consumer of a ring of two goes on reading, and requests go on completing, before its doorbell is here.
#[test]
fn doorbell_that_comes_late_finds_entries_that_came_since() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let queue = TestCq::new(machine, 1);
    for _ in 0..2 {
        push(machine, &queue);
    }
    machine.take_events();
    let doorbell = queue.request(machine, CqArmCommand::NEXT);
    queue.poll(machine).unwrap();
    push(machine, &queue);
    queue.ring(machine, doorbell);
    assert_eq!(events(machine, &queue), 1);
}

#[test]
fn moderated_event_waits_for_the_count_or_the_period() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let queue = TestCq::new(machine, 6);
    let (cq, burst) = (queue.cq(machine), machine.burst());
    moderate(&cq, machine, 50_000, 3);
    queue.arm(machine, CqArmCommand::NEXT);
    // The first starts the period, the third is enough.
    assert_eq!(
        [0; 3].map(|_| (push(machine, &queue), events(machine, &queue))),
        [(true, 0), (false, 0), (false, 1)]
    );
    // Not armed: nothing waits, and nothing is told.
    assert_eq!((push(machine, &queue), events(machine, &queue)), (false, 0));
    assert_eq!(cq.serve(&burst, Instant::now() + Duration::from_secs(1)), None);
    while queue.poll(machine).is_some() {}
    queue.arm(machine, CqArmCommand::NEXT);
    let before = Instant::now();
    assert!(push(machine, &queue));
    let due = cq.serve(&burst, before).unwrap();
    assert!(due >= before + Duration::from_millis(50));
    assert_eq!(events(machine, &queue), 0);
    assert_eq!((cq.serve(&burst, due), events(machine, &queue)), (None, 1));
    assert_eq!((cq.serve(&burst, due), events(machine, &queue)), (None, 0));
    assert_eq!(cq.context().last_notified_index, Number24::wrapping(5));
}

#[test]
fn event_that_is_held_back_goes_out_when_moderation_ends() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let queue = TestCq::new(machine, 6);
    let cq = queue.cq(machine);
    // Without a period or a count there is no moderation.
    for (period, count) in [(0, 9), (9, 0), (9, 1)] {
        moderate(&cq, machine, period, count);
        queue.arm(machine, CqArmCommand::NEXT);
        push(machine, &queue);
        assert_eq!((queue.poll(machine).is_some(), events(machine, &queue)), (true, 1));
    }
    moderate(&cq, machine, 60_000, 100);
    queue.arm(machine, CqArmCommand::SOLICITED);
    assert!(!push(machine, &queue));
    assert!(cq.push(&machine.burst(), &Cqe::new_zeroed(), true).unwrap());
    assert_eq!(events(machine, &queue), 0);
    moderate(&cq, machine, 0, 0);
    assert_eq!(events(machine, &queue), 1);
}

#[test]
fn engine_keeps_the_period_also_for_entries_from_before_the_arming() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let a = lab.end(0, QpConfig::new(ServiceType::RC));
    a.qp.to_rtr(machine, 1, lab.path(0), 0);
    a.qp.to_rts(machine, 0);
    moderate(&a.send.cq(machine), machine, 1000, 100);
    let told = |what| {
        let mut count = 0;
        lab.until(what, || {
            count += events(machine, &a.send);
            count != 0
        });
        assert_eq!(count, 1);
    };
    a.send.arm(machine, CqArmCommand::NEXT);
    a.qp.post(machine, ctrl(Opcode::NOP), &[]);
    told("the event of an armed queue");
    a.qp.post(machine, ctrl(Opcode::NOP), &[]);
    lab.settle();
    a.send.arm(machine, CqArmCommand::NEXT);
    told("the event of entries that were there");
}

#[test]
fn period_wakes_a_sleeping_engine() {
    let (lab, a, _b) = Lab::pair(ServiceType::RC);
    let machine = lab.machine(&a);
    moderate(&a.send.cq(machine), machine, 2000, 100);
    a.send.arm(machine, CqArmCommand::NEXT);
    let _threads = [0, 1].map(|i| lab.machines[i].hca.start_engine_spinning(Duration::ZERO).unwrap());
    a.qp.post(machine, ctrl(Opcode::NOP), &[]);
    let start = Instant::now();
    while events(machine, &a.send) == 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

/// A new ring for a queue, and the request that moves it there.
fn new_ring(machine: &Machine, log2: u8) -> (u64, CqContext) {
    let pages = (machine.entry_bytes << log2).div_ceil(4096);
    let ring = machine.pages(pages);
    let mut request = CqContext::new_zeroed();
    request.size.set_log2_entries(log2);
    request.pages = machine.ring_pages(ring, pages);
    (ring, request)
}

#[test]
fn resized_queue_ends_its_old_ring_with_one_marker_and_goes_on_behind_it() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    for (before, log2) in [(0, 6), (3, 6), (5, 3), (13, 2)] {
        let old = TestCq::new(machine, 3);
        let cq = old.cq(machine);
        for _ in 0..before {
            push(machine, &old);
            old.poll(machine).unwrap();
        }
        push(machine, &old);
        let (ring, request) = new_ring(machine, log2);
        cq.resize(&machine.burst(), &machine.running(), &request).unwrap();
        let kept = old.bytes(machine);
        assert_eq!(old.poll(machine).unwrap().opcode(), CqeOpcode(0));
        assert_eq!(old.poll(machine).unwrap().opcode(), CqeOpcode::RESIZE);
        assert!(old.peek(machine).is_none());
        let new = old.moved(ring, log2, before + 2);
        // Whatever pass the index is in, none of the entries to come looks like one that is there.
        for ahead in 0..1 << log2 {
            assert!(old.moved(ring, log2, before + 2 + ahead).peek(machine).is_none());
        }
        // The index goes on, and the owner bit is that of the new ring's passes.
        for _ in 0..20 {
            push(machine, &new);
            assert_eq!(new.poll(machine).unwrap().opcode(), CqeOpcode(0));
            assert!(new.peek(machine).is_none());
        }
        assert_eq!(old.bytes(machine), kept);
        assert_eq!(cq.context().size.log2_entries(), log2);
    }
}

/// Completions don't wait until a large ring is made ready.
#[test]
fn entries_that_come_during_a_resize_are_in_the_old_ring_or_the_new() {
    const LOG2: u8 = 15;
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    for rounds in [0, 1, 40, 3000] {
        let mut queue = TestCq::new(machine, 4);
        let (ring, request) = new_ring(machine, LOG2);
        let mut numbers = (0..=u16::MAX).cycle();
        let mut next = |queue: &TestCq| {
            let mut cqe = Cqe::new_zeroed();
            cqe.wqe_index = U16::new(numbers.next().unwrap());
            queue.cq(machine).push(&machine.burst(), &cqe, false).unwrap();
            cqe.wqe_index
        };
        for _ in 0..rounds {
            let number = next(&queue);
            assert_eq!(queue.poll(machine).unwrap().wqe_index, number);
        }
        let (hca, cq) = (machine.hca.clone(), queue.cq(machine));
        let resizing = std::thread::spawn(move || {
            let (burst, running) = hca.enter().unwrap();
            cq.resize(&burst, &running, &request).unwrap();
        });
        let mut consumed = rounds;
        let mut left = 100;
        let mut moved = false;
        while left != 0 {
            left -= u32::from(moved);
            let number = next(&queue);
            let mut cqe = queue.poll(machine).unwrap();
            consumed += 1;
            if cqe.opcode() == CqeOpcode::RESIZE {
                assert!(!moved);
                moved = true;
                queue = queue.moved(ring, LOG2, consumed);
                cqe = queue.poll(machine).unwrap();
                consumed += 1;
            }
            assert_eq!(cqe.wqe_index, number);
        }
        resizing.join().unwrap();
        for ahead in 0..1 << LOG2 {
            assert!(queue.moved(ring, LOG2, consumed + ahead).peek(machine).is_none(), "{ahead}");
        }
    }
}

#[test]
fn resizing_that_finds_no_room_for_the_marker_changes_nothing() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let queue = TestCq::new(machine, 2);
    for _ in 0..4 {
        push(machine, &queue);
    }
    let (_, request) = new_ring(machine, 4);
    let resize = || queue.cq(machine).resize(&machine.burst(), &machine.running(), &request);
    assert_eq!(resize(), Err(mlx4_wire::cmd::Status::BAD_RES_STATE));
    queue.poll(machine).unwrap();
    push(machine, &queue);
    assert_eq!((0..4).filter(|_| queue.poll(machine).is_some()).count(), 4);
    assert_eq!(resize(), Ok(()));
}

#[test]
fn queue_that_overruns_or_cannot_be_written_says_so_in_its_context_and_event() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let full = TestCq::new(machine, 1);
    push(machine, &full);
    push(machine, &full);
    let lost = TestCq::with_ring(machine, 1, NOWHERE);
    let cases = [
        (&full, CqErrorSyndrome::OVERRUN, CqStatus::OVERFLOW),
        (&lost, CqErrorSyndrome::ACCESS_VIOLATION, CqStatus::WRITE_FAILURE),
    ];
    for (cq, syndrome, status) in cases {
        let receive = TestCq::new(machine, 2);
        let qp = TestQp::new(machine, cq, &receive, QpConfig::new(ServiceType::RC));
        qp.to_rtr(machine, 1, lab.path(0), 0);
        qp.to_rts(machine, 0);
        machine.take_events();
        qp.post(machine, ctrl(Opcode::NOP), &[]);
        lab.settle();
        assert_eq!(qp.state(), QpState::ERR);
        let eqes = machine.take_eqes();
        let types: Vec<_> = eqes.iter().map(mlx4_wire::eqe::Eqe::event_type).collect();
        assert_eq!(types, [EventType::CQ_ERROR, EventType::WQ_CATASTROPHIC]);
        let error = CqErrorEvent::from(eqes[0].data);
        assert_eq!((error.cqn.number(), error.syndrome()), (cq.cqn, syndrome));
        assert_eq!(cq.cq(machine).context().flags.status(), status);
        let again = cq.cq(machine).push(&machine.burst(), &Cqe::new_zeroed(), false);
        assert_eq!(again, Err(CqFailed { first: None }));
    }
}

/// What happens to a message whose receiver has no room for its completion.
#[test]
fn overrun_at_the_receiver_ends_the_receiver() {
    let lab = Lab::new(2);
    let (near, far) = (&lab.machines[0], &lab.machines[1]);
    let config = QpConfig::new(ServiceType::RC);
    let a = lab.end(0, config);
    let (send, receive) = (TestCq::new(far, 4), TestCq::new(far, 1));
    let qp = TestQp::new(far, &send, &receive, config);
    let b = End { machine: 1, qp, send, receive };
    lab.join(&a, &b);
    for _ in 0..3 {
        b.qp.post_receive(far, &[]);
        a.qp.post(near, ctrl(Opcode::SEND), &[]);
        lab.settle();
    }
    assert_eq!((a.qp.state(), b.qp.state()), (QpState::RTS, QpState::ERR));
    let types: Vec<_> = far.take_events().into_iter().map(|event| event.0).collect();
    assert_eq!(types, [EventType::CQ_ERROR, EventType::WQ_CATASTROPHIC]);
    a.qp.post(near, ctrl(Opcode::SEND), &[]);
    let last = [(); 4].map(|()| a.sent(&lab))[3];
    assert_eq!(last, Done::Failed(mlx4_wire::cqe::Syndrome::TRANSPORT_RETRY_EXC_ERR));
}
