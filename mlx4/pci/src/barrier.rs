//! Named barriers: each orders two kinds of access that the processor or the compiler might swap.
//!
//! On x86-64 the hardware keeps these orders by itself for ordinary memory and uncached registers, and the
//! functions only stop the compiler; on other processors they are the fence that reaches devices.

use std::sync::atomic::{Ordering, fence};

/// Everything stored to DMA memory so far is visible to the device before anything that is stored later:
/// between filling a work request and handing over its ownership bit or doorbell record.
#[inline]
pub fn to_device() {
    fence(Ordering::Release);
}

/// Nothing is loaded from DMA memory before what has been loaded so far: between finding an entry's owner
/// bit flipped and reading the rest of the entry.
#[inline]
pub fn from_device() {
    fence(Ordering::Acquire);
}

/// Stores to DMA memory so far are visible to the device before a later store to a register tells it to look,
/// and register accesses on both sides stay in order: before the word that posts a command.
#[inline]
pub fn mmio_order() {
    fence(Ordering::SeqCst);
}
