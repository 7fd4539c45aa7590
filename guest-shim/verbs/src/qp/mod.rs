//! Queue pairs.

mod attr;
mod create;
mod multicast;
mod wire;
mod work;

pub use attr::{AhAttr, AltPath, Grh, MigState, QpAttr, QpCap, QpInit, QpState, QpType, RtrAttr, RtsAttr};

pub(crate) use work::{Work, with_pieces};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_rdma::request::queue_pair::{CreateQp, DestroyQp, ModifyQp, QpCreated, QueryQp};
use virtio_rdma::{Reserved, U32, U64};

use self::multicast::Groups;
use self::work::To;
use crate::access::Access;
use crate::arena::{Block, PAGE};
use crate::cq::{Queue, RECORD_BYTES};
use crate::device::{Bell, ObjectKind, Open};
use crate::error::{Error, Result};
use crate::mw::{Mw, MwBind, MwType, inc_rkey};
use crate::pd::Domain;
use crate::srq::Shared;
use crate::wr::{RecvWr, SendWr, UdDest};

/// A list of requests was posted up to one that was refused.
#[derive(Debug, thiserror::Error)]
#[error("request {index} of the list: {error}")]
pub struct BadWr {
    /// Place of the refused request in the list, from 0: so many were posted.
    pub index: usize,
    /// Why it was refused.
    pub error: Error,
}

/// A queue pair (`ibv_qp`).
#[derive(Debug)]
pub struct Qp {
    domain: Arc<Domain>,
    /// Of sends and of receives.
    cqs: [Arc<Queue>; 2],
    _srq: Option<Arc<Shared>>,
    handle: u32,
    qp_type: QpType,
    cap: QpCap,
    work: Arc<Work>,
    /// What this side has taken it to; the HCA may have gone to an error state since.
    state: Mutex<QpState>,
    groups: Mutex<Groups>,
    ring: Block,
    record: Option<Block>,
    ended: bool,
}

/// Changes a queue pair.
pub(crate) fn modify(open: &Open, handle: u32, attr: &QpAttr) -> Result<()> {
    let (attr_mask, attributes) = attr.to_wire();
    open.call(&ModifyQp { qp: U32::new(handle), attr_mask, attributes }).map(|_| ())
}

/// How a queue pair is.
pub(crate) fn query(open: &Open, handle: u32) -> Result<QpAttr> {
    let answer = open.call(&QueryQp { qp: U32::new(handle), reserved: Reserved::ZERO })?;
    QpAttr::of_wire(&answer.attributes)
}

impl Qp {
    pub(crate) fn new(domain: &Arc<Domain>, init: &QpInit<'_>) -> Result<Self> {
        let open = domain.open();
        open.loss().check()?;
        create::check(open, init)?;
        let (layout, cap) = create::layout(open, init)?;
        let ring = open.arena().allocate(layout.bytes(), PAGE)?;
        let record = layout.receive.map(|_| open.arena().allocate(RECORD_BYTES, RECORD_BYTES)).transpose()?;
        let mut body = create::request(init, &layout, &cap);
        body.pd = U32::new(domain.handle());
        body.record = U64::new(record.as_ref().map_or(0, Block::guest_address));
        let memory: Vec<&Block> = std::iter::once(&ring).chain(&record).collect();
        let (QpCreated { qp, qpn, send }, uar) =
            open.with_uar(|uar| open.make(&CreateQp { uar: U32::new(uar.handle()), ..body }, &memory))?;
        let (handle, qpn) = (qp.get(), qpn.get());
        let srq = init.srq.map(|srq| Arc::clone(srq.shared()));
        let receives = work::receives(&layout, &ring, record.as_ref(), srq.as_ref())?;
        let work = Work::new(qpn, &layout, &ring, receives, Bell::new(&uar, &send)?, init.sq_sig_all)?;
        let cqs = [Arc::clone(init.send_cq.queue()), Arc::clone(init.recv_cq.queue())];
        let turnover = open.turnover();
        open.watch(ObjectKind::Qp, handle, qpn);
        cqs.iter().for_each(|cq| cq.attach(&work));
        drop(turnover);
        Ok(Self {
            domain: Arc::clone(domain),
            cqs,
            _srq: srq,
            handle,
            qp_type: init.qp_type,
            cap,
            work,
            state: Mutex::new(QpState::Reset),
            groups: Mutex::default(),
            ring,
            record,
            ended: false,
        })
    }

    fn open(&self) -> &Arc<Open> {
        self.domain.open()
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        self.leave_groups();
        let _turnover = self.open().turnover();
        self.work.set_state(QpState::Reset);
        let body = DestroyQp { qp: U32::new(self.handle), reserved: Reserved::ZERO };
        let memory: Vec<&Block> = std::iter::once(&self.ring).chain(&self.record).collect();
        let result = self.open().end(&body, &memory);
        self.cqs.iter().for_each(|cq| cq.detach(self.qpn()));
        self.work.forget_binds();
        self.open().forget(ObjectKind::Qp, self.handle);
        result
    }

    fn lock_state(&self) -> MutexGuard<'_, QpState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, as completions, events and the other side have it.
    pub fn qpn(&self) -> u32 {
        self.work.qpn()
    }

    /// Its type.
    pub fn qp_type(&self) -> QpType {
        self.qp_type
    }

    /// What it can hold, at least what was asked for.
    pub fn cap(&self) -> QpCap {
        self.cap
    }

    /// Changes it (`ibv_modify_qp`). The attributes that a transition needs and allows are those of the manual
    /// page. A change to [`QpState::Reset`] takes its completions out of the CQs.
    ///
    /// A queue pair that is connected within its port to another guest's goes to ERR, with
    /// [`EventType::QpFatal`](crate::EventType::QpFatal), when that guest connects its own to a third.
    ///
    /// # Errors
    /// The transition isn't one, lacks attributes or has some too many, or a value is none (`EINVAL`); a Q_Key has
    /// the top bit set, which is not for guests (`EPERM`); within the port, the queue pair that it shall be connected
    /// to is another guest's and connected to a third (`EADDRINUSE`): nothing has changed then. The device is lost.
    pub fn modify(&self, attr: &QpAttr) -> Result<()> {
        let mut state = self.lock_state();
        let to = attr.qp_state.unwrap_or(*state);
        if *state == QpState::Reset && to != QpState::Reset {
            self.work.reset();
        }
        if to == QpState::Reset {
            // Nothing is posted any more that the HCA would see.
            self.work.set_state(to);
        }
        let result = modify(self.open(), self.handle, attr);
        if result.is_ok() {
            *state = to;
            if to == QpState::Reset {
                self.cqs.iter().for_each(|cq| cq.clean(self.qpn()));
                self.work.forget_binds();
            }
        }
        self.work.set_state(*state);
        result
    }

    /// RESET to INIT, of connected types: on a port, with the first P_Key, for such remote operations.
    ///
    /// # Errors
    /// As [`Qp::modify`].
    pub fn to_init(&self, port_num: u8, access: Access) -> Result<()> {
        self.modify(&QpAttr {
            port_num: Some(port_num),
            pkey_index: Some(0),
            qp_access_flags: Some(access),
            ..QpAttr::state(QpState::Init)
        })
    }

    /// RESET to RTS, of UD: on a port, with the first P_Key, and a Q_Key with the top bit clear.
    ///
    /// # Errors
    /// As [`Qp::modify`]; a Q_Key with the top bit set (`EPERM`).
    pub fn to_datagrams(&self, port_num: u8, qkey: u32) -> Result<()> {
        self.modify(&QpAttr {
            port_num: Some(port_num),
            pkey_index: Some(0),
            qkey: Some(qkey),
            ..QpAttr::state(QpState::Init)
        })?;
        self.modify(&QpAttr::state(QpState::Rtr))?;
        self.modify(&QpAttr { sq_psn: Some(0), ..QpAttr::state(QpState::Rts) })
    }

    /// INIT to RTR, which connects it.
    ///
    /// # Errors
    /// As [`Qp::modify`]; the other end is taken (`EADDRINUSE`).
    pub fn to_rtr(&self, attr: RtrAttr) -> Result<()> {
        self.modify(&attr.into())
    }

    /// RTR to RTS.
    ///
    /// # Errors
    /// As [`Qp::modify`].
    pub fn to_rts(&self, attr: RtsAttr) -> Result<()> {
        self.modify(&attr.into())
    }

    /// How it is (`ibv_query_qp`), as the HCA has it.
    ///
    /// # Errors
    /// The device is lost.
    pub fn query(&self) -> Result<QpAttr> {
        query(self.open(), self.handle)
    }

    /// Posts a send request (`ibv_post_send`) of RC or UC.
    ///
    /// # Errors
    /// The queue is full (`ENOMEM`); the queue pair was never taken to RTS; it is of another type, or has no such
    /// operation; too many pieces, too much inline data, or a piece of 2 GiB or more (`EINVAL`); the device is lost.
    pub fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        self.open().loss().check()?;
        self.work.post_send(std::iter::once((wr, To::Peer))).1
    }

    /// Posts send requests, with one doorbell for all.
    ///
    /// # Errors
    /// As [`Qp::post_send`]; requests before the refused one are posted.
    pub fn post_send_list(&self, wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        self.post_list(wrs.iter().map(|wr| (wr, To::Peer)))
    }

    /// Posts a send request (`ibv_post_send`) of UD.
    ///
    /// # Errors
    /// As [`Qp::post_send`].
    pub fn post_send_ud(&self, wr: &SendWr<'_>, to: &UdDest<'_>) -> Result<()> {
        self.open().loss().check()?;
        self.work.post_send(std::iter::once((wr, To::of(to)))).1
    }

    /// Posts send requests of UD, with one doorbell for all.
    ///
    /// # Errors
    /// As [`Qp::post_send`]; requests before the refused one are posted.
    pub fn post_send_ud_list(&self, wrs: &[(SendWr<'_>, UdDest<'_>)]) -> std::result::Result<(), BadWr> {
        self.post_list(wrs.iter().map(|(wr, to)| (wr, To::of(to))))
    }

    /// Posts a send request (`ibv_post_send`) of XRC; `remote_srqn` is the SRQ at the other side, which counts for
    /// requests that take a receive request there.
    ///
    /// # Errors
    /// As [`Qp::post_send`].
    pub fn post_send_xrc(&self, wr: &SendWr<'_>, remote_srqn: u32) -> Result<()> {
        self.open().loss().check()?;
        self.work.post_send(std::iter::once((wr, To::Srq(remote_srqn)))).1
    }

    fn post_list<'a>(
        &self,
        wrs: impl Iterator<Item = (&'a SendWr<'a>, To)>,
    ) -> std::result::Result<(), BadWr> {
        self.open().loss().check().map_err(|error| BadWr { index: 0, error })?;
        let (index, result) = self.work.post_send(wrs);
        result.map_err(|error| BadWr { index, error })
    }

    /// Binds a window of type 1 (`ibv_bind_mw`), by a request in the send queue; returns the key that it has then.
    ///
    /// # Errors
    /// The window is of type 2 (`EINVAL`); window, region and queue pair are not of one domain (`EPERM`); as
    /// [`Qp::post_send`].
    pub fn bind_mw(&self, mw: &Mw, bind: &MwBind<'_>) -> Result<u32> {
        self.post_bind(MwType::Type1, mw, None, bind)
    }

    /// Binds a window of type 2 (`ibv_post_send` with `IBV_WR_BIND_MW`), with a key that differs from the one before
    /// in the low 8 bits ([`inc_rkey`]).
    ///
    /// # Errors
    /// The window is of type 1, or the key differs in other bits (`EINVAL`); window, region and queue pair are not of
    /// one domain (`EPERM`); as [`Qp::post_send`].
    pub fn post_bind_mw(&self, mw: &Mw, rkey: u32, bind: &MwBind<'_>) -> Result<()> {
        self.post_bind(MwType::Type2, mw, Some(rkey), bind).map(drop)
    }

    /// Binds a window with a key, or the next one; returns it.
    fn post_bind(&self, mw_type: MwType, mw: &Mw, rkey: Option<u32>, bind: &MwBind<'_>) -> Result<u32> {
        self.open().loss().check()?;
        let _alone = mw.binding();
        let rkey = rkey.unwrap_or_else(|| inc_rkey(mw.rkey()));
        mw.check(mw_type, rkey, &self.domain, bind)?;
        let (operation, bound) = mw.bind(rkey, bind);
        self.work.post_bind(bind, operation, bound)?;
        mw.set_rkey(rkey);
        Ok(rkey)
    }

    /// Posts a receive request (`ibv_post_recv`).
    ///
    /// # Errors
    /// The queue is full (`ENOMEM`); the queue pair is in RESET, or has no receive queue of its own; too many pieces,
    /// or a piece of 2 GiB or more (`EINVAL`); the device is lost.
    pub fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        self.open().loss().check()?;
        self.work.post_recv(std::slice::from_ref(wr)).1
    }

    /// Posts receive requests, all at once.
    ///
    /// # Errors
    /// As [`Qp::post_recv`]; requests before the refused one are posted.
    pub fn post_recv_list(&self, wrs: &[RecvWr<'_>]) -> std::result::Result<(), BadWr> {
        self.open().loss().check().map_err(|error| BadWr { index: 0, error })?;
        let (index, result) = self.work.post_recv(wrs);
        result.map_err(|error| BadWr { index, error })
    }

    /// Ends it (`ibv_destroy_qp`): it leaves its multicast groups; its completions are taken out of the CQs, and its
    /// events that nobody has taken are gone. Waits until those that were taken are acknowledged, which dropping it
    /// does not.
    ///
    /// # Errors
    /// The HCA doesn't give it back: its memory is then kept aside.
    pub fn destroy(mut self) -> Result<()> {
        let (open, handle) = (Arc::clone(self.open()), self.handle);
        open.after_acks(ObjectKind::Qp, handle, || self.end())
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}
