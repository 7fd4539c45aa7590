//! Queues that this process posts to and polls itself, in memory of the driver.

mod cq;
mod empty;
mod memory;
mod qp;
mod srq;

pub use cq::CompletionQueue;
pub use qp::{QueuePair, QueuePairConfig};
pub use srq::SharedReceiveQueue;

pub(crate) use empty::EmptyQueue;
pub(crate) use qp::Work;
pub(crate) use srq::SharedRing;
