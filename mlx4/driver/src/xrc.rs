//! XRC domains: which shared receive queues the other ends of which queue pairs may fill.
//!
//! The queue pair that is the target of an extended connection has nothing of its own but its connection: domain,
//! completion queue and (always empty) send queue come from its XRC domain here, where no guest reaches them.

use std::sync::{Arc, PoisonError};

use crate::cq::Cq;
use crate::error::{Error, Result};
use crate::numbers::Number;
use crate::object::{Pd, Uar};
use crate::queues::{CompletionQueue, EmptyQueue};
use crate::shared::Shared;

/// Bit of a queue pair's number that tells the device of the target of an extended connection.
pub const XRC_TARGET: u32 = mlx4_queue::XRC_TARGET;

/// Completions that the queue of a domain has room for, where none ever comes.
const COMPLETIONS: u32 = 1;

/// An XRC domain.
#[derive(Debug)]
pub struct Xrcd {
    number: Arc<Number>,
    pd: Pd,
    uar: Uar,
    cq: CompletionQueue,
    queue: EmptyQueue,
}

/// An object's hold on its XRC domain.
pub(crate) type XrcdUse = Arc<Number>;

impl Xrcd {
    pub(crate) fn new(shared: &Arc<Shared>) -> Result<Self> {
        let numbers = shared.numbers.xrcds.as_ref().ok_or(Error::Exhausted("XRC domain"))?;
        let number = Arc::new(numbers.take()?);
        let (pd, uar) = (Pd::new(shared)?, shared.xrc_uar()?);
        let queue = EmptyQueue::new(shared)?;
        let cq = CompletionQueue::new(shared, COMPLETIONS, &uar, 0, || {});
        match cq {
            Ok(cq) => Ok(Self { number, pd, uar, cq, queue }),
            Err(error) => {
                queue.release()?;
                Err(error)
            }
        }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        // There are 2^16 at most.
        u16::try_from(self.number.get()).unwrap_or(0)
    }

    pub(crate) fn held(&self) -> XrcdUse {
        Arc::clone(&self.number)
    }

    pub(crate) fn pd(&self) -> &Pd {
        &self.pd
    }

    pub(crate) fn uar(&self) -> &Uar {
        &self.uar
    }

    pub(crate) fn cq(&self) -> &Cq {
        self.cq.object()
    }

    pub(crate) fn queue(&self) -> &EmptyQueue {
        &self.queue
    }

    /// Ends the domain. Its queue pairs and shared receive queues must be gone.
    ///
    /// # Errors
    /// They aren't, or the device doesn't give its completion queue back: that is lost until the next reset.
    pub fn destroy(self) -> Result<()> {
        self.destroy_unused()?.map_or(Ok(()), |_lost| Err(Error::Used("XRC domain")))
    }

    /// As [`Xrcd::destroy`]; but if something is in the domain, it stays as it is, and is returned.
    ///
    /// # Errors
    /// The device doesn't give its completion queue back.
    pub fn destroy_unused(self) -> Result<Option<Self>> {
        if Arc::strong_count(&self.number) > 1 {
            return Ok(Some(self));
        }
        self.cq.destroy()?;
        self.queue.release().map(|()| None)
    }
}

impl Shared {
    /// The UAR page of all targets, whose doorbells nobody rings.
    fn xrc_uar(&self) -> Result<Uar> {
        let mut page = self.xrc_uar.lock().unwrap_or_else(PoisonError::into_inner);
        match &*page {
            Some(uar) => Ok(uar.clone()),
            None => Ok(page.insert(Uar::new(self)?).clone()),
        }
    }
}
