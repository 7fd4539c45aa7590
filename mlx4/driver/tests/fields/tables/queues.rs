//! Completions, contexts of queues, and multicast groups.

use super::super::lab::Expect::{Ends, Free, Refused, RefusedAt, RefusedOr, Unread};
use super::super::lab::Table;
use super::{CODES, NOTHING, OTHER_END};

pub const QUERY_QP: Table = &[
    (
        &[
            "context.flags.state",
            "context.mtu_message.mtu",
            "context.primary_path.pkey_index",
            "context.primary_path.remote_lid",
            "context.primary_path.sgid_index",
            "context.primary_path.sched_queue.port_index",
            "context.requester.log2_max_reads",
            "context.responder.log2_max_reads",
        ],
        Refused,
    ),
    (
        &[
            "context.flags.path_migration",
            "context.primary_path.source.grh",
            "context.primary_path.source.path_bits",
            "context.primary_path.timeout.ack_timeout",
            "context.primary_path.static_rate",
            "context.primary_path.hop_limit",
            "context.primary_path.traffic_class.traffic_class",
            "context.primary_path.traffic_class.flow_label",
            "context.primary_path.remote_gid",
            "context.primary_path.sched_queue.sl",
            "context.requester.retry_count",
            "context.requester.rnr_retry",
            "context.next_send_psn.number",
            "context.responder.remote_read",
            "context.responder.remote_write",
            "context.responder.remote_atomic",
            "context.rnr_next_psn.min_rnr_timer",
            "context.rnr_next_psn.next_receive_psn",
            "context.qkey",
        ],
        Free(CODES),
    ),
    (&["context.remote_qpn.number"], Free(OTHER_END)),
    (
        &[
            "optional.vlan_stripping",
            "optional.counter_index",
            "optional.sched_queue",
            "optional.ack_timeout",
            "optional.rnr_retry",
            "optional.retry_count",
            "optional.path_migration",
            "optional.responder_reads",
            "optional.requester_reads",
            "optional.primary_path",
            "optional.min_rnr_timer",
            "optional.qkey",
            "optional.pkey_index",
            "optional.remote_write",
            "optional.remote_atomic",
            "optional.remote_read",
            "optional.alternate_path",
            "context.flags.service",
            "context.flags.rss",
            "context.pd.number",
            "context.mtu_message.log2_max_message",
            "context.rq_size.no_prefetch",
            "context.rq_size.log2_entries",
            "context.rq_size.log2_stride_less_4",
            "context.sq_size.no_prefetch",
            "context.sq_size.log2_entries",
            "context.sq_size.log2_stride_less_4",
            "context.mode.roce",
            "context.mode.reserved_lkey",
            "context.uar_page.number",
            "context.local_qpn.number",
            "context.primary_path.flags.force_loopback",
            "context.primary_path.flags.check_vlan",
            "context.primary_path.flags.strip_vlan",
            "context.primary_path.flags.hide_cqe_vlan",
            "context.primary_path.flags.check_multicast_source",
            "context.primary_path.flags.check_unicast_source",
            "context.primary_path.control",
            "context.primary_path.pkey_check.disable",
            "context.primary_path.counter_index",
            "context.primary_path.timeout.link_type",
            "context.primary_path.traffic_class.sl",
            "context.primary_path.vlan_index",
            "context.primary_path.force",
            "context.primary_path.force_receive",
            "context.primary_path.mac",
            "context.alternate_path.flags.force_loopback",
            "context.alternate_path.flags.check_vlan",
            "context.alternate_path.flags.strip_vlan",
            "context.alternate_path.flags.hide_cqe_vlan",
            "context.alternate_path.flags.check_multicast_source",
            "context.alternate_path.flags.check_unicast_source",
            "context.alternate_path.control",
            "context.alternate_path.pkey_check.disable",
            "context.alternate_path.pkey_index",
            "context.alternate_path.counter_index",
            "context.alternate_path.source.grh",
            "context.alternate_path.source.path_bits",
            "context.alternate_path.remote_lid",
            "context.alternate_path.timeout.ack_timeout",
            "context.alternate_path.timeout.link_type",
            "context.alternate_path.sgid_index",
            "context.alternate_path.static_rate",
            "context.alternate_path.hop_limit",
            "context.alternate_path.traffic_class.sl",
            "context.alternate_path.traffic_class.traffic_class",
            "context.alternate_path.traffic_class.flow_label",
            "context.alternate_path.remote_gid",
            "context.alternate_path.sched_queue.port_index",
            "context.alternate_path.sched_queue.sl",
            "context.alternate_path.vlan_index",
            "context.alternate_path.force",
            "context.alternate_path.force_receive",
            "context.alternate_path.mac",
            "context.requester.log2_ack_request",
            "context.requester.fast_register",
            "context.requester.current_rnr_retry",
            "context.requester.current_retry_count",
            "context.send_cqn.number",
            "context.roce_entropy",
            "context.last_acked_psn.number",
            "context.ssn.number",
            "context.responder.page_offset_64",
            "context.responder.invalid_credits",
            "context.responder.fpp",
            "context.xrcd.xrcd",
            "context.receive_cqn.number",
            "context.record_address",
            "context.srq.enable",
            "context.srq.srqn",
            "context.msn.number",
            "context.rq_wqe_counter",
            "context.sq_wqe_counter",
            "context.rate_limit",
            "context.qos_vport",
            "context.options.mkey_remap",
            "context.options.strip_vlan",
            "context.options.scatter_fcs",
            "context.options.inline_receive",
            "context.options.header_separation",
            "context.peers_base_mkey",
            "context.pages.log_page.log2_less_12",
            "context.pages.mtt_base_high",
            "context.pages.mtt_base_low",
        ],
        Unread,
    ),
];

pub const QUERY_CQ: Table = &[
    (&["flags.status", "consumer_index.number"], Refused),
    (&["producer_index.number"], Ends(&["consumer_index"], "it is the distance of the two that can't be")),
    (
        &[
            "flags.timestamp",
            "flags.collapse",
            "flags.overrun_ignore",
            "flags.state",
            "page_offset.units_32",
            "size.log2_entries",
            "size.uar_page",
            "period",
            "max_count",
            "completion_eq.eqn",
            "pages.log_page.log2_less_12",
            "pages.mtt_base_high",
            "pages.mtt_base_low",
            "last_notified_index.number",
            "solicited_producer_index.number",
            "record_address",
        ],
        Unread,
    ),
];

pub const QUERY_SRQ: Table = &[
    (&["limit"], Refused),
    (
        &[
            "size.state",
            "size.log2_entries",
            "size.srqn",
            "stride.log2_stride_less_4",
            "xrcd",
            "cq.page_offset_64",
            "cq.cqn",
            "pages.log_page.log2_less_12",
            "pages.mtt_base_high",
            "pages.mtt_base_low",
            "pd.number",
            "wqe_count",
            "wqe_counter",
            "record_address",
        ],
        Unread,
    ),
];

pub const READ_MCG: Table = &[
    (&["next.index"], RefusedOr(&["length of the chain"])),
    (&["members.count"], RefusedOr(&["queue pair of the multicast group"])),
    (
        &["members.protocol", "gid"],
        Ends(&["queue pair of the multicast group"], "the entry is another group's then"),
    ),
];

pub const MCG_MEMBER: Table = &[
    (&["qpn"], RefusedOr(&["queue pair of the multicast group"])),
    (&["block_loopback"], Free("written back as it was")),
];

pub const MGID_HASH: Table = &[(&["hash"], Refused)];

pub const ERROR_CQE: Table = &[
    (&["owner.opcode"], Refused),
    (&["qp.qpn", "owner.is_send"], Ends(&["which isn't outstanding"], "the error has it in other words")),
    (&["owner.owner"], Ends(&["no completion left"], "the entry isn't the driver's yet, so it waits")),
    (&["wqe_index"], Refused),
    (&["vendor_error", "syndrome"], Free("any code")),
    (&["qp.ethernet", "owner.inline_scatter"], Unread),
];

/// What is for Ethernet ports, and for data in the entry itself, which the driver doesn't ask for.
const ETHERNET: &[&str] = &[
    "qp.ethernet",
    "status.ip_ok",
    "status.udp",
    "status.tcp",
    "status.ipv4_options",
    "status.ipv6",
    "status.ipv4_fragment",
    "status.ipv4",
    "ipv6_extensions",
    "packet.bad_fcs",
    "packet.l4_ok",
    "packet.snap",
    "packet.llc",
    "owner.inline_scatter",
];

/// Of a queue pair's own receive queue.
pub const RECEIVE_CQE: Table = &[
    (&["qp.qpn", "byte_count", "wqe_index", "owner.opcode"], Refused),
    (
        &["owner.is_send"],
        Ends(&["opcode"], "the opcode is none of the other kind of completion, or not what was posted"),
    ),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["immediate", "source.grh", "source.path_bits", "sl.sl"], Free(CODES)),
    (&["source.remote_qpn", "slid"], Free(OTHER_END)),
    (ETHERNET, Unread),
    (&["sl.vlan", "checksum"], Unread),
];

/// Of a send request that brings nothing.
pub const SEND_CQE: Table = &[
    (&["qp.qpn", "wqe_index", "owner.opcode"], Refused),
    (
        &["owner.is_send"],
        Ends(&["opcode"], "the opcode is none of the other kind of completion, or not what was posted"),
    ),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (ETHERNET, Unread),
    (
        &[
            "immediate",
            "source.grh",
            "source.path_bits",
            "source.remote_qpn",
            "sl.sl",
            "sl.vlan",
            "slid",
            "byte_count",
            "checksum",
        ],
        Unread,
    ),
];

/// Of an RDMA read.
pub const READ_CQE: Table = &[
    (&["qp.qpn", "byte_count", "wqe_index", "owner.opcode"], Refused),
    (
        &["owner.is_send"],
        Ends(&["opcode"], "the opcode is none of the other kind of completion, or not what was posted"),
    ),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (ETHERNET, Unread),
    (
        &[
            "immediate",
            "source.grh",
            "source.path_bits",
            "source.remote_qpn",
            "sl.sl",
            "sl.vlan",
            "slid",
            "checksum",
        ],
        Unread,
    ),
];

/// Of a management datagram.
pub const SPECIAL_CQE: Table = &[
    (&["slid"], RefusedAt(0xc000, &[])),
    (&["qp.qpn", "byte_count", "wqe_index", "owner.is_send"], Refused),
    // The opcode of an error is one: there is no datagram then.
    (&["owner.opcode"], RefusedOr(NOTHING)),
    (
        &["source.grh", "source.path_bits", "source.remote_qpn", "sl.sl"],
        Ends(&[], "handed to the firmware's agent, which needs none of them for a directed route"),
    ),
    (&["immediate"], Ends(&[], "the index of the P_Key, of QP1 only")),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (ETHERNET, Unread),
    (&["sl.vlan", "checksum"], Unread),
];
