//! QP transitions.

use mlx4_wire::ctx::RingPages;
use mlx4_wire::ctx::path::{AddressPath, PathSource, PathTimeout, SchedQueue};
use mlx4_wire::ctx::qp::{
    Mtu, MtuMessage, OptPar, PathMigration, QpFlags, QpMailbox, QpMode, QpState, RequesterParams, RnrNextPsn,
    ServiceType, WqSize,
};
use mlx4_wire::{Number24, U16, U32, U64};
use zerocopy::FromZeros;

use crate::fixture::{Record, find, read, same};

/// The transition of the first QP of a service that isn't a special one's, but for MLX.
fn transition(name: &str, service: ServiceType) -> (Record, QpMailbox) {
    let is = |record: &Record| read::<QpMailbox>(&record.bytes).context.flags.service() == service;
    let record = find(name, is);
    let mailbox = read(&record.bytes);
    (record, mailbox)
}

/// What Linux `__mlx4_ib_modify_qp` gives in every transition: the new state, no migration, the sizes of the
/// queues, PD, UAR, CQs, and how often an ACK is asked for (every 2^8 packets).
fn common(record: &Record, taken: &QpMailbox, state: QpState, service: ServiceType) -> QpMailbox {
    let mut expected = QpMailbox::new_zeroed();
    let (to, from) = (&mut expected.context, &taken.context);
    to.flags =
        QpFlags::new().with_state(state).with_service(service).with_path_migration(PathMigration::MIGRATED);
    to.pd = Number24::wrapping(from.pd.number());
    to.uar_page = Number24::wrapping(from.uar_page.number());
    to.local_qpn = Number24::wrapping(record.modifier);
    let size = |size: WqSize| {
        WqSize::new()
            .with_log2_entries(size.log2_entries())
            .with_log2_stride_less_4(size.log2_stride_less_4())
    };
    (to.rq_size, to.sq_size) = (size(from.rq_size), size(from.sq_size));
    to.send_cqn = Number24::wrapping(from.send_cqn.number());
    to.receive_cqn = Number24::wrapping(from.receive_cqn.number());
    to.requester = RequesterParams::new().with_log2_ack_request(8);
    expected
}

/// Adds what only RST2INIT carries: where the queues and the doorbell record are.
fn queues(expected: &mut QpMailbox, taken: &QpMailbox) {
    let from = &taken.context;
    expected.context.record_address = U64::new(from.record_base());
    expected.context.pages = RingPages::new(from.pages.log2_page(), from.pages.mtt_base()).unwrap();
}

/// The path of a transition to RTR without an address: no counter, and the port's schedule queue.
fn port_only(sched_queue: SchedQueue) -> AddressPath {
    let mut path = AddressPath::new_zeroed();
    path.counter_index = 0xff;
    path.sched_queue = sched_queue;
    path
}

/// What ibv_rc_pingpong asks for: P_Key index 0, port 1, no remote rights.
#[test]
fn rc_goes_to_init_as_linux_takes_it() {
    let (record, taken) = transition("RST2INIT_QP", ServiceType::RC);
    let mut expected = common(&record, &taken, QpState::INIT, ServiceType::RC);
    queues(&mut expected, &taken);
    expected.optional = OptPar::new()
        .with_remote_read(true)
        .with_remote_write(true)
        .with_remote_atomic(true)
        .with_pkey_index(true);
    // 500 receives of one piece, one send of one piece and the headroom of 2 KiB.
    expected.context.rq_size = WqSize::new().with_log2_entries(9).with_log2_stride_less_4(0);
    expected.context.sq_size = WqSize::new().with_log2_entries(6).with_log2_stride_less_4(2);
    same(&record.bytes, &expected);
}

/// Path MTU 1024, one read at a time, minimum RNR timer 12; the greatest message is 2^30 bytes.
#[test]
fn rc_goes_to_rtr_as_linux_takes_it() {
    let (record, taken) = transition("INIT2RTR_QP", ServiceType::RC);
    let from = &taken.context;
    let mut expected = common(&record, &taken, QpState::RTR, ServiceType::RC);
    expected.optional = OptPar::new()
        .with_sched_queue(true)
        .with_responder_reads(true)
        .with_primary_path(true)
        .with_min_rnr_timer(true)
        .with_remote_read(true)
        .with_remote_write(true)
        .with_remote_atomic(true);
    let to = &mut expected.context;
    to.mtu_message = MtuMessage::new().with_mtu(Mtu::MTU_1024).with_log2_max_message(30);
    to.remote_qpn = Number24::wrapping(from.remote_qpn.number());
    to.primary_path = port_only(SchedQueue::BASE);
    to.primary_path.remote_lid = from.primary_path.remote_lid;
    assert!((1..0xc000).contains(&from.primary_path.remote_lid.get()));
    let psn = from.rnr_next_psn.next_receive_psn();
    to.rnr_next_psn = RnrNextPsn::new().with_min_rnr_timer(12).with_next_receive_psn(psn);
    same(&record.bytes, &expected);
}

/// `ibv_rc_pingpong -g 0`: a GRH, whose source is GID index 0, with a hop limit of 1.
#[test]
fn path_with_a_grh_is_as_linux_gives_it() {
    let record =
        find("INIT2RTR_QP", |record| read::<QpMailbox>(&record.bytes).context.primary_path.source.grh());
    let taken = read::<QpMailbox>(&record.bytes).context.primary_path;
    let mut expected = port_only(SchedQueue::BASE);
    expected.source = PathSource::new().with_grh(true);
    expected.remote_lid = taken.remote_lid;
    expected.hop_limit = 1;
    expected.remote_gid = taken.remote_gid;
    assert_eq!(taken.remote_gid[..8], [0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
    same(&record.bytes[0x20..0x4c], &expected);
}

/// Timeout 14, 7 retries, RNR retries without end, one read at a time.
#[test]
fn rc_goes_to_rts_as_linux_takes_it() {
    let (record, taken) = transition("RTR2RTS_QP", ServiceType::RC);
    let mut expected = common(&record, &taken, QpState::RTS, ServiceType::RC);
    expected.optional = OptPar::new()
        .with_ack_timeout(true)
        .with_rnr_retry(true)
        .with_retry_count(true)
        .with_requester_reads(true);
    let to = &mut expected.context;
    to.primary_path.timeout = PathTimeout::new().with_ack_timeout(14);
    to.requester = to.requester.with_retry_count(7).with_rnr_retry(7);
    to.next_send_psn = Number24::wrapping(taken.context.next_send_psn.number());
    same(&record.bytes, &expected);
}

/// IP over InfiniBand: MTU 4096 in messages of 2^17 bytes at most (the HCA cuts large sends), Q_Key by a
/// transition of its own from RTS to RTS when the broadcast group is joined.
#[test]
fn ud_of_ip_over_infiniband_is_as_linux_makes_it() {
    let kernel = QpMode::new().with_reserved_lkey(true);
    let both = OptPar::new().with_qkey(true).with_pkey_index(true);
    let qkey = OptPar::new().with_qkey(true);
    for (name, state, optional) in [
        ("RST2INIT_QP", QpState::INIT, both),
        ("INIT2RTR_QP", QpState::RTR, both),
        ("RTR2RTS_QP", QpState::RTS, qkey),
        ("RTS2RTS_QP", QpState::RTS, qkey),
    ] {
        let (record, taken) = transition(name, ServiceType::UD);
        let mut expected = common(&record, &taken, state, ServiceType::UD);
        expected.optional = optional;
        let to = &mut expected.context;
        to.mtu_message = MtuMessage::new().with_mtu(Mtu::MTU_4096).with_log2_max_message(17);
        to.requester.set_fast_register(true);
        match name {
            "RST2INIT_QP" => {
                to.mode = kernel;
                queues(&mut expected, &taken);
            }
            "INIT2RTR_QP" => to.primary_path = port_only(SchedQueue::BASE),
            "RTS2RTS_QP" => to.qkey = U32::new(0x0b1b),
            _ => {}
        }
        same(&record.bytes, &expected);
    }
}

/// QP0 and QP1 of port 1 are the first and the third of the special QPs; both are of service MLX and have
/// the MTU of datagrams. QP1 has the well-known Q_Key of the specification (IBTA 3.5.3), 8001_0000.
#[test]
fn special_queue_pairs_are_as_linux_makes_them() {
    let base = find("CONF_SPECIAL_QP", |record| record.modifier != 0).modifier;
    for (number, qkey, sched) in [(base, 0, SchedQueue::BASE_QP0), (base + 2, 0x8001_0000, SchedQueue::BASE)]
    {
        let of = |name| find(name, |record| record.modifier == number);
        let mut datagram = MtuMessage::new().with_mtu(Mtu::MTU_4096);
        datagram.set_log2_max_message(11);
        for (name, state) in
            [("RST2INIT_QP", QpState::INIT), ("INIT2RTR_QP", QpState::RTR), ("RTR2RTS_QP", QpState::RTS)]
        {
            let record = of(name);
            let taken: QpMailbox = read(&record.bytes);
            let mut expected = common(&record, &taken, state, ServiceType::MLX);
            let to = &mut expected.context;
            to.mtu_message = datagram;
            to.requester.set_fast_register(true);
            match state {
                QpState::INIT => {
                    expected.optional = OptPar::new().with_qkey(true).with_pkey_index(true);
                    to.mode = QpMode::new().with_reserved_lkey(true);
                    to.qkey = U32::new(qkey);
                    queues(&mut expected, &taken);
                }
                QpState::RTR => to.primary_path = port_only(sched),
                _ => {}
            }
            same(&record.bytes, &expected);
        }
    }
}

/// A QP with an SRQ: its receive queue is none, its ACKs carry invalid credits, and it has a doorbell record
/// no more.
#[test]
fn rc_with_a_shared_receive_queue_is_as_linux_makes_it() {
    let shared = |record: &Record| read::<QpMailbox>(&record.bytes).context.srq.enable();
    let record = find("RST2INIT_QP", shared);
    let taken: QpMailbox = read(&record.bytes);
    assert_eq!(taken.context.srq.srqn(), find("SW2HW_SRQ", |srq| srq.modifier != 0x40).modifier);
    assert!(taken.context.responder.invalid_credits());
    assert_eq!(taken.context.record_address, U64::ZERO);
    assert_eq!(taken.context.roce_entropy, U16::ZERO);
    let again: QpMailbox = read(&find("INIT2RTR_QP", shared).bytes);
    assert!(again.context.responder.invalid_credits());
}
