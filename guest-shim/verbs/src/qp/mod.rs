//! Queue pairs.

mod attr;
mod wire;
mod work;

pub use attr::{AhAttr, AltPath, Grh, MigState, QpAttr, QpCap, QpInit, QpState, RtrAttr, RtsAttr};

pub(crate) use work::Work;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_queue::geometry::{QpLayout, ReceiveGeometry, SendGeometry, SendSize, Service};
use virtio_rdma::request::queue_pair::{
    CreateQp, DestroyQp, ModifyQp, QpCap as WireCap, QpCreated, QpFlags, QpType, QueryQp,
};
use virtio_rdma::{Reserved, U32, U64};
use zerocopy::FromZeros;

use crate::access::Access;
use crate::arena::{Block, PAGE};
use crate::cq::{Queue, RECORD_BYTES};
use crate::device::{Bell, ObjectKind, Open};
use crate::error::{Error, Result};
use crate::pd::Domain;
use crate::wr::{RecvWr, SendWr};

/// A list of requests was posted up to one that was refused.
#[derive(Debug, thiserror::Error)]
#[error("request {index} of the list: {error}")]
pub struct BadWr {
    /// Place of the refused request in the list, from 0: so many were posted.
    pub index: usize,
    /// Why it was refused.
    pub error: Error,
}

/// A reliably connected queue pair (`ibv_qp`).
#[derive(Debug)]
pub struct Qp {
    domain: Arc<Domain>,
    /// Of sends and of receives.
    cqs: [Arc<Queue>; 2],
    handle: u32,
    cap: QpCap,
    work: Arc<Work>,
    /// What this side has taken it to; the HCA may have gone to an error state since.
    state: Mutex<QpState>,
    ring: Block,
    record: Block,
    ended: bool,
}

/// The rings that hold at least what is asked for, and what they hold.
fn layout(open: &Open, cap: &QpCap) -> Result<(QpLayout, QpCap)> {
    let (most_wr, most_sge) = (open.attributes().max_qp_wr.get(), open.attributes().max_sge.get());
    let most_inline = open.config().format.max_inline_bytes.get().into();
    for (what, asked, most) in [
        ("max_send_wr", cap.max_send_wr, most_wr),
        ("max_recv_wr", cap.max_recv_wr, most_wr),
        ("max_send_sge", cap.max_send_sge, most_sge),
        ("max_recv_sge", cap.max_recv_sge, most_sge),
        ("max_inline_data", cap.max_inline_data, most_inline),
    ] {
        if asked > most {
            return Err(Error::Invalid(format!("{what} of {asked} exceeds the device's {most}")));
        }
    }
    let size = SendSize { requests: cap.max_send_wr, sges: cap.max_send_sge, inline: cap.max_inline_data };
    let send = SendGeometry::new(Service::Rc, size, open.limits())?;
    let receive = ReceiveGeometry::new(cap.max_recv_wr, cap.max_recv_sge, open.limits())?;
    let holds = QpCap {
        max_send_wr: send.requests().min(most_wr),
        max_recv_wr: receive.entries().min(most_wr),
        max_send_sge: send.max_sges().min(most_sge),
        max_recv_sge: receive.max_sges().min(most_sge),
        max_inline_data: send.max_inline().min(most_inline),
    };
    Ok((QpLayout { send, receive: Some(receive) }, holds))
}

/// log2 of a power of two.
fn log2(power: u32) -> u8 {
    // At most 31.
    #[expect(clippy::cast_possible_truncation, reason = "at most 31")]
    let log2 = power.trailing_zeros() as u8;
    log2
}

impl Qp {
    pub(crate) fn new(domain: &Arc<Domain>, init: &QpInit<'_>) -> Result<Self> {
        let open = domain.open();
        open.loss().check()?;
        let cqs = [Arc::clone(init.send_cq.queue()), Arc::clone(init.recv_cq.queue())];
        if cqs.iter().any(|cq| !cq.is_of(open)) {
            return Err(Error::Invalid("a CQ is of another context than the protection domain".into()));
        }
        let (layout, cap) = layout(open, &init.cap)?;
        let ring = open.arena().allocate(layout.bytes(), PAGE)?;
        let record = open.arena().allocate(RECORD_BYTES, RECORD_BYTES)?;
        let mut body = create(&layout, &cap);
        body.pd = U32::new(domain.handle());
        (body.send_cq, body.recv_cq) = (U32::new(cqs[0].handle()), U32::new(cqs[1].handle()));
        body.record = U64::new(record.guest_address());
        let (QpCreated { qp, qpn, send }, uar) = open.with_uar(|uar| {
            open.make(&CreateQp { uar: U32::new(uar.handle()), ..body }, &[&ring, &record])
        })?;
        let (handle, qpn) = (qp.get(), qpn.get());
        let work = Work::new(qpn, &layout, &ring, &record, Bell::new(&uar, &send)?, init.sq_sig_all)?;
        let turnover = open.turnover();
        open.watch(ObjectKind::Qp, handle, qpn);
        cqs.iter().for_each(|cq| cq.attach(&work));
        drop(turnover);
        let state = Mutex::new(QpState::Reset);
        Ok(Self { domain: Arc::clone(domain), cqs, handle, cap, work, state, ring, record, ended: false })
    }

    fn open(&self) -> &Arc<Open> {
        self.domain.open()
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let _turnover = self.open().turnover();
        self.work.set_state(QpState::Reset);
        let body = DestroyQp { qp: U32::new(self.handle), reserved: Reserved::ZERO };
        let result = self.open().end(&body, &[&self.ring, &self.record]);
        self.cqs.iter().for_each(|cq| cq.detach(self.qpn()));
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

    /// What it can hold, at least what was asked for.
    pub fn cap(&self) -> QpCap {
        self.cap
    }

    /// Changes it (`ibv_modify_qp`). The attributes that a transition needs and allows are those of the manual
    /// page. A change to [`QpState::Reset`] takes its completions out of the CQs.
    ///
    /// # Errors
    /// The transition isn't one, lacks attributes or has some too many, or a value is none (`EINVAL`); nothing
    /// has changed then. The device is lost.
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
        let (attr_mask, attributes) = attr.to_wire();
        let result = self.open().call(&ModifyQp { qp: U32::new(self.handle), attr_mask, attributes });
        if result.is_ok() {
            *state = to;
            if to == QpState::Reset {
                self.cqs.iter().for_each(|cq| cq.clean(self.qpn()));
            }
        }
        self.work.set_state(*state);
        result.map(|_| ())
    }

    /// RESET to INIT: on a port, with the first P_Key, for such remote operations.
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

    /// INIT to RTR.
    ///
    /// # Errors
    /// As [`Qp::modify`].
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
        let answer = self.open().call(&QueryQp { qp: U32::new(self.handle), reserved: Reserved::ZERO })?;
        QpAttr::of_wire(&answer.attributes)
    }

    /// Posts a send request (`ibv_post_send`).
    ///
    /// # Errors
    /// The queue is full (`ENOMEM`); the queue pair was never taken to RTS; too many pieces, too much inline
    /// data, or a piece of 2 GiB or more (`EINVAL`); the device is lost.
    pub fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        self.open().loss().check()?;
        self.work.post_send(std::slice::from_ref(wr)).1
    }

    /// Posts send requests, with one doorbell for all.
    ///
    /// # Errors
    /// As [`Qp::post_send`]; requests before the refused one are posted.
    pub fn post_send_list(&self, wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        self.open().loss().check().map_err(|error| BadWr { index: 0, error })?;
        let (index, result) = self.work.post_send(wrs);
        result.map_err(|error| BadWr { index, error })
    }

    /// Posts a receive request (`ibv_post_recv`).
    ///
    /// # Errors
    /// The queue is full (`ENOMEM`); the queue pair is in RESET; too many pieces, or a piece of 2 GiB or more
    /// (`EINVAL`); the device is lost.
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

    /// Ends it (`ibv_destroy_qp`), as dropping it does. Its completions are taken out of the CQs, and its events
    /// that nobody has taken are gone.
    ///
    /// # Errors
    /// The HCA doesn't give it back: its memory is then kept aside.
    pub fn destroy(mut self) -> Result<()> {
        self.end()
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

/// The request for an RC queue pair, without the objects that it names.
fn create(layout: &QpLayout, cap: &QpCap) -> CreateQp {
    let receive = layout.receive.map_or((0, 0), |receive| (log2(receive.entries()), log2(receive.stride())));
    CreateQp {
        flags: QpFlags::NONE,
        qp_type: QpType::RC,
        log2_send_wqes: log2(layout.send.entries()),
        log2_send_stride: log2(layout.send.stride()),
        log2_recv_wqes: receive.0,
        log2_recv_stride: receive.1,
        cap: WireCap {
            max_send_wr: U32::new(cap.max_send_wr),
            max_recv_wr: U32::new(cap.max_recv_wr),
            max_send_sge: U32::new(cap.max_send_sge),
            max_recv_sge: U32::new(cap.max_recv_sge),
            max_inline_data: U32::new(cap.max_inline_data),
        },
        ..CreateQp::new_zeroed()
    }
}
