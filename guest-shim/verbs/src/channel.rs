//! Channels of completion events.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;

use crate::device::{Open, Pending, Vector};
use crate::error::{Error, Result};
use crate::signal::{Deadline, wait};

/// A CQ that was armed has a completion ([`Cq::req_notify`](crate::Cq::req_notify)). It may be spurious: poll
/// the CQ, and arm it again. There is nothing to acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CqEvent {
    /// Number of the CQ ([`Cq::cqn`](crate::Cq::cqn)).
    pub cqn: u32,
}

/// A channel of completion events (`ibv_comp_channel`).
///
/// Its CQs don't keep it: when it is dropped nobody is told of their completions any more.
#[derive(Debug)]
pub struct CompChannel {
    open: Arc<Open>,
    number: u16,
    vector: Arc<Vector>,
    pending: Arc<Pending>,
    /// Readable when the vector, the channel or the loss of the device is.
    any: OwnedFd,
}

impl CompChannel {
    pub(crate) fn new(open: &Arc<Open>, number: u32) -> Result<Self> {
        let number = u16::try_from(number).ok().filter(|number| usize::from(*number) < open.vectors().len());
        let number = number.ok_or_else(|| Error::Invalid("there is no such completion vector".into()))?;
        let vector = Arc::clone(&open.vectors()[usize::from(number)]);
        let pending = Arc::new(Pending::new()?);
        let any = any_of([vector.interrupt(), pending.fd(), open.loss().as_fd()])
            .map_err(Error::system("a descriptor of several"))?;
        Ok(Self { open: Arc::clone(open), number, vector, pending, any })
    }

    /// The next event (`ibv_get_cq_event`); `None` if there is none before `timeout` ends. Without a timeout it
    /// waits for ever.
    ///
    /// # Errors
    /// The device is lost; the kernel refuses to wait.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> Result<Option<CqEvent>> {
        let deadline = Deadline::after(timeout.into());
        loop {
            self.vector.drain();
            if let Some(cqn) = self.pending.next() {
                return Ok(Some(CqEvent { cqn }));
            }
            self.open.loss().check()?;
            if !wait([self.any.as_fd()], deadline)? {
                return Ok(None);
            }
        }
    }

    /// A descriptor that is readable if there may be an event. Channels of the same vector may wake each other
    /// for nothing: then [`CompChannel::wait`] with a timeout of 0 answers `None`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }

    pub(crate) fn is_of(&self, open: &Arc<Open>) -> bool {
        Arc::ptr_eq(&self.open, open)
    }

    /// The number of its vector.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    pub(crate) fn vector(&self) -> &Arc<Vector> {
        &self.vector
    }

    pub(crate) fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }
}

/// A descriptor that is readable when one of several is.
fn any_of<const N: usize>(fds: [BorrowedFd<'_>; N]) -> rustix::io::Result<OwnedFd> {
    let any = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for fd in fds {
        epoll::add(&any, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    Ok(any)
}
