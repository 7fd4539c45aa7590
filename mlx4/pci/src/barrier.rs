//! Named barriers: each orders two kinds of access that the processor or the compiler might swap.
//!
//! On x86-64 the hardware keeps these orders by itself, for ordinary memory and for registers that are mapped
//! uncached, and the functions only stop the compiler. On other processors they order accesses among
//! processors, which is enough for the model but not for a card; VFIO is refused there.

use std::sync::atomic::{Ordering, fence};

/// Everything stored to DMA memory so far is visible to the device before anything that is stored later:
/// between filling a work request and handing over its ownership bit or doorbell record.
#[inline]
pub fn to_device() {
    fence(Ordering::Release);
}

/// Nothing later is loaded from DMA memory before what has been loaded so far: between finding an entry's
/// owner bit flipped and reading the rest of the entry.
#[inline]
pub fn from_device() {
    fence(Ordering::Acquire);
}

/// Stores to DMA memory so far are visible to the device before a later store to a register tells it to look.
/// Implementations of the seam have it before each store to a register or doorbell.
#[inline]
pub fn mmio_order() {
    fence(Ordering::AcqRel);
}
