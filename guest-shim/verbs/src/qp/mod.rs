//! Queue pairs.

mod attr;

pub use attr::{AhAttr, AltPath, Grh, MigState, QpAttr, QpCap, QpInit, QpState, RtrAttr, RtsAttr};

use crate::access::Access;
use crate::error::{Error, Result};
use crate::wr::{RecvWr, SendWr};

/// A list of requests was posted up to one that was refused.
#[derive(Debug, thiserror::Error)]
#[error("request {index} of the list: {error}")]
pub struct BadWr {
    /// Place of the refused request in the list, from 0: so many were posted.
    pub index: usize,
    /// Why it was refused.
    #[source]
    pub error: Error,
}

/// A reliably connected queue pair (`ibv_qp`).
#[derive(Debug)]
pub struct Qp {}

impl Qp {
    /// Its number, as completions, events and the other side have it.
    pub fn qpn(&self) -> u32 {
        unimplemented!()
    }

    /// What it can hold, at least what was asked for.
    pub fn cap(&self) -> QpCap {
        unimplemented!()
    }

    /// Changes it (`ibv_modify_qp`). The attributes that a transition needs and allows are those of the manual
    /// page. A change to [`QpState::Reset`] takes its completions out of the CQs.
    ///
    /// # Errors
    /// The transition isn't one, lacks attributes or has some too many, or a value is none (`EINVAL`); nothing
    /// has changed then. The device is lost.
    pub fn modify(&self, _attr: &QpAttr) -> Result<()> {
        unimplemented!()
    }

    /// RESET to INIT: on a port, with the first P_Key, for such remote operations.
    ///
    /// # Errors
    /// As [`Qp::modify`].
    pub fn to_init(&self, _port_num: u8, _access: Access) -> Result<()> {
        unimplemented!()
    }

    /// INIT to RTR.
    ///
    /// # Errors
    /// As [`Qp::modify`].
    pub fn to_rtr(&self, _attr: RtrAttr) -> Result<()> {
        unimplemented!()
    }

    /// RTR to RTS.
    ///
    /// # Errors
    /// As [`Qp::modify`].
    pub fn to_rts(&self, _attr: RtsAttr) -> Result<()> {
        unimplemented!()
    }

    /// How it is (`ibv_query_qp`), as the HCA has it.
    ///
    /// # Errors
    /// The device is lost.
    pub fn query(&self) -> Result<QpAttr> {
        unimplemented!()
    }

    /// Posts a send request (`ibv_post_send`).
    ///
    /// # Errors
    /// The queue is full (`ENOMEM`); the queue pair was never taken to RTS; too many pieces, too much inline
    /// data, or a piece of 2 GiB or more (`EINVAL`); the device is lost.
    pub fn post_send(&self, _wr: &SendWr<'_>) -> Result<()> {
        unimplemented!()
    }

    /// Posts send requests, with one doorbell for all.
    ///
    /// # Errors
    /// As [`Qp::post_send`]; requests before the refused one are posted.
    pub fn post_send_list(&self, _wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        unimplemented!()
    }

    /// Posts a receive request (`ibv_post_recv`).
    ///
    /// # Errors
    /// The queue is full (`ENOMEM`); the queue pair is in RESET; too many pieces, or a piece of 2 GiB or more
    /// (`EINVAL`); the device is lost.
    pub fn post_recv(&self, _wr: &RecvWr<'_>) -> Result<()> {
        unimplemented!()
    }

    /// Posts receive requests, all at once.
    ///
    /// # Errors
    /// As [`Qp::post_recv`]; requests before the refused one are posted.
    pub fn post_recv_list(&self, _wrs: &[RecvWr<'_>]) -> std::result::Result<(), BadWr> {
        unimplemented!()
    }

    /// Ends it (`ibv_destroy_qp`), as dropping it does. Its completions are taken out of the CQs, and its events
    /// that nobody has taken are gone.
    ///
    /// # Errors
    /// The HCA doesn't give it back: its memory is then kept aside.
    pub fn destroy(self) -> Result<()> {
        unimplemented!()
    }
}
