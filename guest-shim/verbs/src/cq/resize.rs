//! A CQ moves to a ring of another size, while others poll it.

use std::sync::PoisonError;

use mlx4_queue::ResizeError;
use virtio_rdma::U32;
use virtio_rdma::request::completion::ResizeCq;

use super::{Queue, geometry, place};
use crate::arena::PAGE;
use crate::error::{Error, Result};

impl Queue {
    pub(super) fn resize(&self, cqe: u32) -> Result<()> {
        self.open.loss().check()?;
        let geometry = geometry(&self.open, cqe)?;
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if geometry == *self.lock().ring.geometry() {
            return Ok(());
        }
        let new = self.open.arena().allocate(geometry.bytes() as usize, PAGE)?;
        self.lock().ring.prepare_resize(place(&new), geometry)?;
        let body = ResizeCq { cq: U32::new(self.handle), entries: U32::new(geometry.entries()) };
        let asked = self.open.make(&body, &[&new]);
        let mut state = self.lock();
        match asked {
            Ok(_) => match state.ring.finish_resize() {
                Ok(_) => {
                    *ring = new;
                    Ok(())
                }
                Err(error) => {
                    // The device may write to either, and which one it does can't be told.
                    state.ring.cancel_resize();
                    [&new, &ring].iter().for_each(|block| block.keep());
                    self.open.loss().set("it resized a CQ without a mark in the old ring");
                    Err(error.into())
                }
            },
            Err(error) => {
                if state
                    .ring
                    .cancel_resize()
                    .is_some_and(|unused| unused.memory.address() == ring.span().address())
                {
                    // The HCA has turned to the new ring for all that: this side has followed it.
                    [&new, &ring].iter().for_each(|block| block.keep());
                    *ring = new;
                }
                Err(error)
            }
        }
    }
}

impl From<ResizeError> for Error {
    fn from(error: ResizeError) -> Self {
        match error {
            ResizeError::NoMark => Self::Hca(error.to_string()),
            other => Self::Invalid(other.to_string()),
        }
    }
}
