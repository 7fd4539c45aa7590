//! XRC domains, and the queue pairs at the receiving end of XRC connections.

use std::sync::Arc;

use virtio_rdma::request::domain::{CloseXrcd, OpenXrcd};
use virtio_rdma::request::queue_pair::{CreateQp, DestroyQp, QpType};
use virtio_rdma::{Reserved, U32};
use zerocopy::FromZeros;

use crate::cq::Cq;
use crate::device::{ObjectKind, Open};
use crate::error::{Error, Result};
use crate::pd::Pd;
use crate::qp::{QpAttr, modify, query};
use crate::srq::{Srq, SrqInit, XrcPart};

/// The domain, which its SRQs and queue pairs keep.
#[derive(Debug)]
pub(crate) struct XrcDomain {
    open: Arc<Open>,
    handle: u32,
    ended: bool,
}

impl XrcDomain {
    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        self.open.end(&CloseXrcd { xrcd: U32::new(self.handle), reserved: Reserved::ZERO }, &[])
    }
}

impl Drop for XrcDomain {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}

/// An XRC domain (`ibv_xrcd`): what comes in on its queue pairs goes to the SRQ of it that the sender names.
#[derive(Debug)]
pub struct Xrcd(Arc<XrcDomain>);

impl Xrcd {
    pub(crate) fn new(open: &Arc<Open>) -> Result<Self> {
        let handle = open.call(&OpenXrcd {})?.xrcd.get();
        Ok(Self(Arc::new(XrcDomain { open: Arc::clone(open), handle, ended: false })))
    }

    /// Makes an SRQ (`ibv_create_srq_ex` with `IBV_SRQT_XRC`) for memory of `pd`, whose requests complete in `cq`.
    ///
    /// # Errors
    /// It shall hold nothing, or more than an SRQ can (`EINVAL`); an object is of another context (`EINVAL`); there
    /// are too many (`ENOMEM`); the device is lost.
    pub fn create_srq(&self, pd: &Pd, cq: &Cq, init: &SrqInit) -> Result<Srq> {
        let open = &self.0.open;
        if !Arc::ptr_eq(pd.domain().open(), open) || !cq.queue().is_of(open) {
            return Err(Error::Invalid("an object is of another context than the XRC domain".into()));
        }
        let part = XrcPart { domain: Arc::clone(&self.0), cq: Arc::clone(cq.queue()) };
        Srq::new(pd.domain(), init, Some(part))
    }

    /// Makes the receiving end of an XRC connection (`ibv_create_qp_ex` with `IBV_QPT_XRC_RECV`), in the state RESET.
    ///
    /// # Errors
    /// There are too many (`ENOMEM`); the device is lost.
    pub fn create_recv_qp(&self) -> Result<XrcRecvQp> {
        XrcRecvQp::new(&self.0)
    }

    /// Ends it (`ibv_close_xrcd`), as dropping it does.
    ///
    /// # Errors
    /// SRQs or queue pairs still use it (`EBUSY`): then it ends with the last of them.
    pub fn close(self) -> Result<()> {
        match Arc::into_inner(self.0) {
            Some(mut domain) => domain.end(),
            None => Err(Error::Busy("the XRC domain")),
        }
    }
}

/// The receiving end of an XRC connection. It has no queues of its own; the sender is a queue pair of type
/// [`QpType::XrcSend`](crate::QpType::XrcSend).
#[derive(Debug)]
pub struct XrcRecvQp {
    domain: Arc<XrcDomain>,
    handle: u32,
    qpn: u32,
    ended: bool,
}

impl XrcRecvQp {
    fn new(domain: &Arc<XrcDomain>) -> Result<Self> {
        let open = &domain.open;
        let body =
            CreateQp { xrcd: U32::new(domain.handle), qp_type: QpType::XRC_RECV, ..CreateQp::new_zeroed() };
        let made = open.call(&body)?;
        let (handle, qpn) = (made.qp.get(), made.qpn.get());
        let _turnover = open.turnover();
        open.watch(ObjectKind::Qp, handle, qpn);
        Ok(Self { domain: Arc::clone(domain), handle, qpn, ended: false })
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let open = &self.domain.open;
        let _turnover = open.turnover();
        let result = open.end(&DestroyQp { qp: U32::new(self.handle), reserved: Reserved::ZERO }, &[]);
        open.forget(ObjectKind::Qp, self.handle);
        result
    }

    /// Its number, as the sender, completions and events have it.
    pub fn qpn(&self) -> u32 {
        self.qpn
    }

    /// Changes it, as [`Qp::modify`](crate::Qp::modify).
    ///
    /// # Errors
    /// As [`Qp::modify`](crate::Qp::modify): the other end is taken (`EADDRINUSE`) too.
    pub fn modify(&self, attr: &QpAttr) -> Result<()> {
        modify(&self.domain.open, self.handle, attr)
    }

    /// How it is (`ibv_query_qp`), as the HCA has it.
    ///
    /// # Errors
    /// The device is lost.
    pub fn query(&self) -> Result<QpAttr> {
        query(&self.domain.open, self.handle)
    }

    /// Ends it (`ibv_destroy_qp`). Completions of what came in on it stay where they are. Waits until its events that
    /// were taken are acknowledged, which dropping it does not.
    ///
    /// # Errors
    /// The HCA doesn't give it back.
    pub fn destroy(mut self) -> Result<()> {
        let (open, handle) = (Arc::clone(&self.domain.open), self.handle);
        open.after_acks(ObjectKind::Qp, handle, || self.end())
    }
}

impl Drop for XrcRecvQp {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}
