//! The seam to whoever reads doorbell areas: the relay of the device around a tenant.

use std::sync::Arc;

use crate::doorbell::SlotTable;
use crate::memory::GuestRegion;

/// A doorbell area in guest memory.
#[derive(Clone, Debug)]
pub struct RelayArea {
    /// The region that it is in, kept alive.
    pub region: Arc<GuestRegion>,
    /// Where in the region it starts, a multiple of 4096 bytes.
    pub offset: u64,
    /// Its number of slots.
    pub slots: u32,
    /// What its slots ring.
    pub table: Arc<SlotTable>,
}

/// A doorbell area in the device's shared-memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectArea {
    /// Where in the region it starts, a multiple of 4096 bytes.
    pub offset: u64,
    /// The kick queue that wakes its reader.
    pub kick_queue: u16,
}

/// Who reads doorbell areas. Called with the tenant locked: who reads must not wait for a [`crate::Tenant`].
pub trait Relay: Send + Sync + std::fmt::Debug {
    /// From now on the area is read. Its header has been written. Answers the number of the kick queue that
    /// wakes its reader.
    fn open(&self, area: RelayArea) -> u16;

    /// Whether the guest can have areas in a shared-memory region of the device's. It doesn't change once a driver
    /// has seen it.
    fn has_region(&self) -> bool {
        false
    }

    /// As [`Relay::open`], an area of `slots` slots in the device's shared-memory region, which the guest has mapped
    /// when this returns; `None` if it can't have one now.
    fn open_direct(&self, _slots: u32, _table: &Arc<SlotTable>) -> Option<DirectArea> {
        None
    }

    /// From now on the area of this table is not read. Its memory may be gone when this returns.
    fn close(&self, table: &Arc<SlotTable>);
}
