//! Shared receive queues.

use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::Opcode;

use super::connections::{good, one_sided};
use super::lab::{End, Lab};
use super::machine::PD;
use super::pattern;
use super::queues::{Done, QpConfig, TestSrq, ctrl, inline, units, whole};

fn rc() -> QpConfig {
    QpConfig::new(ServiceType::RC)
}

/// Two connections to queue pairs of machine 1 that share a receive queue.
fn shared(lab: &Lab, srq: &TestSrq, retries: u8) -> [(End, End); 2] {
    let config = QpConfig { srqn: Some(srq.srqn), ..rc() };
    [0, 1].map(|_| lab.connect((0, QpConfig { rnr_retries: retries, ..rc() }), (1, config)))
}

#[test]
fn queue_pairs_share_a_queue_by_its_links() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    // Keys of the shared queue's work requests belong to its own protection domain.
    let srq = TestSrq::new(far, PD + 3);
    let pairs = shared(&lab, &srq, 7);
    let buffers = [0; 3].map(|_| far.register(64, super::machine::ALL, PD + 3));
    let slots = buffers.map(|buffer| srq.post(far, &[whole(&buffer)]));
    assert_eq!(slots, [0, 3, 6]);
    let seed = |i: usize| u8::try_from(slots[i]).unwrap();
    for (i, (a, b)) in [&pairs[0], &pairs[1], &pairs[0]].into_iter().enumerate() {
        a.qp.post(lab.machine(a), ctrl(Opcode::SEND), &inline(16, &pattern(9, seed(i))));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        let cqe = lab.cqe(1, &b.receive);
        assert_eq!((cqe.wqe_index.get(), cqe.byte_count.get(), cqe.qp.qpn()), (slots[i], 9, b.qp.qpn));
        assert_eq!(far.contents(&buffers[i])[..9], pattern(9, seed(i)));
    }
    // Empty now: not ready until one is posted, without a doorbell.
    let (a, b) = &pairs[1];
    a.qp.post(lab.machine(a), ctrl(Opcode::SEND), &inline(16, b"x"));
    lab.pass(std::time::Duration::from_millis(1));
    assert!(a.send.peek(lab.machine(a)).is_none());
    assert_eq!(srq.post(far, &[whole(&buffers[0])]), 9);
    assert_eq!((a.sent(&lab), lab.cqe(1, &b.receive).wqe_index.get()), (good(Opcode::SEND, 0), 9));
}

#[test]
fn limit_is_told_once_when_it_is_crossed() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let srq = TestSrq::new(far, PD);
    let [(a, _b), _] = shared(&lab, &srq, 0);
    let buffer = far.buffer(64);
    for _ in 0..4 {
        srq.post(far, &[whole(&buffer)]);
    }
    srq.srq.arm(3);
    let mut events = Vec::new();
    for _ in 0..4 {
        a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, b"x"));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        let limits = far.take_events().into_iter().filter(|event| event.0 == EventType::SRQ_LIMIT);
        events.push(limits.collect::<Vec<_>>());
    }
    assert_eq!(events, [vec![], vec![(EventType::SRQ_LIMIT, srq.srqn)], vec![], vec![]]);
}

#[test]
fn error_flushes_what_is_in_hand_only_and_tells_of_the_last() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let srq = TestSrq::new(far, PD);
    let [(a, b), (c, d)] = shared(&lab, &srq, 0);
    let (buffer, data) = (far.buffer(1 << 20), lab.machine(&a).buffer(1 << 20));
    let slots = [0, 1].map(|_| srq.post(far, &[whole(&buffer)]));
    // A message that has begun.
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &units(&whole(&data)));
    lab.machine(&a).hca.run();
    b.qp.qp.error();
    far.hca.engine.ring(b.qp.qpn);
    let cqe = lab.cqe(1, &b.receive);
    assert_eq!(super::queues::done(&cqe), Done::Failed(Syndrome::WR_FLUSH_ERR));
    assert_eq!(cqe.wqe_index.get(), slots[0]);
    lab.settle();
    far.hca.engine.ring(b.qp.qpn);
    lab.settle();
    let last: Vec<_> = far.take_events().into_iter().filter(|event| event.1 == b.qp.qpn).collect();
    assert_eq!(last[last.len() - 1], (EventType::SRQ_QP_LAST_WQE, b.qp.qpn));
    assert_eq!(last.iter().filter(|event| event.0 == EventType::SRQ_QP_LAST_WQE).count(), 1);
    // The other queue pair goes on with the next one.
    c.qp.post(lab.machine(&c), ctrl(Opcode::SEND), &inline(16, b"x"));
    assert_eq!((c.sent(&lab), lab.cqe(1, &d.receive).wqe_index.get()), (good(Opcode::SEND, 0), slots[1]));
    assert_eq!(d.qp.state(), QpState::RTS);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
}

#[test]
fn remote_error_without_a_receive_work_request_tells_of_the_last_too() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let srq = TestSrq::new(far, PD);
    let [(a, b), _] = shared(&lab, &srq, 0);
    let nowhere = zerocopy::FromZeros::new_zeroed();
    let data = lab.machine(&a).buffer(8);
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &one_sided(&nowhere, &[whole(&data)]));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_ACCESS_ERR));
    lab.settle();
    let events: Vec<_> = far.take_events().into_iter().filter(|event| event.1 == b.qp.qpn).collect();
    let expected =
        [EventType::COMMUNICATION_ESTABLISHED, EventType::WQ_ACCESS_ERROR, EventType::SRQ_QP_LAST_WQE];
    assert_eq!(events, expected[1..].iter().map(|event| (*event, b.qp.qpn)).collect::<Vec<_>>());
}
