//! Protection domains.

use std::sync::Arc;

use virtio_rdma::request::domain::{AllocPd, DeallocPd};
use virtio_rdma::{Reserved, U32};

use crate::access::Access;
use crate::device::Open;
use crate::error::{Error, Result};
use crate::mr::Mr;
use crate::qp::{Qp, QpInit};

/// A protection domain (`ibv_pd`).
#[derive(Debug)]
pub struct Pd(Arc<Domain>);

/// The domain, which its memory and queue pairs keep.
#[derive(Debug)]
pub(crate) struct Domain {
    open: Arc<Open>,
    handle: u32,
    ended: bool,
}

impl Domain {
    pub(crate) fn open(&self) -> &Arc<Open> {
        &self.open
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        self.open.end(&DeallocPd { pd: U32::new(self.handle), reserved: Reserved::ZERO }, &[])
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}

impl Pd {
    pub(crate) fn new(open: &Arc<Open>) -> Result<Self> {
        let handle = open.call(&AllocPd {})?.pd.get();
        Ok(Self(Arc::new(Domain { open: Arc::clone(open), handle, ended: false })))
    }

    /// Makes a memory region of `bytes` zeroed bytes (what `ibv_reg_mr` is for memory of the program's own).
    ///
    /// # Errors
    /// No bytes, or rights that contradict each other (`EINVAL`); there is no more memory, or too much is
    /// registered (`ENOMEM`); the device is lost.
    pub fn alloc_mr(&self, bytes: usize, access: Access) -> Result<Mr> {
        Mr::new(&self.0, bytes, access)
    }

    /// Makes an RC queue pair (`ibv_create_qp`), in the state RESET.
    ///
    /// # Errors
    /// It shall hold more than a queue pair can (`EINVAL`); a CQ is of another context (`EINVAL`); there are too
    /// many (`ENOMEM`); the device is lost.
    pub fn create_qp(&self, init: &QpInit<'_>) -> Result<Qp> {
        Qp::new(&self.0, init)
    }

    /// Ends it (`ibv_dealloc_pd`), as dropping it does.
    ///
    /// # Errors
    /// Memory or queue pairs still use it (`EBUSY`): then it ends with the last of them.
    pub fn dealloc(self) -> Result<()> {
        match Arc::into_inner(self.0) {
            Some(mut domain) => domain.end(),
            None => Err(Error::Busy("the protection domain")),
        }
    }
}
