//! Waiting, and the loss of the device, which ends all waiting.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::event_fd::Event;

/// When a wait ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// After a time; never, if there is none, or it is beyond what clocks can tell.
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    fn left(self) -> Option<Timespec> {
        let left = self.0?.saturating_duration_since(Instant::now());
        let tv_sec = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        Some(Timespec { tv_sec, tv_nsec: left.subsec_nanos().into() })
    }
}

/// Waits until one of the descriptors is readable or hangs up; `false` if the deadline came first.
pub(crate) fn wait<const N: usize>(fds: [BorrowedFd<'_>; N], deadline: Deadline) -> Result<bool> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::RDHUP));
    loop {
        match poll(&mut polled, deadline.left().as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("poll")(error)),
        }
    }
}

/// Whether the device is lost, and why. It is never found again.
#[derive(Debug)]
pub(crate) struct Loss {
    why: OnceLock<&'static str>,
    /// Raised for good once it is lost.
    event: Event,
    /// Raised when it is lost: whoever waits for asynchronous events gets this as one.
    news: Arc<Event>,
}

impl Loss {
    /// `news` is raised when the device is lost.
    pub(crate) fn new(news: &Arc<Event>) -> Result<Arc<Self>> {
        let event = Event::new().map_err(Error::system("an event descriptor"))?;
        Ok(Arc::new(Self { why: OnceLock::new(), event, news: Arc::clone(news) }))
    }

    /// The device is lost.
    pub(crate) fn set(&self, why: &'static str) {
        if self.why.set(why).is_ok() {
            log::warn!("the device is lost: {why}");
            self.event.raise();
            self.news.raise();
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.why.get().is_some()
    }

    /// The error that every verb answers once the device is lost.
    pub(crate) fn check(&self) -> Result<()> {
        match self.why.get() {
            None => Ok(()),
            Some(why) => Err(Error::Lost(why)),
        }
    }
}

impl AsFd for Loss {
    /// A descriptor that is readable once the device is lost.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
