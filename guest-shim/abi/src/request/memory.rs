//! Memory regions and memory windows.

use crate::{Reserved, U32, U64};

flags! {
    /// What a region or window may be used for, and which remote operations a queue pair allows
    /// (`ibv_access_flags`). Reading by the guest's own work requests is always allowed.
    pub struct AccessFlags: U32 as u32 {
        /// Work requests of the guest may write.
        LOCAL_WRITE = 1 << 0,
        /// RDMA writes of others.
        REMOTE_WRITE = 1 << 1,
        /// RDMA reads of others.
        REMOTE_READ = 1 << 2,
        /// Atomic operations of others.
        REMOTE_ATOMIC = 1 << 3,
        /// Windows may be bound to it.
        MW_BIND = 1 << 4,
    }
}

layout! {
    size = 24;
    /// `REG_MR`: registers the memory of the segments.
    pub struct RegMr {
        /// Its PD.
        pub pd: U32,
        /// Rights.
        pub access: AccessFlags,
        /// The address by which work requests and remote operations name the first byte.
        pub iova: U64,
        /// Length in bytes, at least 1.
        pub length: U64,
    }
}

layout! {
    size = 16;
    /// Reply to `REG_MR` and `REREG_MR`.
    pub struct MrRegistered {
        /// Handle of the region.
        pub mr: U32,
        /// Key for local use.
        pub lkey: U32,
        /// Key for remote use.
        pub rkey: U32,
        /// Must be ignored.
        pub reserved: Reserved<4>,
    }
}

flags! {
    /// What `REREG_MR` changes (`ibv_rereg_mr_flags`).
    pub struct ReregFlags: U32 as u32 {
        /// The memory: address, length and segments.
        TRANSLATION = 1 << 0,
        /// The PD.
        PD = 1 << 1,
        /// The rights.
        ACCESS = 1 << 2,
    }
}

layout! {
    size = 32;
    /// `REREG_MR`: changes a region. What is not changed is ignored, and there are segments only with
    /// `TRANSLATION`.
    pub struct ReregMr {
        /// The region.
        pub mr: U32,
        /// What changes.
        pub change: ReregFlags,
        /// The new PD.
        pub pd: U32,
        /// The new rights.
        pub access: AccessFlags,
        /// The new address.
        pub iova: U64,
        /// The new length in bytes.
        pub length: U64,
    }
}

layout! {
    size = 8;
    /// `DEREG_MR`.
    pub struct DeregMr {
        /// The region.
        pub mr: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

codes! {
    /// Type of a memory window (`ibv_mw_type`).
    pub enum MwType {
        /// Bound by a verb, to a PD.
        TYPE_1 = 1,
        /// Bound by a work request, to a queue pair.
        TYPE_2 = 2,
    }
}

layout! {
    size = 8;
    /// `ALLOC_MW`: a memory window, not bound.
    pub struct AllocMw {
        /// Its PD.
        pub pd: U32,
        /// Its type.
        pub mw_type: MwType,
        /// Zero.
        pub reserved: Reserved<3>,
    }
}

layout! {
    size = 8;
    /// Reply to `ALLOC_MW`.
    pub struct MwAllocated {
        /// Handle of the window.
        pub mw: U32,
        /// Its key before the first bind.
        pub rkey: U32,
    }
}

layout! {
    size = 8;
    /// `DEALLOC_MW`.
    pub struct DeallocMw {
        /// The window.
        pub mw: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}
