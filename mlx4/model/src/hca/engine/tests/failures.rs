//! RC and UC when the other end, a key or a length says no.

use std::time::{Duration, Instant};

use mlx4_wire::U32;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{Mtu, QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{Completion, CtrlSeg, Opcode};

use super::connections::{atomic, good, one_sided, remote};
use super::lab::{End, Lab};
use super::machine::{ALL, Access, PD};
use super::pattern;
use super::queues::{Done, QpConfig, Unit, ctrl, inline, part, units, whole};

const FLUSHED: Done = Done::Failed(Syndrome::WR_FLUSH_ERR);

fn rc() -> QpConfig {
    QpConfig::new(ServiceType::RC)
}

/// What a failing request leads to.
struct Outcome {
    at_sender: Syndrome,
    /// Of the receive WQE that is posted; flushed if there is none.
    at_receiver: Option<Syndrome>,
    event: Option<EventType>,
}

/// Posts a request that fails, and sees both ends into ERR and flushed.
fn fails(lab: &Lab, (a, b): (&End, &End), head: CtrlSeg, list: &[Unit], outcome: &Outcome) {
    let (sender, receiver) = (lab.machine(a), lab.machine(b));
    receiver.take_events();
    a.qp.post_receive(sender, &[]);
    b.qp.put(receiver, ctrl(Opcode::NOP), &[]);
    a.qp.put(sender, head, list);
    a.qp.post(sender, ctrl(Opcode::NOP), &[]);
    assert_eq!(a.sent(lab), Done::Failed(outcome.at_sender));
    assert_eq!((a.sent(lab), a.received(lab)), (FLUSHED, FLUSHED));
    assert_eq!((a.qp.state(), b.qp.state()), (QpState::ERR, QpState::ERR));
    let first = outcome.at_receiver.unwrap_or(Syndrome::WR_FLUSH_ERR);
    assert_eq!((b.received(lab), b.sent(lab)), (Done::Failed(first), FLUSHED));
    let events: Vec<_> = receiver.take_events().into_iter().filter(|event| event.1 == b.qp.qpn).collect();
    assert_eq!(events, outcome.event.map(|event| (event, b.qp.qpn)).as_slice());
}

#[test]
fn remote_keys_are_checked() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let (local, good) = (lab.machines[0].buffer(64), far.buffer(64));
    let other_pd = far.register(64, ALL, PD + 1);
    let local_only = far.register(64, Access { remote: false, atomic: false, ..ALL }, PD);
    let gone = far.buffer(64);
    far.deregister(&gone);
    let mut wrong_byte = remote(&good, 0);
    wrong_byte.rkey = U32::new(good.key ^ 1);
    let mut nowhere = remote(&good, 0);
    nowhere.rkey = U32::new(0x10_0000 << 8);
    let targets = [
        remote(&other_pd, 0),
        remote(&local_only, 0),
        remote(&gone, 0),
        wrong_byte,
        nowhere,
        remote(&good, 57),
        remote(&good, 0u64.wrapping_sub(1)),
    ];
    let outcome = Outcome {
        at_sender: Syndrome::REMOTE_ACCESS_ERR,
        at_receiver: None,
        event: Some(EventType::WQ_ACCESS_ERROR),
    };
    for target in targets {
        let data = part(&local, 0, 8);
        for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
            let (a, b) = lab.connect((0, rc()), (1, rc()));
            b.qp.post_receive(far, &[]);
            fails(&lab, (&a, &b), ctrl(opcode), &one_sided(&target, &[data]), &outcome);
        }
        if target.address.get() % 8 == remote(&good, 0).address.get() % 8 {
            let (a, b) = lab.connect((0, rc()), (1, rc()));
            b.qp.post_receive(far, &[]);
            let list = atomic(&target, 1, 0, &data);
            fails(&lab, (&a, &b), ctrl(Opcode::ATOMIC_FA), &list, &outcome);
        }
    }
    assert_eq!(far.contents(&good), [0; 64]);
    assert_eq!(far.hca.counters().rejected_rkeys.get(), 7 * 2 + 5);
}

#[test]
fn rights_of_the_queue_pair_are_checked() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let (local, memory) = (lab.machines[0].buffer(64), far.buffer(64));
    let outcome =
        |event| Outcome { at_sender: Syndrome::REMOTE_INVAL_REQ_ERR, at_receiver: None, event: Some(event) };
    let data = part(&local, 0, 8);
    let plain = one_sided(&remote(&memory, 0), &[data]);
    let cases = [
        ((false, true, true), Opcode::RDMA_WRITE, plain.clone(), EventType::WQ_INVALID_REQUEST),
        ((true, false, true), Opcode::RDMA_READ, plain, EventType::WQ_INVALID_REQUEST),
        (
            (true, true, false),
            Opcode::ATOMIC_CS,
            atomic(&remote(&memory, 0), 1, 0, &data),
            EventType::WQ_INVALID_REQUEST,
        ),
        (
            (true, true, true),
            Opcode::ATOMIC_FA,
            atomic(&remote(&memory, 4), 1, 0, &data),
            EventType::WQ_ACCESS_ERROR,
        ),
    ];
    for (rights, opcode, list, event) in cases {
        let (a, b) = lab.connect((0, rc()), (1, QpConfig { rights, ..rc() }));
        b.qp.post_receive(far, &[]);
        fails(&lab, (&a, &b), ctrl(opcode), &list, &outcome(event));
    }
    assert_eq!(far.contents(&memory), [0; 64]);
}

#[test]
fn receive_work_request_must_have_room_and_a_good_key() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let (small, read_only) = (far.buffer(8), far.register(64, Access { local_write: false, ..ALL }, PD));
    let other_pd = far.register(64, ALL, PD + 1);
    let too_long = Outcome {
        at_sender: Syndrome::REMOTE_INVAL_REQ_ERR,
        at_receiver: Some(Syndrome::LOCAL_LENGTH_ERR),
        event: Some(EventType::WQ_INVALID_REQUEST),
    };
    let no_right = Outcome {
        at_sender: Syndrome::REMOTE_OP_ERR,
        at_receiver: Some(Syndrome::LOCAL_PROT_ERR),
        event: None,
    };
    for (buffer, outcome) in [(&small, too_long), (&read_only, no_right.copy()), (&other_pd, no_right)] {
        let (a, b) = lab.connect((0, rc()), (1, rc()));
        b.qp.post_receive(far, &[whole(buffer)]);
        fails(&lab, (&a, &b), ctrl(Opcode::SEND), &inline(16, b"nine byte"), &outcome);
    }
}

impl Outcome {
    fn copy(&self) -> Self {
        Self { ..*self }
    }
}

#[test]
fn local_errors_leave_the_other_end_alone() {
    let lab = Lab::new(2);
    let near = &lab.machines[0];
    let (good_buffer, memory) = (near.buffer(64), lab.machines[1].buffer(64));
    let read_only = near.register(64, Access { local_write: false, ..ALL }, PD);
    let other_pd = near.register(64, ALL, PD + 1);
    let mut wrong = part(&good_buffer, 0, 4);
    wrong.lkey = U32::new(0x100);
    let target = remote(&memory, 0);
    let mut zero_units = ctrl(Opcode::SEND);
    zero_units.size.set_units(63);
    let cases = [
        (ctrl(Opcode::SEND), units(&wrong), Syndrome::LOCAL_PROT_ERR),
        (ctrl(Opcode::SEND), units(&part(&other_pd, 0, 4)), Syndrome::LOCAL_PROT_ERR),
        // The second entry is bad; the first isn't sent either.
        (
            ctrl(Opcode::RDMA_WRITE),
            one_sided(&target, &[part(&good_buffer, 0, 4), wrong]),
            Syndrome::LOCAL_PROT_ERR,
        ),
        (ctrl(Opcode::RDMA_READ), one_sided(&target, &[whole(&read_only)]), Syndrome::LOCAL_PROT_ERR),
        (ctrl(Opcode::ATOMIC_FA), atomic(&target, 1, 0, &part(&read_only, 0, 8)), Syndrome::LOCAL_PROT_ERR),
        (zero_units, vec![], Syndrome::LOCAL_QP_OP_ERR),
        (ctrl(Opcode::LOCAL_INVALIDATE), vec![[0; 16]; 2], Syndrome::MW_BIND_ERR),
        (ctrl(Opcode::LOCAL_INVALIDATE), vec![[0; 16]], Syndrome::LOCAL_QP_OP_ERR),
        (ctrl(Opcode::BIND_MW), vec![[0; 16]; 2], Syndrome::MW_BIND_ERR),
        (ctrl(Opcode::BIND_MW), vec![[0; 16]], Syndrome::LOCAL_QP_OP_ERR),
        (ctrl(Opcode::FAST_REGISTER), vec![[0; 16]; 3], Syndrome::LOCAL_QP_OP_ERR),
        (ctrl(Opcode(0x1f)), vec![], Syndrome::LOCAL_QP_OP_ERR),
    ];
    near.fill(&good_buffer, &[0xff; 64]);
    for (head, list, syndrome) in cases {
        let (a, b) = lab.connect((0, rc()), (1, rc()));
        a.qp.post(near, head, &list);
        assert_eq!(a.sent(&lab), Done::Failed(syndrome), "{head:?}");
        assert_eq!((a.qp.state(), b.qp.state()), (QpState::ERR, QpState::RTS));
    }
    assert_eq!(lab.machines[1].contents(&memory), [0; 64]);
}

#[test]
fn message_longer_than_the_queue_pair_may_send_is_a_length_error() {
    let lab = Lab::new(1);
    let config = QpConfig { log2_max_message: 12, ..rc() };
    let (a, b) = lab.connect((0, config), (0, config));
    let (data, to) = (lab.machines[0].buffer(4097), lab.machines[0].buffer(4097));
    b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &units(&part(&data, 0, 4096)));
    assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &units(&part(&data, 0, 4097)));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::LOCAL_LENGTH_ERR));
}

#[test]
fn receiver_that_is_not_ready_is_waited_for() {
    let lab = Lab::new(2);
    let endless = QpConfig { rnr_retries: 7, ..rc() };
    let (a, b) = lab.connect((0, endless), (1, rc()));
    let to = lab.machine(&b).buffer(64);
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, b"late"));
    let naks = &lab.machine(&b).hca.counters().rnr_naks;
    lab.until("more retries than there are without \"endless\"", || naks.get() > 8);
    assert!(a.send.peek(lab.machine(&a)).is_none());
    // Posting rings no doorbell.
    b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
    assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
    assert_eq!(b.received(&lab), Done::Good { opcode: 1, bytes: 4 });
}

#[test]
fn write_with_immediate_waits_for_a_receive_work_request_too() {
    let lab = Lab::new(2);
    let endless = QpConfig { rnr_retries: 7, ..rc() };
    let (a, b) = lab.connect((0, endless), (1, rc()));
    let (from, to) = (lab.machine(&a).buffer(100_000), lab.machine(&b).buffer(100_000));
    lab.machine(&a).fill(&from, &pattern(100_000, 1));
    let list = one_sided(&remote(&to, 0), &[whole(&from)]);
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE_IMM), &list);
    lab.pass(Duration::from_millis(1));
    b.qp.post_receive(lab.machine(&b), &[]);
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE_IMM, 0));
    assert_eq!(b.received(&lab), Done::Good { opcode: 0, bytes: 100_000 });
    assert_eq!(lab.machine(&b).contents(&to), pattern(100_000, 1));
}

#[test]
fn receiver_that_is_never_ready_ends_the_connection() {
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, b"never"));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::RNR_RETRY_EXC_ERR));
    // The first try and two more.
    assert_eq!(lab.machine(&b).hca.counters().rnr_naks.get(), 3);
    assert_eq!(lab.machine(&a).hca.counters().rnr_naks_received.get(), 3);
    assert_eq!(b.qp.state(), QpState::RTS);
}

#[test]
fn nobody_who_answers_costs_all_retries() {
    let lab = Lab::new(2);
    let near = &lab.machines[0];
    // No such LID, no such queue pair, one that isn't connected to us, one in INIT.
    let (stranger, idle) = (lab.end(1, rc()), lab.end(1, rc()));
    stranger.qp.to_rtr(&lab.machines[1], 0x99, lab.path(1), 0);
    let mut nowhere = lab.path(1);
    nowhere.remote_lid.set(0x777);
    let cases =
        [(nowhere, 0x80), (lab.path(1), 0x7777), (lab.path(1), stranger.qp.qpn), (lab.path(1), idle.qp.qpn)];
    for (path, remote_qpn) in cases {
        let a = lab.end(0, rc());
        a.qp.to_rtr(near, remote_qpn, path, 0);
        a.qp.to_rts(near, 0);
        let (before, start) = (near.hca.counters().timeouts.get(), Instant::now());
        a.qp.post(near, ctrl(Opcode::RDMA_WRITE), &one_sided(&zerocopy::FromZeros::new_zeroed(), &[]));
        assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
        assert_eq!(near.hca.counters().timeouts.get() - before, 3);
        assert!(start.elapsed() >= 3 * Duration::from_nanos(4096 << 8));
    }
}

#[test]
fn lost_peer_that_comes_back_in_time_is_found() {
    let lab = Lab::new(2);
    let patient = QpConfig { ack_timeout: 11, retries: 7, ..rc() };
    let (a, b) = (lab.end(0, patient), lab.end(1, rc()));
    a.qp.to_rtr(lab.machine(&a), b.qp.qpn, lab.path(1), 0);
    a.qp.to_rts(lab.machine(&a), 9);
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, b"early"));
    lab.pass(Duration::from_millis(10));
    let to = lab.machine(&b).buffer(64);
    b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
    b.qp.to_rtr(lab.machine(&b), a.qp.qpn, lab.path(0), 9);
    assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
    assert!(lab.machine(&a).hca.counters().timeouts.get() > 0);
}

#[test]
fn packets_ahead_are_refused_and_duplicates_acknowledged_without_effect() {
    let lab = Lab::new(2);
    for (behind, expected) in
        [(false, Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR)), (true, good(Opcode::SEND, 0))]
    {
        let (a, b) = (lab.end(0, rc()), lab.end(1, rc()));
        let to = lab.machine(&b).buffer(64);
        b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
        a.qp.to_rtr(lab.machine(&a), b.qp.qpn, lab.path(1), 0);
        a.qp.to_rts(lab.machine(&a), 0);
        b.qp.to_rtr(lab.machine(&b), a.qp.qpn, lab.path(0), if behind { 1 } else { 0xff_ffff });
        a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &inline(16, b"odd"));
        assert_eq!(a.sent(&lab), expected);
        assert!(b.receive.peek(lab.machine(&b)).is_none());
        assert_eq!((b.qp.state(), lab.machine(&b).contents(&to)), (QpState::RTR, vec![0; 64]));
    }
    // The gap was reported once: of three retries, one came without a timeout.
    let counts = (&lab.machines[1].hca.counters().out_of_sequence, &lab.machines[0].hca.counters().timeouts);
    assert_eq!((counts.0.get(), counts.1.get()), (3, 2));
}

#[test]
fn other_partition_hears_nothing() {
    let lab = Lab::new(2);
    let (a, b) = lab.connect((0, rc()), (1, QpConfig { pkey_index: 1, ..rc() }));
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &[[0; 16]]);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    assert_eq!(lab.machine(&b).port().p_key_violations.get(), 3);
}

#[test]
fn path_mtus_that_differ_are_an_invalid_request() {
    let lab = Lab::new(2);
    let (a, b) = lab.connect((0, rc()), (1, QpConfig { mtu: Mtu::MTU_512, ..rc() }));
    let (from, to) = (lab.machine(&a).buffer(600), lab.machine(&b).buffer(600));
    for bytes in [512, 513] {
        a.qp.post(
            lab.machine(&a),
            ctrl(Opcode::RDMA_WRITE),
            &one_sided(&remote(&to, 0), &[part(&from, 0, bytes)]),
        );
    }
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_INVAL_REQ_ERR));
}

#[test]
fn key_taken_back_in_the_middle_of_a_message_is_noticed() {
    const LEN: u64 = 1 << 22;
    let (lab, a, b) = Lab::pair(ServiceType::RC);
    let (from, to) = (lab.machine(&a).buffer(LEN), lab.machine(&b).buffer(LEN));
    lab.machine(&a).fill(&from, &vec![1; 1 << 22]);
    let list = one_sided(&remote(&to, 0), &[whole(&from)]);
    a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &list);
    lab.machine(&a).hca.run();
    lab.machine(&b).deregister(&to);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_ACCESS_ERR));
    let written = lab.machine(&b).contents(&to).iter().filter(|byte| **byte == 1).count();
    assert!(written > 0 && written < 1 << 21, "{written} bytes");
}

#[test]
fn unreliable_connection_loses_what_cannot_be_received() {
    let (lab, a, b) = Lab::pair(ServiceType::UC);
    let (data, to) = (lab.machine(&a).buffer(200_000), lab.machine(&b).buffer(200_000));
    // No buffer: all of it is lost, though there is one when its second part comes.
    let mut quiet = ctrl(Opcode::SEND);
    quiet.flags.set_completion(Completion::ON_ERROR);
    a.qp.post(lab.machine(&a), quiet, &units(&whole(&data)));
    lab.machine(&a).hca.run();
    b.qp.post_receive(lab.machine(&b), &[whole(&to)]);
    // A wrong key: lost too.
    let mut wrong = remote(&to, 0);
    wrong.rkey = U32::new(1);
    let mut quiet_write = quiet;
    quiet_write.opcode.set_opcode(Opcode::RDMA_WRITE);
    a.qp.post(lab.machine(&a), quiet_write, &one_sided(&wrong, &[part(&data, 0, 9)]));
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &units(&part(&data, 0, 5)));
    assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
    assert_eq!(b.received(&lab), Done::Good { opcode: 1, bytes: 5 });
    assert_eq!((a.qp.state(), b.qp.state()), (QpState::RTS, QpState::RTS));
}
