//! Access rights of memory and queue pairs.

use std::ops::BitOr;

use virtio_rdma::request::memory::AccessFlags;

/// What memory may be used for, and which remote operations a queue pair takes (`ibv_access_flags`).
///
/// Reading by work requests of one's own is always allowed. Remote writes and atomics need
/// [`Access::LOCAL_WRITE`] too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(u32);

impl Access {
    /// No rights but local reading.
    pub const NONE: Self = Self(0);
    /// Work requests of one's own may write.
    pub const LOCAL_WRITE: Self = Self(1);
    /// RDMA writes of others.
    pub const REMOTE_WRITE: Self = Self(1 << 1);
    /// RDMA reads of others.
    pub const REMOTE_READ: Self = Self(1 << 2);
    /// Atomic operations of others.
    pub const REMOTE_ATOMIC: Self = Self(1 << 3);
    /// All of the above.
    pub const ALL: Self = Self(0xf);
    /// Windows may be bound to the memory.
    pub const MW_BIND: Self = Self(1 << 4);

    /// Whether all rights of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights of either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits of `ibv_access_flags`.
    pub const fn bits(self) -> u32 {
        self.0
    }

    pub(crate) const fn flags(self) -> AccessFlags {
        AccessFlags::from_bits(self.0)
    }

    pub(crate) const fn of_flags(flags: AccessFlags) -> Self {
        Self(flags.bits() & (Self::ALL.0 | Self::MW_BIND.0))
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.flags())
    }
}
