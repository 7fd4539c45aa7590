//! Channels of completion events.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::error::Result;

/// A CQ that was armed has a completion ([`Cq::req_notify`](crate::Cq::req_notify)). It may be spurious: poll
/// the CQ, and arm it again. There is nothing to acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CqEvent {
    /// Number of the CQ ([`Cq::cqn`](crate::Cq::cqn)).
    pub cqn: u32,
}

/// A channel of completion events (`ibv_comp_channel`).
#[derive(Debug)]
pub struct CompChannel {}

impl CompChannel {
    /// The next event (`ibv_get_cq_event`); `None` if there is none before `timeout` ends. Without a timeout it
    /// waits for ever.
    ///
    /// # Errors
    /// The device is lost; the kernel refuses to wait.
    pub fn wait(&self, _timeout: impl Into<Option<Duration>>) -> Result<Option<CqEvent>> {
        unimplemented!()
    }

    /// A descriptor that is readable if there may be an event. Channels of the same vector may wake each other
    /// for nothing: then [`CompChannel::wait`] with a timeout of 0 answers `None`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}
