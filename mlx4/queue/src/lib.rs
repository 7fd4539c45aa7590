//! Send, receive and completion rings of the ConnectX family (mlx4), as their consumer sees them.
//!
//! The rings lie in memory that the HCA reads and writes by DMA; this crate builds work requests in it,
//! takes completions out of it, and rings doorbells. It reaches both through two small traits
//! ([`RingMemory`], [`Doorbell`]), so that the daemon's driver and the guest library share it.
//!
//! - [`geometry`]: how large a ring is, and where in the shared buffer it lies
//! - [`request`]: work requests
//! - [`SendQueue`], [`ReceiveQueue`], [`SharedReceiveQueue`]: posting
//! - [`CompletionQueue`]: polling and arming
//!
//! What it does not: commands, contexts, translation tables, interrupts, locks. Posting and polling allocate
//! nothing. What the HCA wrote is read once and checked; a completion that can't be is an error, not a panic.
//!
//! Sources: Linux `drivers/infiniband/hw/mlx4/{qp,cq,srq}.c`, rdma-core `providers/mlx4`.
#![forbid(unsafe_code)]

pub mod geometry;
pub mod request;

mod build;
mod completion;
mod cq;
mod receive;
mod record;
mod send;
mod srq;
mod wqe;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use completion::{Completed, Completion, Payload, PostedReceive, PostedSend, Received};
pub use cq::{ArmSequence, CompletionQueue, CqError, Notify, ResizeError, WorkQueues, XRC_TARGET};
pub use receive::ReceiveQueue;
pub use record::{CQ_RECORD_BYTES, Place, PlaceError, RQ_RECORD_BYTES};
pub use send::SendQueue;
pub use srq::SharedReceiveQueue;
pub use wqe::WqeWriter;

/// Memory that this side and the HCA share.
///
/// Offsets are in bytes from its start, and multiples of 4, as are lengths. The queues of this crate only ask
/// for ranges inside [`RingMemory::bytes`], which they check when they are made; an implementation may panic
/// beyond. Nobody may hold references into the memory, so access is by copies.
pub trait RingMemory {
    /// Size in bytes.
    fn bytes(&self) -> usize;

    /// Copies `from` into the memory, in any order of stores.
    fn write(&self, offset: usize, from: &[u8]);

    /// Copies out of the memory, in any order of loads.
    fn read(&self, offset: usize, to: &mut [u8]);

    /// Stores one word, after all that this thread has written so far (release).
    fn publish(&self, offset: usize, word: [u8; 4]);

    /// Loads one word, before all that this thread reads later (acquire).
    fn observe(&self, offset: usize) -> [u8; 4];
}

impl<M: RingMemory + ?Sized> RingMemory for std::sync::Arc<M> {
    fn bytes(&self) -> usize {
        (**self).bytes()
    }

    fn write(&self, offset: usize, from: &[u8]) {
        (**self).write(offset, from);
    }

    fn read(&self, offset: usize, to: &mut [u8]) {
        (**self).read(offset, to);
    }

    fn publish(&self, offset: usize, word: [u8; 4]) {
        (**self).publish(offset, word);
    }

    fn observe(&self, offset: usize) -> [u8; 4] {
        (**self).observe(offset)
    }
}

/// A doorbell of one object: of the send queue of a QP, or of a CQ.
pub trait Doorbell {
    /// Rings it. The HCA sees all that this thread has published in ring memory before.
    ///
    /// `value` is the register's content as a number, most significant byte first: 32 bits
    /// ([`SendDoorbell`](mlx4_wire::doorbell::SendDoorbell)) for a send queue, 64 bits
    /// ([`CqDoorbell`](mlx4_wire::doorbell::CqDoorbell)) for a CQ.
    fn ring(&self, value: u64);
}

impl<D: Doorbell + ?Sized> Doorbell for std::sync::Arc<D> {
    fn ring(&self, value: u64) {
        (**self).ring(value);
    }
}

impl<D: Doorbell + ?Sized> Doorbell for Box<D> {
    fn ring(&self, value: u64) {
        (**self).ring(value);
    }
}
