//! Event descriptors, to wake whoever polls; and descriptors that the `vhost` crate has.
//!
//! Unsafe code: descriptors of the crates `vmm-sys-util` and `vhost` are lent as the standard library's.
#![expect(unsafe_code, reason = "vmm-sys-util and vhost don't lend their descriptors")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandler};
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

/// Another descriptor of a handler's end of its channel.
pub(crate) fn near_end<S: VhostUserFrontendReqHandler>(of: &FrontendReqHandler<S>) -> io::Result<OwnedFd> {
    // SAFETY: the handler owns the descriptor, so it is open as long as `of`, and is lent no longer.
    unsafe { BorrowedFd::borrow_raw(of.as_raw_fd()) }.try_clone_to_owned()
}

/// Another descriptor of the other end of a handler's channel.
#[cfg(test)]
pub(crate) fn far_end<S: VhostUserFrontendReqHandler>(of: &FrontendReqHandler<S>) -> io::Result<OwnedFd> {
    // SAFETY: as for `near_end`.
    unsafe { BorrowedFd::borrow_raw(of.get_tx_raw_fd()) }.try_clone_to_owned()
}

/// Who maps files as the other end of a channel says.
pub(crate) trait FileMapper {
    /// Maps some of a file.
    fn map(&self, request: VhostUserMMap, file: File) -> io::Result<()>;

    /// Takes a mapping away.
    fn unmap(&self, request: VhostUserMMap) -> io::Result<()>;
}

/// What hands the files that came on a channel to a mapper. Only the `vhost` crate calls it.
pub(crate) struct Files<T>(pub(crate) Arc<T>);

impl<T: FileMapper> VhostUserFrontendReqHandler for Files<T> {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        // SAFETY: the crate lends the file that came with the message, which it owns until this returns.
        let file = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()?;
        self.0.map(*request, File::from(file)).map(|()| 0)
    }

    fn shmem_unmap(&self, request: &VhostUserMMap) -> HandlerResult<u64> {
        self.0.unmap(*request).map(|()| 0)
    }
}
