//! Completion queues.

use crate::doorbell::DoorbellPlace;
use crate::{Reserved, U16, U32, U64};

flags! {
    /// How a CQ works.
    pub struct CqFlags: U32 as u32 {
        /// Completions carry time stamps (in place of SL and source LID).
        TIMESTAMP = 1 << 0,
        /// The consumer index is not looked at: old completions are overwritten.
        IGNORE_OVERRUN = 1 << 1,
    }
}

layout! {
    size = 32;
    /// `CREATE_CQ`: a CQ whose ring is the memory of the segments.
    pub struct CreateCq {
        /// The UAR that its doorbell belongs to.
        pub uar: U32,
        /// How it works.
        pub flags: CqFlags,
        /// Number of entries of the ring, a power of two.
        pub entries: U32,
        /// The completion vector of its events.
        pub comp_vector: U16,
        /// Zero.
        pub reserved: Reserved<2>,
        /// Address of its doorbell record in guest memory.
        pub record: U64,
        /// Zero.
        pub reserved_end: Reserved<8>,
    }
}

layout! {
    size = 16;
    /// Reply to `CREATE_CQ`.
    pub struct CqCreated {
        /// Handle of the CQ.
        pub cq: U32,
        /// The HCA's number of it.
        pub cqn: U32,
        /// Where it is armed.
        pub arm: DoorbellPlace,
    }
}

layout! {
    size = 8;
    /// `MODIFY_CQ`: moderates its events. Both zero: an event as soon as may be.
    pub struct ModifyCq {
        /// The CQ.
        pub cq: U32,
        /// Completions to wait for.
        pub count: U16,
        /// Longest wait in µs.
        pub period: U16,
    }
}

layout! {
    size = 8;
    /// `RESIZE_CQ`: the memory of the segments becomes the CQ's ring.
    pub struct ResizeCq {
        /// The CQ.
        pub cq: U32,
        /// Number of entries of the new ring, a power of two.
        pub entries: U32,
    }
}

layout! {
    size = 8;
    /// `DESTROY_CQ`.
    pub struct DestroyCq {
        /// The CQ.
        pub cq: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}
