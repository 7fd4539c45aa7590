//! What each field must not be: queries, domains, memory, completion queues and shared receive queues.

use virtio_rdma::Reason as R;

use super::Row;
use crate::guest::{BASE, BYTES};

/// The first address behind memory.
const END: u64 = BASE + BYTES;

/// Fields that must name an object: 0, all ones and another age of a handle are tried in each.
pub(crate) const HANDLES: &[(&str, &str)] = &[
    ("DEALLOC_PD", "pd"),
    ("DEALLOC_UAR", "uar"),
    ("CLOSE_XRCD", "xrcd"),
    ("REG_MR", "pd"),
    ("REREG_MR", "mr"),
    ("REREG_MR", "pd"),
    ("DEREG_MR", "mr"),
    ("ALLOC_MW", "pd"),
    ("DEALLOC_MW", "mw"),
    ("CREATE_CQ", "uar"),
    ("MODIFY_CQ", "cq"),
    ("RESIZE_CQ", "cq"),
    ("DESTROY_CQ", "cq"),
    ("CREATE_SRQ", "pd"),
    ("CREATE_SRQ of XRC", "pd"),
    ("CREATE_SRQ of XRC", "xrcd"),
    ("CREATE_SRQ of XRC", "cq"),
    ("MODIFY_SRQ", "srq"),
    ("QUERY_SRQ", "srq"),
    ("DESTROY_SRQ", "srq"),
    ("CREATE_QP", "pd"),
    ("CREATE_QP", "send_cq"),
    ("CREATE_QP", "recv_cq"),
    ("CREATE_QP", "uar"),
    ("CREATE_QP of an initiator", "pd"),
    ("CREATE_QP of a target", "xrcd"),
    ("MODIFY_QP to INIT", "qp"),
    ("MODIFY_QP to RTR", "qp"),
    ("QUERY_QP", "qp"),
    ("DESTROY_QP", "qp"),
    ("CREATE_AH", "pd"),
    ("ATTACH_MCAST", "qp"),
    ("DETACH_MCAST", "qp"),
    ("UNREGISTER_SERVICE_ID", "registration"),
];

/// Objects that others use can't go.
pub(crate) const IN_USE: &[Row] = &[
    ("DEALLOC_PD", &[("pd", |s| s.mine.pd.into())], R::IN_USE),
    ("DEALLOC_UAR", &[("uar", |s| s.mine.uar.into())], R::IN_USE),
    ("CLOSE_XRCD", &[("xrcd", |s| s.made.xrcd.get().into())], R::IN_USE),
    // The HCA knows which windows are bound to it.
    ("DEREG_MR", &[("mr", |s| s.made.windowed.get().into())], R::IN_USE),
    ("REREG_MR", &[("mr", |s| s.made.windowed.get().into())], R::IN_USE),
    ("DESTROY_CQ", &[("cq", |s| s.mine.cq.cq.get().into())], R::IN_USE),
    ("DESTROY_SRQ", &[("srq", |s| s.made.srq.get().into())], R::IN_USE),
    ("DESTROY_QP", &[("qp", |s| s.made.ud_rts.get().into())], R::IN_USE),
];

pub(crate) const QUERIES: &[Row] = &[
    ("QUERY_PORT", &[("port", |_| 0)], R::BAD_PORT),
    ("QUERY_PORT", &[("port", |s| u64::from(s.config.ports) + 1)], R::BAD_PORT),
    ("QUERY_PORT", &[("port", |_| 255)], R::BAD_PORT),
    ("QUERY_GID", &[("port", |_| 0)], R::BAD_PORT),
    ("QUERY_GID", &[("port", |_| 255)], R::BAD_PORT),
    ("QUERY_GID", &[("index", |_| 0xffff)], R::BAD_INDEX),
    ("QUERY_GID", &[("index", |_| 1 << 16)], R::BAD_INDEX),
    ("QUERY_PKEY", &[("port", |_| 0)], R::BAD_PORT),
    ("QUERY_PKEY", &[("port", |_| 255)], R::BAD_PORT),
    ("QUERY_PKEY", &[("index", |s| s.device.max_pkeys.get().into())], R::BAD_INDEX),
    ("QUERY_PKEY", &[("index", |_| 1 << 16)], R::BAD_INDEX),
];

pub(crate) const AREAS: &[Row] = &[
    ("ALLOC_UAR", &[("mode", |_| 0)], R::BAD_TYPE),
    ("ALLOC_UAR", &[("mode", |_| 4)], R::BAD_TYPE),
    ("ALLOC_UAR", &[("mode", |_| 2), ("slots", |_| 0), ("area", |_| 0)], R::NOT_OFFERED),
    ("ALLOC_UAR", &[("mode", |_| 3), ("slots", |_| 0), ("area", |_| 0)], R::NOT_OFFERED),
    ("ALLOC_UAR", &[("slots", |_| 0)], R::BEYOND_CAPABILITY),
    ("ALLOC_UAR", &[("slots", |s| u64::from(s.config.max_slots.get()) + 1)], R::BEYOND_CAPABILITY),
    ("ALLOC_UAR", &[("slots", |_| 0xffff_ffff)], R::BEYOND_CAPABILITY),
    ("ALLOC_UAR", &[("area", |_| BASE + 8)], R::MISALIGNED),
    ("ALLOC_UAR", &[("area", |_| END)], R::NOT_IN_MEMORY),
    ("ALLOC_UAR", &[("area", |_| END - 4096)], R::NOT_IN_MEMORY),
    ("ALLOC_UAR", &[("area", |_| 0)], R::NOT_IN_MEMORY),
    ("ALLOC_UAR", &[("area", |_| !0xfff)], R::NOT_IN_MEMORY),
];

pub(crate) const MEMORY: &[Row] = &[
    ("REG_MR", &[("access", |_| 1 << 1)], R::BAD_ACCESS),
    ("REG_MR", &[("access", |_| 1 << 3)], R::BAD_ACCESS),
    ("REG_MR", &[("iova", |_| BASE + 1)], R::BAD_SEGMENT_SUM),
    ("REG_MR", &[("iova", |_| u64::MAX)], R::BAD_SEGMENT_SUM),
    ("REG_MR", &[("length", |_| 0)], R::BAD_SEGMENT_SUM),
    ("REG_MR", &[("length", |_| 4097)], R::BAD_SEGMENT_SUM),
    ("REG_MR", &[("length", |_| u64::MAX)], R::BEYOND_CAPABILITY),
    ("REG_MR", &[("segment.address", |_| BASE + 1)], R::BAD_SEGMENT),
    ("REG_MR", &[("segment.address", |_| !0xfff)], R::BAD_SEGMENT),
    ("REG_MR", &[("segment.address", |_| END)], R::NOT_IN_MEMORY),
    ("REG_MR", &[("segment.length", |_| 0)], R::BAD_SEGMENT),
    ("REG_MR", &[("segment.length", |_| 4095)], R::BAD_SEGMENT),
    ("REG_MR", &[("segment.length", |_| 8192)], R::BAD_SEGMENT_SUM),
    ("REG_MR of a list", &[("segment.address", |_| BASE + 8)], R::BAD_SEGMENT),
    ("REG_MR of a list", &[("segment.address", |_| END)], R::NOT_IN_MEMORY),
    ("REG_MR of a list", &[("segment.length", |_| 8)], R::BAD_SEGMENT),
    (
        "REG_MR of a list",
        &[("segment.length", |s| 16 * (u64::from(s.config.max_segments.get()) + 1))],
        R::TOO_MANY_SEGMENTS,
    ),
    ("REREG_MR", &[("change", |_| 0)], R::BAD_ATTRIBUTE_MASK),
    // Segments, though the translation stays.
    ("REREG_MR", &[("change", |_| 6)], R::BAD_LENGTH),
    ("REREG_MR", &[("access", |_| 1 << 1)], R::BAD_ACCESS),
    ("REREG_MR", &[("iova", |_| BASE + 1)], R::BAD_SEGMENT_SUM),
    ("REREG_MR", &[("length", |_| 0)], R::BAD_SEGMENT_SUM),
    ("REREG_MR", &[("length", |_| u64::MAX)], R::BEYOND_CAPABILITY),
    ("REREG_MR", &[("segment.address", |_| BASE + 1)], R::BAD_SEGMENT),
    ("REREG_MR", &[("segment.address", |_| END)], R::NOT_IN_MEMORY),
    ("REREG_MR", &[("segment.length", |_| 0)], R::BAD_SEGMENT),
    ("REREG_MR", &[("segment.length", |_| 8192)], R::BAD_SEGMENT_SUM),
    ("ALLOC_MW", &[("mw_type", |_| 0)], R::BAD_TYPE),
    ("ALLOC_MW", &[("mw_type", |_| 3)], R::BAD_TYPE),
];

pub(crate) const COMPLETION_QUEUES: &[Row] = &[
    // No card of this kind has time stamps for guests.
    ("CREATE_CQ", &[("flags", |_| 1)], R::BEYOND_CAPABILITY),
    ("CREATE_CQ", &[("entries", |_| 0)], R::BAD_GEOMETRY),
    ("CREATE_CQ", &[("entries", |_| 1)], R::BAD_GEOMETRY),
    ("CREATE_CQ", &[("entries", |_| 63)], R::BAD_GEOMETRY),
    ("CREATE_CQ", &[("entries", |s| 2 * (u64::from(s.device.max_cqe.get()) + 1))], R::BEYOND_CAPABILITY),
    ("CREATE_CQ", &[("entries", |s| 2 * u64::from(s.mine.entries))], R::BAD_SEGMENT_SUM),
    ("CREATE_CQ", &[("comp_vector", |s| s.config.completion_vectors.into())], R::BAD_VECTOR),
    ("CREATE_CQ", &[("comp_vector", |_| 0xffff)], R::BAD_VECTOR),
    ("CREATE_CQ", &[("record", |_| BASE + 4)], R::MISALIGNED),
    ("CREATE_CQ", &[("record", |_| 0)], R::NOT_IN_MEMORY),
    ("CREATE_CQ", &[("record", |_| END)], R::NOT_IN_MEMORY),
    ("CREATE_CQ", &[("segment.address", |_| BASE + 8)], R::BAD_SEGMENT),
    ("CREATE_CQ", &[("segment.address", |_| END)], R::NOT_IN_MEMORY),
    ("CREATE_CQ", &[("segment.length", |_| 8192)], R::BAD_SEGMENT_SUM),
    ("RESIZE_CQ", &[("entries", |_| 0)], R::BAD_GEOMETRY),
    ("RESIZE_CQ", &[("entries", |_| 63)], R::BAD_GEOMETRY),
    ("RESIZE_CQ", &[("entries", |s| 2 * (u64::from(s.device.max_cqe.get()) + 1))], R::BEYOND_CAPABILITY),
    ("RESIZE_CQ", &[("segment.address", |_| END)], R::NOT_IN_MEMORY),
    ("RESIZE_CQ", &[("segment.length", |_| 8192)], R::BAD_SEGMENT_SUM),
];

pub(crate) const SHARED_RECEIVE_QUEUES: &[Row] = &[
    ("CREATE_SRQ", &[("xrcd", |s| s.made.xrcd.get().into())], R::MISMATCH),
    ("CREATE_SRQ", &[("cq", |s| s.mine.cq.cq.get().into())], R::MISMATCH),
    ("CREATE_SRQ", &[("srq_type", |_| 2)], R::BAD_TYPE),
    ("CREATE_SRQ", &[("srq_type", |_| 255)], R::BAD_TYPE),
    ("CREATE_SRQ", &[("log2_wqes", |_| 0)], R::BAD_GEOMETRY),
    ("CREATE_SRQ", &[("log2_wqes", |_| 16)], R::BAD_GEOMETRY),
    ("CREATE_SRQ", &[("log2_wqes", |_| 255)], R::BAD_GEOMETRY),
    ("CREATE_SRQ", &[("log2_stride", |_| 4)], R::BAD_GEOMETRY),
    ("CREATE_SRQ", &[("log2_stride", |_| 255)], R::BAD_GEOMETRY),
    // One slot always stays empty.
    ("CREATE_SRQ", &[("max_wr", |_| 64)], R::BAD_GEOMETRY),
    ("CREATE_SRQ", &[("max_wr", |s| u64::from(s.device.max_srq_wr.get()) + 1)], R::BEYOND_CAPABILITY),
    ("CREATE_SRQ", &[("max_sge", |_| 4)], R::BAD_GEOMETRY),
    ("CREATE_SRQ", &[("max_sge", |s| u64::from(s.device.max_srq_sge.get()) + 1)], R::BEYOND_CAPABILITY),
    ("CREATE_SRQ", &[("record", |_| BASE + 2)], R::MISALIGNED),
    ("CREATE_SRQ", &[("record", |_| END)], R::NOT_IN_MEMORY),
    ("CREATE_SRQ", &[("segment.address", |_| END)], R::NOT_IN_MEMORY),
    ("CREATE_SRQ", &[("segment.length", |_| 8192)], R::BAD_SEGMENT_SUM),
    ("MODIFY_SRQ", &[("attr_mask", |_| 0)], R::BAD_ATTRIBUTE_MASK),
    ("MODIFY_SRQ", &[("limit", |_| 33)], R::BAD_ATTRIBUTE),
];
