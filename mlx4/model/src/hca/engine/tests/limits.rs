//! Full queues, queues that can't be reached, threads, and fairness.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mlx4_wire::Number24;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::Opcode;

use super::connections::{good, one_sided, remote};
use super::lab::{End, Lab};
use super::queues::{Done, QpConfig, TestCq, TestQp, ctrl, inline, units, whole};

#[test]
fn overrun_of_a_completion_queue_ends_its_queue_pairs() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let (small, receive) = (TestCq::new(machine, 2), TestCq::new(machine, 4));
    let qp = TestQp::new(machine, &small, &receive, QpConfig::new(ServiceType::RC));
    qp.to_rtr(machine, 1, lab.path(0), 0);
    qp.to_rts(machine, 0);
    // The consumer's index is looked at when the queue seems full.
    for _ in 0..4 {
        qp.post(machine, ctrl(Opcode::NOP), &[]);
    }
    lab.settle();
    machine.store(small.record, &Number24::wrapping(4));
    for _ in 0..5 {
        qp.post(machine, ctrl(Opcode::NOP), &[]);
    }
    machine.take_events();
    lab.settle();
    assert_eq!(qp.state(), QpState::ERR);
    let events = machine.take_events();
    assert_eq!(events, [(EventType::CQ_ERROR, small.cqn), (EventType::WQ_CATASTROPHIC, qp.qpn)]);
    assert_eq!(machine.hca.counters().cq_overruns.get(), 1);
    // The queue stays dead, and takes further users with it.
    let other = TestQp::new(machine, &small, &receive, QpConfig::new(ServiceType::RC));
    other.to_rtr(machine, 1, lab.path(0), 0);
    other.to_rts(machine, 0);
    other.post(machine, ctrl(Opcode::NOP), &[]);
    lab.settle();
    assert_eq!(machine.take_events(), [(EventType::WQ_CATASTROPHIC, other.qpn)]);
}

#[test]
fn memory_that_is_taken_away_is_not_touched() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let (near, to) = (lab.machine(&a), lab.machine(&b).buffer(64));
    let refused = near.refused();
    // The driver has put an absent entry where the buffer was.
    lab.machine(&b).forget_pages(&to);
    let data = near.buffer(64);
    a.qp.post(near, ctrl(Opcode::RDMA_WRITE), &one_sided(&remote(&to, 0), &[whole(&data)]));
    assert_eq!(a.sent(&lab), Done::Failed(mlx4_wire::cqe::Syndrome::REMOTE_ACCESS_ERR));
    assert_eq!((near.refused(), lab.machine(&b).refused()), (refused, 0));
}

#[test]
fn busy_queue_pair_leaves_room_for_others() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let config = QpConfig::new(ServiceType::RC);
    let ((a, b), (c, _d)) = (lab.connect((0, config), (0, config)), lab.connect((0, config), (0, config)));
    let (from, to) = (machine.buffer(8 << 20), machine.buffer(8 << 20));
    b.qp.post_receive(machine, &[whole(&to)]);
    a.qp.post(machine, ctrl(Opcode::SEND), &units(&whole(&from)));
    machine.hca.run();
    c.qp.post(machine, ctrl(Opcode::NOP), &[]);
    machine.hca.run();
    assert!(c.send.poll(machine).is_some() && a.send.peek(machine).is_none());
    assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
}

#[test]
fn waker_is_called_for_the_first_doorbell_after_the_announcement() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let (a, calls) = (lab.end(0, QpConfig::new(ServiceType::RC)), Arc::new(AtomicU32::new(0)));
    let counter = calls.clone();
    machine.hca.set_waker(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    lab.settle();
    machine.ring(a.qp.qpn);
    assert!(!machine.hca.may_sleep());
    machine.hca.run();
    machine.ring(a.qp.qpn);
    machine.hca.run();
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert!(machine.hca.may_sleep());
    machine.ring(a.qp.qpn);
    machine.ring(a.qp.qpn);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// Waits for a completion that threads of the engines bring about.
fn wait(lab: &Lab, end: &End, cq: &TestCq) -> Done {
    let start = Instant::now();
    loop {
        if let Some(cqe) = cq.poll(lab.machine(end)) {
            return super::queues::done(&cqe);
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

#[test]
fn threads_of_both_engines_serve_both_directions() {
    let lab = Lab::new(2);
    let config = QpConfig { rnr_retries: 7, ack_timeout: 14, ..QpConfig::new(ServiceType::RC) };
    let (a, b) = lab.connect((0, config), (1, config));
    let threads = [0, 1].map(|i| lab.machines[i].hca.start_engine().unwrap());
    let buffers = [&a, &b].map(|end| lab.machine(end).buffer(64));
    for round in 0..300u32 {
        for (end, buffer) in [&a, &b].into_iter().zip(&buffers) {
            end.qp.post_receive(lab.machine(end), &[whole(buffer)]);
        }
        for end in [&a, &b] {
            end.qp.post(lab.machine(end), ctrl(Opcode::SEND), &inline(16, &round.to_be_bytes()));
        }
        for (end, buffer) in [&a, &b].into_iter().zip(&buffers) {
            assert_eq!(wait(&lab, end, &end.send), good(Opcode::SEND, 0));
            assert_eq!(wait(&lab, end, &end.receive), Done::Good { opcode: 1, bytes: 4 });
            assert_eq!(lab.machine(end).contents(buffer)[..4], round.to_be_bytes());
        }
    }
    drop(threads);
}

#[test]
fn timer_wakes_a_sleeping_engine() {
    let (lab, a, _b) = Lab::pair(ServiceType::RC);
    let _threads = [0, 1].map(|i| lab.machines[i].hca.start_engine_spinning(Duration::ZERO).unwrap());
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, b"never"));
    let syndrome = mlx4_wire::cqe::Syndrome::RNR_RETRY_EXC_ERR;
    assert_eq!(wait(&lab, &a, &a.send), Done::Failed(syndrome));
}
