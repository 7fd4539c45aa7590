//! Event descriptors, to wake whoever polls; and descriptors that the `vhost` crate has.
//!
//! Unsafe code: descriptors of the crates `vmm-sys-util` and `vhost` are lent as the standard library's.
#![expect(unsafe_code, reason = "vmm-sys-util and vhost don't lend their descriptors")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

/// Another descriptor of what the `vhost` crate has open.
pub(crate) fn duplicate(of: &dyn AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the crate lends what it owns, for as long as the reference lives; and it isn't kept any longer.
    unsafe { BorrowedFd::borrow_raw(of.as_raw_fd()) }.try_clone_to_owned()
}
