//! Shared receive queues.

use crate::{Reserved, U32, U64};

codes! {
    /// Kind of an SRQ (`ibv_srq_type`).
    pub enum SrqType {
        /// For RC and UD queue pairs.
        BASIC = 0,
        /// For XRC queue pairs of its domain; it has a CQ of its own.
        XRC = 1,
    }
}

layout! {
    size = 40;
    /// `CREATE_SRQ`: an SRQ whose ring is the memory of the segments.
    pub struct CreateSrq {
        /// Its PD.
        pub pd: U32,
        /// `XRC`: its domain. Else 0.
        pub xrcd: U32,
        /// `XRC`: the CQ of its completions. Else 0.
        pub cq: U32,
        /// Its kind.
        pub srq_type: SrqType,
        /// log2 of the number of WQEs of the ring.
        pub log2_wqes: u8,
        /// log2 of the WQEs' stride in bytes.
        pub log2_stride: u8,
        /// Zero.
        pub reserved: Reserved<1>,
        /// Work requests that may be outstanding.
        pub max_wr: U32,
        /// Scatter elements of a work request.
        pub max_sge: U32,
        /// Address of its doorbell record in guest memory.
        pub record: U64,
        /// Zero.
        pub reserved_end: Reserved<8>,
    }
}

layout! {
    size = 8;
    /// Reply to `CREATE_SRQ`.
    pub struct SrqCreated {
        /// Handle of the SRQ.
        pub srq: U32,
        /// The HCA's number of it.
        pub srqn: U32,
    }
}

flags! {
    /// What `MODIFY_SRQ` changes (`ibv_srq_attr_mask`). Resizing is not offered.
    pub struct SrqAttrMask: U32 as u32 {
        /// The limit.
        LIMIT = 1 << 1,
    }
}

layout! {
    size = 16;
    /// `MODIFY_SRQ`: arms the limit.
    pub struct ModifySrq {
        /// The SRQ.
        pub srq: U32,
        /// What changes.
        pub attr_mask: SrqAttrMask,
        /// The new limit.
        pub limit: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 8;
    /// `QUERY_SRQ`.
    pub struct QuerySrq {
        /// The SRQ.
        pub srq: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 16;
    /// Reply to `QUERY_SRQ` (`ibv_srq_attr`).
    pub struct SrqAttributes {
        /// Work requests that may be outstanding.
        pub max_wr: U32,
        /// Scatter elements of a work request.
        pub max_sge: U32,
        /// The limit that is armed; 0: none.
        pub limit: U32,
        /// Must be ignored.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 8;
    /// `DESTROY_SRQ`.
    pub struct DestroySrq {
        /// The SRQ.
        pub srq: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}
