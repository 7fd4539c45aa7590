//! XRC: an initiator that names a shared receive queue in each request, and a target that serves a domain.

use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{CtrlSeg, Opcode};

use super::connections::{atomic, good, one_sided, remote};
use super::lab::{End, FIRST_PSN, Lab};
use super::machine::{ALL, PD};
use super::pattern;
use super::queues::{Done, QpConfig, TestCq, TestSrq, ctrl, done, inline, part, units, whole};

const DOMAIN: u16 = 7;
/// Protection domain of the shared queues.
const SHARED: u32 = PD + 3;

fn initiator() -> QpConfig {
    QpConfig::new(ServiceType::XRC)
}

/// A target's own protection domain is nobody's.
fn target() -> QpConfig {
    QpConfig { xrcd: Some(DOMAIN), pd: PD + 9, ..initiator() }
}

fn to_srq(opcode: Opcode, srqn: u32) -> CtrlSeg {
    let mut head = ctrl(opcode);
    head.flags.set_remote_srqn(srqn);
    head
}

/// Two machines, an initiator and a target, and a shared queue of the target's domain with its CQ.
fn scene() -> (Lab, End, End, TestSrq, TestCq) {
    let lab = Lab::new(2);
    let (a, b) = lab.connect((0, initiator()), (1, target()));
    let cq = TestCq::new(lab.machine(&b), 5);
    let srq = TestSrq::xrc(lab.machine(&b), SHARED, &cq, DOMAIN);
    (lab, a, b, srq, cq)
}

#[test]
fn send_completes_on_the_cq_of_the_srq_that_it_names() {
    let (lab, a, b, srq, cq) = scene();
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    let other_cq = TestCq::new(far, 5);
    let other = TestSrq::xrc(far, SHARED + 1, &other_cq, DOMAIN);
    assert_ne!(b.qp.qpn & 1 << 23, 0);
    for (round, (srq, cq, pd)) in
        [(&srq, &cq, SHARED), (&other, &other_cq, SHARED + 1), (&srq, &cq, SHARED)].into_iter().enumerate()
    {
        let buffer = far.register(5000, ALL, pd);
        let slot = srq.post(far, &[whole(&buffer)]);
        let data = near.buffer(5000);
        near.fill(&data, &pattern(5000, u8::try_from(round).unwrap()));
        a.qp.post(near, to_srq(Opcode::SEND, srq.srqn), &units(&whole(&data)));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        let cqe = lab.cqe(1, cq);
        assert_eq!((cqe.qp.qpn(), cqe.source.remote_qpn()), (b.qp.qpn, srq.srqn));
        assert_eq!((cqe.wqe_index.get(), cqe.byte_count.get()), (slot, 5000));
        assert_eq!(far.contents(&buffer), near.contents(&data));
    }
    assert!(b.receive.peek(far).is_none() && b.send.peek(far).is_none());
}

#[test]
fn empty_shared_queue_is_waited_for_and_its_limit_is_told() {
    let (lab, a, b, srq, cq) = scene();
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    srq.srq.arm(1);
    far.take_events();
    a.qp.post(near, to_srq(Opcode::SEND_IMM, srq.srqn), &inline(16, b"x"));
    let naks = &far.hca.counters().rnr_naks;
    lab.until("a NAK", || naks.get() > 0);
    let buffer = far.register(64, ALL, SHARED);
    srq.post(far, &[whole(&buffer)]);
    // Whether it came in time is left to the threads; a sender that gave up is told so.
    let sent = a.sent(&lab);
    if sent == good(Opcode::SEND_IMM, 0) {
        assert_eq!(lab.done(1, &cq), Done::Good { opcode: 2, bytes: 1 });
        assert!(far.take_events().contains(&(EventType::SRQ_LIMIT, srq.srqn)));
    } else {
        assert_eq!(sent, Done::Failed(Syndrome::RNR_RETRY_EXC_ERR));
    }
}

#[test]
fn one_sided_requests_use_the_protection_domain_of_the_srq() {
    let (lab, a, b, srq, cq) = scene();
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    let (memory, data) = (far.register(64, ALL, SHARED), near.buffer(64));
    near.fill(&data, &pattern(64, 4));
    let list = one_sided(&remote(&memory, 0), &[whole(&data)]);
    a.qp.post(near, to_srq(Opcode::RDMA_WRITE, srq.srqn), &list);
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
    assert_eq!(far.contents(&memory), pattern(64, 4));
    a.qp.post(near, to_srq(Opcode::RDMA_READ, srq.srqn), &list);
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_READ, 64));
    let add = atomic(&remote(&memory, 0), 1, 0, &part(&data, 0, 8));
    a.qp.post(near, to_srq(Opcode::ATOMIC_FA, srq.srqn), &add);
    assert_eq!(a.sent(&lab), good(Opcode::ATOMIC_FA, 8));
    srq.post(far, &[]);
    a.qp.post(near, to_srq(Opcode::RDMA_WRITE_IMM, srq.srqn), &list);
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE_IMM, 0));
    assert_eq!(lab.done(1, &cq), Done::Good { opcode: 0, bytes: 64 });
    // The target's own domain opens nothing.
    let own = far.register(64, ALL, target().pd);
    a.qp.post(near, to_srq(Opcode::RDMA_WRITE, srq.srqn), &one_sided(&remote(&own, 0), &[whole(&data)]));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_ACCESS_ERR));
    assert_eq!((a.qp.state(), b.qp.state()), (QpState::ERR, QpState::ERR));
}

#[test]
fn srq_of_another_domain_or_none_is_an_invalid_request() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let cq = TestCq::new(far, 5);
    let foreign = TestSrq::xrc(far, SHARED, &cq, DOMAIN + 1);
    let plain = TestSrq::new(far, SHARED);
    let gone = TestSrq::xrc(far, SHARED, &cq, DOMAIN);
    far.running().srqs.remove(gone.srqn);
    gone.srq.stop();
    for srqn in [foreign.srqn, plain.srqn, gone.srqn, 0x7fff] {
        let (a, b) = lab.connect((0, initiator()), (1, target()));
        foreign.post(far, &[]);
        far.take_events();
        a.qp.post(lab.machine(&a), to_srq(Opcode::SEND, srqn), &[]);
        assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_INVAL_REQ_ERR));
        lab.settle();
        assert_eq!((a.qp.state(), b.qp.state()), (QpState::ERR, QpState::ERR));
        let events = [EventType::WQ_INVALID_REQUEST, EventType::SRQ_QP_LAST_WQE];
        assert_eq!(far.take_events(), events.map(|event| (event, b.qp.qpn)));
    }
    assert!(cq.peek(far).is_none());
}

#[test]
fn failed_receive_names_the_srq_and_ends_the_target() {
    let (lab, a, b, srq, cq) = scene();
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    let small = far.register(8, ALL, SHARED);
    let slot = srq.post(far, &[whole(&small)]);
    far.take_events();
    a.qp.post(near, to_srq(Opcode::SEND, srq.srqn), &inline(16, b"nine byte"));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_INVAL_REQ_ERR));
    let cqe = lab.cqe(1, &cq);
    assert_eq!(done(&cqe), Done::Failed(Syndrome::LOCAL_LENGTH_ERR));
    assert_eq!((cqe.qp.qpn(), cqe.source.remote_qpn(), cqe.wqe_index.get()), (b.qp.qpn, srq.srqn, slot));
    lab.settle();
    let events = [EventType::WQ_INVALID_REQUEST, EventType::SRQ_QP_LAST_WQE];
    assert_eq!(far.take_events(), events.map(|event| (event, b.qp.qpn)));
}

#[test]
fn target_in_error_flushes_the_message_in_hand_to_the_cq_of_its_srq() {
    let (lab, a, b, srq, cq) = scene();
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    let (buffer, data) = (far.register(1 << 22, ALL, SHARED), near.buffer(1 << 22));
    srq.post(far, &[whole(&buffer)]);
    srq.post(far, &[whole(&buffer)]);
    a.qp.post(near, to_srq(Opcode::SEND, srq.srqn), &units(&whole(&data)));
    near.hca.run();
    b.qp.qp.error();
    far.hca.engine.ring(b.qp.qpn);
    let cqe = lab.cqe(1, &cq);
    assert_eq!((done(&cqe), cqe.source.remote_qpn()), (Done::Failed(Syndrome::WR_FLUSH_ERR), srq.srqn));
    // The other work request stays for other targets.
    lab.settle();
    assert!(cq.peek(far).is_none());
    let (c, _d) = lab.connect((0, initiator()), (1, target()));
    c.qp.post(near, to_srq(Opcode::SEND, srq.srqn), &inline(16, b"next"));
    assert_eq!((c.sent(&lab), lab.done(1, &cq)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 4 }));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
}

#[test]
fn only_an_initiator_and_a_target_are_a_pair() {
    let lab = Lab::new(2);
    let rc = QpConfig::new(ServiceType::RC);
    for (from, to) in [(initiator(), initiator()), (rc, target()), (initiator(), rc)] {
        let (a, b) = lab.connect((0, from), (1, to));
        a.qp.post(lab.machine(&a), to_srq(Opcode::SEND, 0), &[]);
        assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
        assert_ne!(b.qp.state(), QpState::ERR);
    }
    // Nothing is sent by a target.
    let (_a, b) = lab.connect((0, initiator()), (1, target()));
    b.qp.post(lab.machine(&b), ctrl(Opcode::NOP), &[]);
    lab.settle();
    assert!(b.send.peek(lab.machine(&b)).is_none());
}

#[test]
fn target_starts_anew_after_a_reset() {
    let (lab, a, b, srq, cq) = scene();
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    far.running().qps.remove(b.qp.qpn);
    b.qp.qp.reset();
    srq.post(far, &[]);
    a.qp.post(near, to_srq(Opcode::SEND, srq.srqn), &[]);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    let (c, _d) = lab.connect((0, initiator()), (1, target()));
    c.qp.post(near, to_srq(Opcode::SEND, srq.srqn), &[]);
    assert_eq!((c.sent(&lab), lab.done(1, &cq)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 0 }));
}

/// A message breaks off whose receive work request was taken; then comes one for another SRQ of the domain.
#[test]
fn receive_that_was_taken_stays_with_its_srq() {
    let (lab, a, b, srq, cq) = scene();
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    let other_cq = TestCq::new(far, 5);
    let other = TestSrq::xrc(far, SHARED, &other_cq, DOMAIN);
    let buffers = [far.register(5000, ALL, SHARED), far.register(5000, ALL, SHARED)];
    srq.post(far, &[whole(&buffers[0])]);
    other.post(far, &[whole(&buffers[1])]);
    let (data, gone) = (near.buffer(64), near.buffer(64));
    near.forget_pages(&gone);
    let list: Vec<_> = [whole(&data), whole(&gone)].iter().flat_map(units).collect();
    a.qp.post(near, to_srq(Opcode::SEND, srq.srqn), &list);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::LOCAL_PROT_ERR));
    assert!(cq.peek(far).is_none());
    let again = lab.end(0, initiator());
    again.qp.to_rtr(near, b.qp.qpn, lab.path(1), 0);
    again.qp.to_rts(near, FIRST_PSN);
    again.qp.post(near, to_srq(Opcode::SEND, other.srqn), &inline(16, b"next"));
    assert_eq!(again.sent(&lab), Done::Failed(Syndrome::REMOTE_INVAL_REQ_ERR));
    let cqe = lab.cqe(1, &cq);
    assert_eq!((done(&cqe), cqe.source.remote_qpn()), (Done::Failed(Syndrome::LOCAL_QP_OP_ERR), srq.srqn));
    lab.settle();
    assert!(other_cq.peek(far).is_none());
}
