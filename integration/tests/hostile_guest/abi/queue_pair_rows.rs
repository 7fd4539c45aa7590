//! What each field must not be: queue pairs, paths, groups and service IDs.

use virtio_rdma::Reason as R;

use super::Row;
use super::stage::FOREIGN_SERVICE;
use crate::guest::{BASE, BYTES};

const END: u64 = BASE + BYTES;
/// Bits of a queue pair's attribute mask.
const STATE: u64 = 1;
const CUR_STATE: u64 = 1 << 1;
const ACCESS_FLAGS: u64 = 1 << 3;
const PKEY_INDEX: u64 = 1 << 4;
const PORT: u64 = 1 << 5;
const QKEY: u64 = 1 << 6;
const ALT_PATH: u64 = 1 << 14;
const PATH_MIG_STATE: u64 = 1 << 18;
/// What a change from RTR to RTS needs: TIMEOUT, RETRY_CNT, RNR_RETRY, MAX_QP_RD_ATOMIC, SQ_PSN.
const TO_RTS: u64 = 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16;

pub(crate) const CREATION: &[Row] = &[
    // QP0, QP1, raw, and what nobody has.
    ("CREATE_QP", &[("qp_type", |_| 0)], R::BAD_TYPE),
    ("CREATE_QP", &[("qp_type", |_| 1)], R::BAD_TYPE),
    ("CREATE_QP", &[("qp_type", |_| 5)], R::BAD_TYPE),
    ("CREATE_QP", &[("qp_type", |_| 6)], R::BAD_TYPE),
    ("CREATE_QP", &[("qp_type", |_| 7)], R::BAD_TYPE),
    ("CREATE_QP", &[("qp_type", |_| 8)], R::BAD_TYPE),
    ("CREATE_QP", &[("qp_type", |_| 255)], R::BAD_TYPE),
    ("CREATE_QP", &[("flags", |_| 1)], R::MISMATCH),
    ("CREATE_QP", &[("flags", |_| 2)], R::MISMATCH),
    ("CREATE_QP", &[("srq", |s| s.made.srq.get().into())], R::MISMATCH),
    ("CREATE_QP", &[("srq", |_| 0xffff_ffff)], R::BAD_HANDLE),
    ("CREATE_QP", &[("xrcd", |s| s.made.xrcd.get().into())], R::MISMATCH),
    ("CREATE_QP", &[("log2_send_wqes", |_| 5)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_send_wqes", |_| 16)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_send_wqes", |_| 255)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_send_stride", |_| 0)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_send_stride", |_| 5)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_send_stride", |_| 255)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_recv_wqes", |_| 16)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_recv_wqes", |_| 255)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_recv_stride", |_| 0)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_recv_stride", |_| 3)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("log2_recv_stride", |_| 255)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("cap.max_send_wr", |_| 64)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("cap.max_send_wr", |s| u64::from(s.device.max_qp_wr.get()) + 1)], R::BEYOND_CAPABILITY),
    ("CREATE_QP", &[("cap.max_recv_wr", |_| 65)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("cap.max_recv_wr", |s| u64::from(s.device.max_qp_wr.get()) + 1)], R::BEYOND_CAPABILITY),
    ("CREATE_QP", &[("cap.max_send_sge", |_| 3)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("cap.max_send_sge", |s| u64::from(s.device.max_sge.get()) + 1)], R::BEYOND_CAPABILITY),
    ("CREATE_QP", &[("cap.max_recv_sge", |_| 5)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("cap.max_recv_sge", |s| u64::from(s.device.max_sge.get()) + 1)], R::BEYOND_CAPABILITY),
    ("CREATE_QP", &[("cap.max_inline_data", |_| 33)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("cap.max_inline_data", |_| 0xffff_ffff)], R::BAD_GEOMETRY),
    ("CREATE_QP", &[("record", |_| BASE + 2)], R::MISALIGNED),
    ("CREATE_QP", &[("record", |_| 0)], R::NOT_IN_MEMORY),
    ("CREATE_QP", &[("record", |_| END)], R::NOT_IN_MEMORY),
    ("CREATE_QP", &[("segment.address", |_| BASE + 8)], R::BAD_SEGMENT),
    ("CREATE_QP", &[("segment.address", |_| END)], R::NOT_IN_MEMORY),
    ("CREATE_QP", &[("segment.length", |_| 4096)], R::BAD_SEGMENT_SUM),
    ("CREATE_QP with an SRQ", &[("srq", |s| s.made.xrc_srq.get().into())], R::MISMATCH),
    ("CREATE_QP with an SRQ", &[("record", |_| BASE)], R::MISMATCH),
    ("CREATE_QP of an initiator", &[("recv_cq", |s| s.mine.cq.cq.get().into())], R::MISMATCH),
    ("CREATE_QP of an initiator", &[("srq", |s| s.made.srq.get().into())], R::MISMATCH),
    ("CREATE_QP of an initiator", &[("xrcd", |s| s.made.xrcd.get().into())], R::MISMATCH),
    ("CREATE_QP of an initiator", &[("log2_recv_wqes", |_| 6), ("log2_recv_stride", |_| 6)], R::MISMATCH),
    ("CREATE_QP of a target", &[("pd", |s| s.mine.pd.into())], R::MISMATCH),
    ("CREATE_QP of a target", &[("send_cq", |s| s.mine.cq.cq.get().into())], R::MISMATCH),
    ("CREATE_QP of a target", &[("recv_cq", |s| s.mine.cq.cq.get().into())], R::MISMATCH),
    ("CREATE_QP of a target", &[("srq", |s| s.made.srq.get().into())], R::MISMATCH),
    ("CREATE_QP of a target", &[("uar", |s| s.mine.uar.into())], R::MISMATCH),
    ("CREATE_QP of a target", &[("log2_send_wqes", |_| 6), ("log2_send_stride", |_| 6)], R::MISMATCH),
    ("CREATE_QP of a target", &[("cap.max_inline_data", |_| 1)], R::BAD_GEOMETRY),
    ("CREATE_QP of a target", &[("record", |_| BASE)], R::MISMATCH),
];

pub(crate) const CHANGES: &[Row] = &[
    ("MODIFY_QP to INIT", &[("attr_mask", |_| STATE | PKEY_INDEX | ACCESS_FLAGS)], R::BAD_ATTRIBUTE_MASK),
    (
        "MODIFY_QP to INIT",
        &[("attr_mask", |_| STATE | PKEY_INDEX | ACCESS_FLAGS | PORT | QKEY)],
        R::BAD_ATTRIBUTE_MASK,
    ),
    ("MODIFY_QP to INIT", &[("attributes.qp_state", |_| 3)], R::BAD_TRANSITION),
    ("MODIFY_QP to INIT", &[("attributes.qp_state", |_| 6), ("attr_mask", |_| STATE)], R::BAD_TRANSITION),
    ("MODIFY_QP to INIT", &[("attributes.qp_state", |_| 7)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to INIT", &[("attributes.port_num", |_| 0)], R::BAD_PORT),
    ("MODIFY_QP to INIT", &[("attributes.port_num", |_| 3)], R::BAD_PORT),
    ("MODIFY_QP to INIT", &[("attributes.pkey_index", |_| 0xffff)], R::BAD_INDEX),
    ("MODIFY_QP to RTR", &[("attr_mask", |_| STATE)], R::BAD_ATTRIBUTE_MASK),
    ("MODIFY_QP to RTR", &[("attributes.path_mtu", |_| 0)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.path_mtu", |_| 6)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.rq_psn", |_| 1 << 24)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.dest_qp_num", |_| 1 << 24)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.dest_qp_num", |s| s.scene.foreign.qpn.into())], R::TAKEN),
    // The same as the number of a target of extended connections.
    ("MODIFY_QP to RTR", &[("attributes.dest_qp_num", |s| (s.scene.foreign.qpn | 1 << 23).into())], R::TAKEN),
    (
        "MODIFY_QP to RTR",
        &[("attributes.max_dest_rd_atomic", |s| u64::from(s.device.max_qp_rd_atom.get()) + 1)],
        R::BAD_ATTRIBUTE,
    ),
    ("MODIFY_QP to RTR", &[("attributes.min_rnr_timer", |_| 32)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.port_num", |_| 0)], R::BAD_PORT),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.port_num", |_| 3)], R::BAD_PORT),
    // The device has that port, but the queue pair is on the other one.
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.port_num", |_| 2)], R::MISMATCH),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.dlid", |_| 0xc000)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.dlid", |_| 0xffff)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.sl", |_| 16)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.src_path_bits", |_| 128)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.static_rate", |_| 32)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.is_global", |_| 2)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTR", &[("attributes.ah_attr.flow_label", |_| 1 << 20)], R::BAD_ATTRIBUTE),
    (
        "MODIFY_QP to RTR",
        &[("attributes.ah_attr.is_global", |_| 1), ("attributes.ah_attr.sgid_index", |_| 255)],
        R::BAD_INDEX,
    ),
    ("MODIFY_QP to RTS", &[("attr_mask", |_| STATE)], R::BAD_ATTRIBUTE_MASK),
    ("MODIFY_QP to RTS", &[("attributes.sq_psn", |_| 1 << 24)], R::BAD_ATTRIBUTE),
    (
        "MODIFY_QP to RTS",
        &[("attributes.max_rd_atomic", |s| u64::from(s.device.max_qp_init_rd_atom.get()) + 1)],
        R::BAD_ATTRIBUTE,
    ),
    ("MODIFY_QP to RTS", &[("attributes.timeout", |_| 32)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTS", &[("attributes.retry_cnt", |_| 8)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP to RTS", &[("attributes.rnr_retry", |_| 8)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP in RTS", &[("attributes.cur_qp_state", |_| 7)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP in RTS", &[("attributes.cur_qp_state", |_| 1)], R::BAD_TRANSITION),
    // A change that there is, of a queue pair that isn't in that state.
    (
        "MODIFY_QP to RTS",
        &[
            ("qp", |s| s.made.rts.get().into()),
            ("attr_mask", |_| STATE | CUR_STATE | TO_RTS),
            ("attributes.cur_qp_state", |_| 2),
        ],
        R::BAD_TRANSITION,
    ),
    (
        "MODIFY_QP in RTS",
        &[("attr_mask", |_| STATE | PATH_MIG_STATE), ("attributes.path_mig_state", |_| 3)],
        R::BAD_ATTRIBUTE,
    ),
    ("MODIFY_QP in RTS", &[("attr_mask", |_| STATE | ALT_PATH)], R::NOT_OFFERED),
    ("MODIFY_QP to SQD", &[("attributes.en_sqd_async_notify", |_| 2)], R::BAD_ATTRIBUTE),
    ("MODIFY_QP of UD to INIT", &[("attributes.qkey", |_| 1 << 31)], R::PRIVILEGED_QKEY),
    // It is in no error that it could leave: the HCA knows.
    (
        "MODIFY_QP of UD in RTS",
        &[("attr_mask", |_| STATE | CUR_STATE), ("attributes.cur_qp_state", |_| 5)],
        R::COMMAND_REFUSED,
    ),
];

pub(crate) const DATAGRAMS: &[Row] = &[
    ("CREATE_AH", &[("attributes.port_num", |_| 0)], R::BAD_PORT),
    ("CREATE_AH", &[("attributes.port_num", |_| 3)], R::BAD_PORT),
    ("CREATE_AH", &[("attributes.dlid", |_| 0xffff)], R::BAD_ATTRIBUTE),
    ("CREATE_AH", &[("attributes.sl", |_| 16)], R::BAD_ATTRIBUTE),
    ("CREATE_AH", &[("attributes.src_path_bits", |_| 128)], R::BAD_ATTRIBUTE),
    ("CREATE_AH", &[("attributes.static_rate", |_| 32)], R::BAD_ATTRIBUTE),
    ("CREATE_AH", &[("attributes.is_global", |_| 2)], R::BAD_ATTRIBUTE),
    ("CREATE_AH with a GRH", &[("attributes.flow_label", |_| 1 << 20)], R::BAD_ATTRIBUTE),
    ("CREATE_AH with a GRH", &[("attributes.sgid_index", |_| 255)], R::BAD_INDEX),
    ("ATTACH_MCAST", &[("qp", |s| s.made.rts.get().into())], R::BAD_TYPE),
    ("ATTACH_MCAST", &[("mlid", |_| 0xbfff)], R::BAD_GID),
    ("ATTACH_MCAST", &[("mlid", |_| 0xffff)], R::BAD_GID),
    ("ATTACH_MCAST", &[("mgid", |_| 0xfe)], R::BAD_GID),
    ("DETACH_MCAST", &[("qp", |s| s.made.rts.get().into())], R::BAD_TYPE),
    ("DETACH_MCAST", &[("qp", |s| s.made.ud_reset.get().into())], R::BAD_GID),
    ("DETACH_MCAST", &[("mlid", |_| 0xbfff)], R::BAD_GID),
    // Of a group that it isn't in.
    ("DETACH_MCAST", &[("mlid", |_| 0xc001)], R::BAD_GID),
    ("DETACH_MCAST", &[("mgid", |_| 0xff)], R::BAD_GID),
    ("REGISTER_SERVICE_ID", &[("service_id", |_| FOREIGN_SERVICE)], R::TAKEN),
    ("REGISTER_SERVICE_ID", &[("mask", |_| 0)], R::BAD_ATTRIBUTE),
    ("REGISTER_SERVICE_ID", &[("mask", |_| !0xffff)], R::OBJECT_LIMIT),
    ("REGISTER_SERVICE_ID", &[("port", |_| 3)], R::BAD_PORT),
];
