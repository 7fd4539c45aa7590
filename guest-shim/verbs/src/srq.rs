//! Shared receive queues.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_queue::geometry::SrqGeometry;
use mlx4_queue::{Place, PostedReceive, SharedReceiveQueue};
use virtio_rdma::request::shared_receive::{
    CreateSrq, DestroySrq, ModifySrq, QuerySrq, SrqAttrMask, SrqType,
};
use virtio_rdma::{Reserved, U32, U64};

use crate::arena::{Block, PAGE};
use crate::cq::{Queue, RECORD_BYTES};
use crate::device::{ObjectKind, Open};
use crate::error::{Error, Result};
use crate::memory::Span;
use crate::pd::Domain;
use crate::qp::{BadWr, with_pieces};
use crate::wr::RecvWr;
use crate::xrc::XrcDomain;

/// What an SRQ shall be able to hold (`ibv_srq_init_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SrqInit {
    /// Receive requests that may be outstanding.
    pub max_wr: u32,
    /// Pieces of a receive request.
    pub max_sge: u32,
}

/// What an SRQ is like (`ibv_srq_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SrqAttr {
    /// Receive requests that may be outstanding.
    pub max_wr: u32,
    /// Pieces of a receive request.
    pub max_sge: u32,
    /// The limit that is armed; 0: none.
    pub srq_limit: u32,
}

/// The ring of an SRQ, which the CQs of its queue pairs know too.
#[derive(Debug)]
pub(crate) struct SharedRing(Mutex<SharedReceiveQueue<Span>>);

impl SharedRing {
    fn lock(&self) -> MutexGuard<'_, SharedReceiveQueue<Span>> {
        // The ring changes its indexes last.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn completed(&self, index: u16) -> Option<PostedReceive> {
        self.lock().complete(index)
    }

    /// Posts requests up to one that can't be; answers how many were.
    fn post(&self, wrs: &[RecvWr<'_>]) -> (usize, Result<()>) {
        let mut ring = self.lock();
        let mut posted = 0;
        let mut result = Ok(());
        for wr in wrs {
            result = with_pieces(wr.sges, |pieces| ring.post(wr.wr_id, pieces));
            if result.is_err() {
                break;
            }
            posted += 1;
        }
        if posted != 0 {
            ring.commit();
        }
        (posted, result.map_err(Error::from))
    }
}

/// An XRC SRQ's domain, and the CQ of its completions.
#[derive(Debug)]
pub(crate) struct XrcPart {
    pub(crate) domain: Arc<XrcDomain>,
    pub(crate) cq: Arc<Queue>,
}

/// The queue, which its queue pairs keep.
#[derive(Debug)]
pub(crate) struct Shared {
    domain: Arc<Domain>,
    xrc: Option<XrcPart>,
    handle: u32,
    srqn: u32,
    ring: Arc<SharedRing>,
    memory: Block,
    record: Block,
    ended: bool,
}

impl Shared {
    fn new(domain: &Arc<Domain>, init: &SrqInit, xrc: Option<XrcPart>) -> Result<Self> {
        let open = domain.open();
        open.loss().check()?;
        let (most_wr, most_sge) = (open.attributes().max_srq_wr.get(), open.attributes().max_srq_sge.get());
        for (what, asked, range) in
            [("max_wr", init.max_wr, 1..=most_wr), ("max_sge", init.max_sge, 0..=most_sge)]
        {
            if !range.contains(&asked) {
                let (least, most) = range.into_inner();
                return Err(Error::Invalid(format!("{what} of an SRQ is {least} to {most}, not {asked}")));
            }
        }
        let geometry = SrqGeometry::new(init.max_wr, init.max_sge, open.limits())?;
        let memory = open.arena().allocate(geometry.bytes() as usize, PAGE)?;
        let record = open.arena().allocate(RECORD_BYTES, RECORD_BYTES)?;
        let place = |block: &Block| Place { memory: block.span().clone(), offset: 0 };
        let mut ring = SharedReceiveQueue::new(place(&memory), place(&record), geometry)?;
        ring.reset();
        let body = CreateSrq {
            pd: U32::new(domain.handle()),
            xrcd: U32::new(xrc.as_ref().map_or(0, |xrc| xrc.domain.handle())),
            cq: U32::new(xrc.as_ref().map_or(0, |xrc| xrc.cq.handle())),
            srq_type: if xrc.is_some() { SrqType::XRC } else { SrqType::BASIC },
            log2_wqes: geometry.log2_entries(),
            log2_stride: geometry.log2_stride(),
            reserved: Reserved::ZERO,
            max_wr: U32::new(geometry.requests().min(most_wr)),
            max_sge: U32::new(geometry.max_sges().min(most_sge)),
            record: U64::new(record.guest_address()),
            reserved_end: Reserved::ZERO,
        };
        let made = open.make(&body, &[&memory, &record])?;
        let (handle, srqn) = (made.srq.get(), made.srqn.get());
        let ring = Arc::new(SharedRing(Mutex::new(ring)));
        let turnover = open.turnover();
        open.watch(ObjectKind::Srq, handle, srqn);
        if let Some(xrc) = &xrc {
            xrc.cq.attach_xrc(srqn, &ring);
        }
        drop(turnover);
        Ok(Self { domain: Arc::clone(domain), xrc, handle, srqn, ring, memory, record, ended: false })
    }

    fn open(&self) -> &Arc<Open> {
        self.domain.open()
    }

    pub(crate) fn is_of(&self, open: &Arc<Open>) -> bool {
        Arc::ptr_eq(self.open(), open)
    }

    pub(crate) fn is_xrc(&self) -> bool {
        self.xrc.is_some()
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    pub(crate) fn ring(&self) -> &Arc<SharedRing> {
        &self.ring
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let _turnover = self.open().turnover();
        let body = DestroySrq { srq: U32::new(self.handle), reserved: Reserved::ZERO };
        let result = self.open().end(&body, &[&self.memory, &self.record]);
        if let Some(xrc) = &self.xrc {
            xrc.cq.detach_xrc(self.srqn);
        }
        self.open().forget(ObjectKind::Srq, self.handle);
        result
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}

/// A shared receive queue (`ibv_srq`), of queue pairs ([`QpInit::srq`](crate::QpInit::srq)) or of an XRC domain.
#[derive(Debug)]
pub struct Srq(Arc<Shared>);

impl Srq {
    pub(crate) fn new(domain: &Arc<Domain>, init: &SrqInit, xrc: Option<XrcPart>) -> Result<Self> {
        Ok(Self(Arc::new(Shared::new(domain, init, xrc)?)))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Its number, as events have it, and as the other side of XRC connections names it (`ibv_get_srq_num`).
    pub fn srqn(&self) -> u32 {
        self.0.srqn
    }

    /// Posts a receive request (`ibv_post_srq_recv`). Those that the HCA has taken come back with completions, or
    /// with the end or reset of the queue pair that took them.
    ///
    /// # Errors
    /// The queue is full (`ENOMEM`); too many pieces, or a piece of 2 GiB or more (`EINVAL`); the device is lost.
    pub fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        self.0.open().loss().check()?;
        self.0.ring.post(std::slice::from_ref(wr)).1
    }

    /// Posts receive requests, all at once.
    ///
    /// # Errors
    /// As [`Srq::post_recv`]; requests before the refused one are posted.
    pub fn post_recv_list(&self, wrs: &[RecvWr<'_>]) -> std::result::Result<(), BadWr> {
        self.0.open().loss().check().map_err(|error| BadWr { index: 0, error })?;
        let (index, result) = self.0.ring.post(wrs);
        result.map_err(|error| BadWr { index, error })
    }

    /// Asks for an event when fewer than `limit` requests are posted (`ibv_modify_srq` with `IBV_SRQ_LIMIT`); once
    /// for each call. 0: for none. The size can't be changed.
    ///
    /// # Errors
    /// The limit is more than the queue holds (`EINVAL`); the device is lost.
    pub fn arm_limit(&self, limit: u32) -> Result<()> {
        let body = ModifySrq {
            srq: U32::new(self.0.handle),
            attr_mask: SrqAttrMask::LIMIT,
            limit: U32::new(limit),
            reserved: Reserved::ZERO,
        };
        self.0.open().call(&body).map(|_| ())
    }

    /// How it is (`ibv_query_srq`).
    ///
    /// # Errors
    /// The device is lost.
    pub fn query(&self) -> Result<SrqAttr> {
        let body = QuerySrq { srq: U32::new(self.0.handle), reserved: Reserved::ZERO };
        let answer = self.0.open().call(&body)?;
        Ok(SrqAttr {
            max_wr: answer.max_wr.get(),
            max_sge: answer.max_sge.get(),
            srq_limit: answer.limit.get(),
        })
    }

    /// Ends it (`ibv_destroy_srq`): its events that nobody has taken are gone then. Waits until those that were taken
    /// are acknowledged, which dropping it does not.
    ///
    /// # Errors
    /// Queue pairs still use it (`EBUSY`): then it ends with the last of them. The HCA doesn't give it back: its
    /// memory is then kept aside.
    pub fn destroy(self) -> Result<()> {
        match Arc::into_inner(self.0) {
            Some(mut shared) => {
                let (open, handle) = (Arc::clone(shared.open()), shared.handle);
                open.after_acks(ObjectKind::Srq, handle, || shared.end())
            }
            None => Err(Error::Busy("the SRQ")),
        }
    }
}
