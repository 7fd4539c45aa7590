//! Event descriptors: to wake whoever polls.
//!
//! Unsafe code: a descriptor of the `vmm-sys-util` crate, which the `vhost` crate wants, is lent as the standard
//! library's.
#![expect(unsafe_code, reason = "vmm-sys-util doesn't lend its descriptors")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An event descriptor that doesn't block.
#[derive(Debug)]
pub(crate) struct Event(EventFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Makes it readable.
    pub(crate) fn raise(&self) {
        // It fails only if it was raised so often that its counter is full.
        let _raised_already = self.0.write(1);
    }

    /// Makes it not readable.
    pub(crate) fn clear(&self) {
        // It fails only if it is not readable.
        let _clear_already = self.0.read();
    }

    /// As the `vhost` crate wants it.
    pub(crate) fn inner(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self`, which owns it.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
