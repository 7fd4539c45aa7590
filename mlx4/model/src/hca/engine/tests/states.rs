//! What queue pairs do in states other than RTS, and how work goes on after a change of state.

use mlx4_wire::cmd::{Opcode as Command, Status};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpMailbox, QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{Completion, Opcode};
use mlx4_wire::{Number24, U16, U32};
use zerocopy::FromZeros;

use super::connections::{good, one_sided};
use super::lab::{End, Lab};
use super::queues::{Done, QpConfig, ctrl, inline, part, units, whole};

const FLUSHED: Done = Done::Failed(Syndrome::WR_FLUSH_ERR);

#[test]
fn everything_posted_is_flushed_in_order_also_after_the_error() {
    let (lab, a, _b) = Lab::pair(ServiceType::RC);
    let machine = lab.machine(&a);
    for _ in 0..3 {
        a.qp.post_receive(machine, &[]);
    }
    // Not rung: 2ERR finds them nevertheless. Unsignalled ones are flushed, too.
    let mut quiet = ctrl(Opcode::RDMA_WRITE);
    quiet.flags.set_completion(Completion::ON_ERROR);
    let nothing = one_sided(&FromZeros::new_zeroed(), &[]);
    for _ in 0..40 {
        a.qp.put(machine, quiet, &nothing);
    }
    a.qp.qp.error();
    machine.hca.engine.ring(a.qp.qpn);
    for i in 0..40 {
        let cqe = lab.cqe(0, &a.send);
        assert_eq!((super::queues::done(&cqe), cqe.wqe_index.get()), (FLUSHED, i));
        assert!(cqe.owner.is_send());
    }
    for i in 0..3 {
        let cqe = lab.cqe(0, &a.receive);
        assert_eq!((super::queues::done(&cqe), cqe.wqe_index.get()), (FLUSHED, i));
        assert!(!cqe.owner.is_send());
    }
    // What a drain does: one of each is posted in ERR, the receive without a doorbell.
    a.qp.post(machine, quiet, &nothing);
    assert_eq!(a.sent(&lab), FLUSHED);
    a.qp.post_receive(machine, &[]);
    assert_eq!(a.received(&lab), FLUSHED);
    assert_eq!(machine.hca.counters().flushed_wqes.get(), 45);
}

#[test]
fn reset_stops_everything() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let machine = lab.machine(&a);
    a.qp.post_receive(machine, &[]);
    a.qp.put(machine, ctrl(Opcode::NOP), &[]);
    a.qp.qp.reset();
    machine.ring(a.qp.qpn);
    lab.settle();
    assert!(a.send.peek(machine).is_none() && a.receive.peek(machine).is_none());
    b.qp.post(lab.machine(&b), ctrl(Opcode::NOP), &[]);
    assert_eq!(b.sent(&lab), good(Opcode::NOP, 0));
}

#[test]
fn drained_queue_finishes_what_was_begun_and_starts_nothing() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let (near, data, to) =
        (lab.machine(&a), lab.machine(&a).buffer(1 << 20), lab.machine(&b).buffer(1 << 20));
    b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
    b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
    a.qp.post(near, ctrl(Opcode::SEND), &units(&whole(&data)));
    a.qp.post(near, ctrl(Opcode::SEND), &inline(16, b"later"));
    near.hca.run();
    near.take_events();
    a.qp.transition(near, Command::RTS2SQD_QP, &QpMailbox::new_zeroed());
    assert_eq!(a.qp.state(), QpState::SQ_DRAINING);
    assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
    lab.settle();
    assert_eq!(a.qp.state(), QpState::SQD);
    assert_eq!(near.take_events(), [(EventType::SQ_DRAINED, a.qp.qpn)]);
    a.qp.post(near, ctrl(Opcode::NOP), &[]);
    lab.settle();
    assert!(a.send.peek(near).is_none());
    // It still receives.
    a.qp.post_receive(near, &[whole(&data)]);
    b.qp.post(lab.machine(&b), ctrl(Opcode::SEND), &inline(16, b"still"));
    assert_eq!((b.sent(&lab), a.received(&lab)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 5 }));
    a.qp.transition(near, Command::SQD2RTS_QP, &QpMailbox::new_zeroed());
    assert_eq!([a.sent(&lab), a.sent(&lab)], [good(Opcode::SEND, 0), good(Opcode::NOP, 0)]);
}

#[test]
fn doorbell_counts_only_in_rts_and_through_the_right_page() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let a = lab.end(0, QpConfig::new(ServiceType::RC));
    a.qp.post(machine, ctrl(Opcode::NOP), &[]);
    a.qp.to_rtr(machine, 1, lab.path(0), 0);
    lab.settle();
    assert!(a.send.peek(machine).is_none());
    a.qp.to_rts(machine, 0);
    assert_eq!(a.sent(&lab), good(Opcode::NOP, 0));
    a.qp.put(machine, ctrl(Opcode::NOP), &[]);
    let wrong_page = u64::from(super::machine::UAR + 1) * 4096 + 0x14;
    let before = machine.hca.counters().bad_doorbells.get();
    crate::device::PciFunction::bar_write(&*machine.hca, 2, wrong_page, &(a.qp.qpn << 8).to_be_bytes());
    lab.settle();
    assert!(a.send.peek(machine).is_none());
    assert_eq!(machine.hca.counters().bad_doorbells.get() - before, 1);
}

#[test]
fn queue_pair_that_is_gone_is_no_peer() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    lab.machine(&b).running().qps.remove(b.qp.qpn);
    b.qp.qp.reset();
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &[[0; 16]]);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
}

/// A queue pair of service UC, brought to a state.
fn in_state(lab: &Lab, state: QpState) -> End {
    let machine = &lab.machines[0];
    let end = lab.end(0, QpConfig::new(ServiceType::UC));
    if state == QpState::INIT {
        return end;
    }
    end.qp.to_rtr(machine, 1, lab.path(0), 0);
    if state == QpState::RTR {
        return end;
    }
    end.qp.to_rts(machine, 0);
    match state {
        QpState::SQD => end.qp.transition(machine, Command::RTS2SQD_QP, &QpMailbox::new_zeroed()),
        QpState::SQER => end.qp.post(machine, ctrl(Opcode(0x1f)), &[]),
        QpState::ERR => end.qp.qp.error(),
        _ => {}
    }
    lab.settle();
    end
}

#[test]
fn transitions_start_from_their_states_only() {
    use QpState as S;
    let legal = [
        (Command::INIT2INIT_QP, S::INIT, S::INIT),
        (Command::INIT2RTR_QP, S::INIT, S::RTR),
        (Command::RTR2RTS_QP, S::RTR, S::RTS),
        (Command::RTS2RTS_QP, S::RTS, S::RTS),
        (Command::RTS2SQD_QP, S::RTS, S::SQ_DRAINING),
        (Command::SQERR2RTS_QP, S::SQER, S::RTS),
        (Command::SQD2SQD_QP, S::SQD, S::SQD),
        (Command::SQD2RTS_QP, S::SQD, S::RTS),
    ];
    let lab = Lab::new(1);
    for from in [S::INIT, S::RTR, S::RTS, S::SQER, S::SQD, S::ERR] {
        for (opcode, start, to) in legal {
            let end = in_state(&lab, from);
            assert_eq!(end.qp.state(), from);
            let result = end.qp.try_transition(&lab.machines[0], opcode, &QpMailbox::new_zeroed());
            let expected = if start == from { (Ok(()), to) } else { (Err(Status::BAD_QP_STATE), from) };
            assert_eq!((result, end.qp.state()), expected, "{opcode} in {from:?}");
        }
    }
}

#[test]
fn drained_queue_goes_on_with_what_was_changed_meanwhile() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let near = lab.machine(&a);
    // It is led astray, and set right while it is drained.
    let mut astray = QpMailbox::new_zeroed();
    astray.optional.set_primary_path(true);
    astray.context.primary_path = lab.path(1);
    astray.context.primary_path.remote_lid = U16::new(0x777);
    a.qp.transition(near, Command::RTS2SQD_QP, &QpMailbox::new_zeroed());
    lab.settle();
    a.qp.transition(near, Command::SQD2SQD_QP, &astray);
    let mut right = astray;
    right.context.primary_path = lab.path(1);
    // Not named in the mask, so not taken.
    right.context.remote_qpn = Number24::wrapping(0x7777);
    right.context.requester.set_retry_count(7);
    right.context.qkey = U32::new(1);
    a.qp.transition(near, Command::SQD2SQD_QP, &right);
    let context = a.qp.qp.query();
    assert_eq!((context.remote_qpn.number(), context.requester.retry_count()), (b.qp.qpn, 2));
    assert_eq!(context.primary_path.remote_lid, lab.path(1).remote_lid);
    near.take_events();
    // Without the wish for it, there is no event.
    a.qp.transition(near, Command::SQD2RTS_QP, &QpMailbox::new_zeroed());
    let (burst, running) = (near.burst(), near.running());
    a.qp.qp.transition(&burst, &running, Command::RTS2SQD_QP, &QpMailbox::new_zeroed(), false).unwrap();
    near.ring(a.qp.qpn);
    lab.settle();
    assert_eq!((a.qp.state(), near.take_events()), (QpState::SQD, vec![]));
    a.qp.transition(near, Command::SQD2RTS_QP, &QpMailbox::new_zeroed());
    b.qp.post_receive(lab.machine(&b), &[]);
    a.qp.post(near, ctrl(Opcode::SEND), &[]);
    assert_eq!((a.sent(&lab), b.received(&lab)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 0 }));
}

#[test]
fn send_queue_error_of_an_unreliable_connection_leaves_its_receiver_at_work() {
    let (lab, a, b) = Lab::pair(ServiceType::UC);
    let (near, far) = (lab.machine(&a), lab.machine(&b));
    let data = near.buffer(64);
    let mut wrong = part(&data, 0, 8);
    wrong.lkey = U32::new(data.key + 1);
    a.qp.put(near, ctrl(Opcode::SEND), &units(&wrong));
    a.qp.post(near, ctrl(Opcode::NOP), &[]);
    assert_eq!([a.sent(&lab), a.sent(&lab)], [Done::Failed(Syndrome::LOCAL_PROT_ERR), FLUSHED]);
    assert_eq!(a.qp.state(), QpState::SQER);
    a.qp.post(near, ctrl(Opcode::NOP), &[]);
    assert_eq!(a.sent(&lab), FLUSHED);
    a.qp.post_receive(near, &[whole(&data)]);
    b.qp.post(far, ctrl(Opcode::SEND), &inline(16, b"still"));
    assert_eq!((b.sent(&lab), a.received(&lab)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 5 }));
    a.qp.transition(near, Command::SQERR2RTS_QP, &QpMailbox::new_zeroed());
    b.qp.post_receive(far, &[]);
    a.qp.post(near, ctrl(Opcode::SEND), &[]);
    assert_eq!((a.sent(&lab), b.received(&lab)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 0 }));
    // From there ERR takes both halves.
    a.qp.post(near, ctrl(Opcode(0x1f)), &[]);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::LOCAL_QP_OP_ERR));
    a.qp.qp.error();
    a.qp.post_receive(near, &[]);
    near.ring(a.qp.qpn);
    assert_eq!((a.received(&lab), a.qp.state()), (FLUSHED, QpState::ERR));
}
