//! Completion queues.

use crate::error::Result;
use crate::wr::Wc;

/// A completion queue (`ibv_cq`).
#[derive(Debug)]
pub struct Cq {}

impl Cq {
    /// Its number, as events have it.
    pub fn cqn(&self) -> u32 {
        unimplemented!()
    }

    /// Completions that it can hold, at least as many as were asked for. If more come before they are polled it
    /// fails: [`EventType::CqErr`](crate::EventType::CqErr).
    pub fn cqe(&self) -> u32 {
        unimplemented!()
    }

    /// Takes completions into the start of `wcs` and returns how many there were (`ibv_poll_cq`).
    ///
    /// # Errors
    /// The HCA has written a completion that can't be (`EIO`), after those that were returned before; it is
    /// passed over. The device is lost.
    pub fn poll(&self, _wcs: &mut [Wc]) -> Result<usize> {
        unimplemented!()
    }

    /// Asks for one event in the channel (`ibv_req_notify_cq`) when the next completion comes, or the next one
    /// that is solicited or a failure. If a completion is there that wasn't polled, it may come at once; poll
    /// again after this, before waiting.
    ///
    /// # Errors
    /// The CQ has no channel (`EINVAL`); the device is lost.
    pub fn req_notify(&self, _solicited_only: bool) -> Result<()> {
        unimplemented!()
    }

    /// Ends it (`ibv_destroy_cq`), as dropping it does. Its events that are still in the channel are gone then.
    ///
    /// # Errors
    /// Queue pairs still use it (`EBUSY`): then it ends with the last of them. The HCA doesn't give it back: its
    /// memory is then kept aside.
    pub fn destroy(self) -> Result<()> {
        unimplemented!()
    }
}
