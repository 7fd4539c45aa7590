//! Protection domains.

use std::sync::Arc;

use virtio_rdma::request::domain::{AllocPd, DeallocPd};
use virtio_rdma::{Reserved, U32};

use crate::access::Access;
use crate::ah::Ah;
use crate::device::Open;
use crate::error::{Error, Result};
use crate::mr::Mr;
use crate::mw::{Mw, MwType};
use crate::qp::{AhAttr, Qp, QpInit};
use crate::srq::{Srq, SrqInit};

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

    pub(crate) fn domain(&self) -> &Arc<Domain> {
        &self.0
    }

    /// Makes a memory region of `bytes` zeroed bytes (what `ibv_reg_mr` is for memory of the program's own).
    ///
    /// # Errors
    /// No bytes, or rights that contradict each other (`EINVAL`); there is no more memory, or too much is
    /// registered (`ENOMEM`); the device is lost.
    pub fn alloc_mr(&self, bytes: usize, access: Access) -> Result<Mr> {
        Mr::new(&self.0, bytes, access)
    }

    /// Makes a memory window (`ibv_alloc_mw`), which is bound to nothing.
    ///
    /// # Errors
    /// The device has none of that type (`EOPNOTSUPP`); there are too many (`ENOMEM`); the device is lost.
    pub fn alloc_mw(&self, mw_type: MwType) -> Result<Mw> {
        Mw::new(&self.0, mw_type)
    }

    /// Makes an address handle (`ibv_create_ah`).
    ///
    /// # Errors
    /// The path is none: there is no such port or source GID, or a number is out of range (`EINVAL`); the device has
    /// no UD (`EOPNOTSUPP`); the device is lost.
    pub fn create_ah(&self, attr: &AhAttr) -> Result<Ah> {
        Ah::new(&self.0, attr)
    }

    /// Makes a shared receive queue (`ibv_create_srq`). Those of XRC are made by their domain
    /// ([`Xrcd::create_srq`](crate::Xrcd::create_srq)).
    ///
    /// # Errors
    /// It shall hold nothing, or more than an SRQ can (`EINVAL`); there are too many (`ENOMEM`); the device has none
    /// (`EOPNOTSUPP`); the device is lost.
    pub fn create_srq(&self, init: &SrqInit) -> Result<Srq> {
        Srq::new(&self.0, init, None)
    }

    /// Makes a queue pair (`ibv_create_qp`), in the state RESET. Receiving ends of XRC connections are made by their
    /// domain ([`Xrcd::create_recv_qp`](crate::Xrcd::create_recv_qp)).
    ///
    /// # Errors
    /// It shall hold more than a queue pair can (`EINVAL`); a CQ or the SRQ is of another context, or the SRQ is one
    /// of XRC (`EINVAL`); there are too many (`ENOMEM`); the device has none of that type (`EOPNOTSUPP`); the device
    /// is lost.
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
