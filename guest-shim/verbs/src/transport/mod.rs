//! Ways to a device.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_rdma::config::Config;

use crate::error::Result;
use crate::event_fd::Event;
use crate::memory::{Chunk, Span};
use crate::virtqueue::Layout;

mod region;
mod vhost_user;

#[cfg(test)]
pub(crate) mod testing;

pub(crate) use vhost_user::VhostUser;

/// Where the rings of a virtqueue are: in one chunk that the device knows, at addresses of this process and at
/// the device's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueRings {
    /// Address of the descriptors in this process.
    pub(crate) address: u64,
    /// Offsets of the other rings from there.
    pub(crate) layout: Layout,
}

/// A way to a virtio-rdma device: its configuration space, its memory, its virtqueues.
///
/// Dropping it ends the connection, which resets the device.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// The configuration space.
    fn config(&self) -> Result<Config>;

    /// Tells the device of memory that it finds at an address from now on.
    fn add_memory(&self, chunk: &Arc<Chunk>, guest_address: u64) -> Result<()>;

    /// Bytes that addresses of memory must stay below.
    fn address_space(&self) -> u64;

    /// Starts a virtqueue.
    fn start_queue(&self, index: u16, rings: &QueueRings) -> Result<()>;

    /// Notifies the device of a queue. Not at all if the device is gone.
    fn kick(&self, index: u16);

    /// What the device signals when it has used chains of a queue. It is not blocking.
    fn interrupt(&self, index: u16) -> &Event;

    /// How long the device may answer nothing while requests are under way. A request takes several commands of the
    /// HCA, each of which the daemon gives a minute at most, and waits for those of other programs.
    fn patience(&self) -> Duration {
        Duration::from_secs(180)
    }

    /// `bytes` bytes of the device's shared-memory region; `None` if the device has not had them mapped.
    fn region(&self, _offset: u64, _bytes: usize) -> Option<Span> {
        None
    }

    /// A descriptor that is readable when the device wants something of this side; `None` if it never does.
    fn wanted(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Does what the device wants. Answers whether it can want more.
    fn serve(&self) -> bool {
        false
    }

    /// A descriptor that hangs up when the device is gone.
    fn hangup(&self) -> BorrowedFd<'_>;
}
