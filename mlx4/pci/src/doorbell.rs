//! Doorbells: registers in a UAR page of BAR2 that tell the device to look at a queue.

use std::fmt;

/// Which queue a doorbell is for; numbers are the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorbellKind {
    /// New work requests may stand in the send queue of this queue pair. 32 bits.
    Send(u32),
    /// Arms this completion queue. 64 bits.
    Arm(u32),
    /// Consumer index, and arming, of this event queue. 32 bits.
    Eq(u32),
}

/// One doorbell of one queue.
pub trait Doorbell: fmt::Debug + Send + Sync {
    /// Stores `value`, the register's content as a number (the seam stores it big endian): the lower 32 bits
    /// for a send or event-queue doorbell, 64 bits, arm word first, for a completion queue.
    ///
    /// What the caller has stored to DMA memory before is visible to the device when it looks. Never blocks.
    fn ring(&self, value: u64);
}
