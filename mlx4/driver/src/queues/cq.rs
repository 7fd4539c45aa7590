//! A completion queue that this process polls.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_pci::DoorbellKind;
use mlx4_queue::geometry::CqGeometry;
use mlx4_queue::{Completion, CompletionQueue as Ring, Notify, Place, PostedReceive, PostedSend, WorkQueues};

use super::memory::{Bell, Memory};
use super::qp::Work;
use super::srq::SharedRing;
use crate::cq::{Cq, CqConfig, CqState};
use crate::error::{Error, Result};
use crate::object::Uar;
use crate::registry::Registry;
use crate::shared::Shared;

type CqRing = Ring<Arc<Memory>, Bell>;

/// The ring of a completion queue; its queue pairs know it too, to clean it of theirs.
pub(super) struct Poller {
    ring: Mutex<CqRing>,
    queues: Queues,
}

/// The queues that requests are posted to, by number.
struct Queues {
    pairs: Arc<Registry<Work>>,
    shared: Arc<Registry<SharedRing>>,
}

impl Poller {
    fn ring(&self) -> MutexGuard<'_, CqRing> {
        // A panic while polling leaves the indexes as they are.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what is left of a shared receive queue of extended connections that is gone.
    pub(super) fn clean_shared(&self, srqn: u32) {
        self.ring().clean_xrc(srqn);
    }

    /// Takes out what is left of a queue pair that the device has reset.
    pub(super) fn clean(&self, qpn: u32, work: &Work) {
        self.ring().clean(qpn, |cqe| {
            if !cqe.owner.is_send() {
                work.dropped(cqe.wqe_index.get());
            }
        });
    }
}

/// Finds the queues that completions are of. Most follow one of the same queue pair.
struct Resolver<'a> {
    queues: &'a Queues,
    last: Option<Arc<Work>>,
}

impl Resolver<'_> {
    fn work(&mut self, qpn: u32) -> Option<&Work> {
        if self.last.as_ref().is_none_or(|last| last.qpn() != qpn) {
            self.last = self.queues.pairs.get(qpn).filter(|work| work.qpn() == qpn);
        }
        self.last.as_deref()
    }
}

impl WorkQueues for Resolver<'_> {
    fn send_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedSend> {
        self.work(qpn)?.send_completed(wqe_index)
    }

    fn receive_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedReceive> {
        self.work(qpn)?.receive_completed(wqe_index)
    }

    fn xrc_completed(&mut self, srqn: u32, wqe_index: u16) -> Option<PostedReceive> {
        self.queues.shared.get(srqn)?.completed(wqe_index)
    }
}

/// A completion queue in memory of the driver.
///
/// Its queue pairs must be destroyed before it.
pub struct CompletionQueue {
    cq: Cq,
    /// The record, and the ring until it is resized.
    memory: Arc<Memory>,
    /// The ring since it was resized.
    resized: Mutex<Option<Arc<Memory>>>,
    shared: Arc<Shared>,
    poller: Arc<Poller>,
}

impl CompletionQueue {
    /// `notify` is called for each completion event, from a thread of the driver's: it must be quick.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        completions: u32,
        uar: &Uar,
        vector: usize,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let geometry = geometry(shared, completions)?;
        let number = shared.numbers.cqs.take()?;
        let doorbell = uar.doorbell(DoorbellKind::Arm(number.get()))?;
        let memory = Memory::new(shared.device.dma(), geometry.bytes() as usize)?;
        let place = |offset| Place { memory: Arc::clone(&memory), offset };
        let record = place(memory.record_offset());
        let mut ring = Ring::new(place(0), record, geometry, number.get(), Bell(doorbell))?;
        ring.reset();
        let sequence = ring.sequence();
        let notify = Box::new(move || {
            sequence.event_taken();
            notify();
        });
        let pages = memory.pages();
        let record = memory.record();
        let log2_entries = geometry.log2_entries();
        let ring_pages = Memory::ring(&pages);
        let ignore_overrun = false;
        let config = CqConfig { log2_entries, ring: ring_pages, record, uar, ignore_overrun, vector };
        let eqns = &shared.own_completion_eqns;
        let cq = memory.unless_kept(Cq::new(shared, number, &config, eqns, notify))?;
        let queues = Queues { pairs: Arc::clone(&shared.queues), shared: Arc::clone(&shared.shared_rings) };
        let poller = Arc::new(Poller { ring: Mutex::new(ring), queues });
        let (resized, shared) = (Mutex::new(None), Arc::clone(shared));
        Ok(Self { cq, memory, resized, shared, poller })
    }

    /// The queue as the device has it.
    pub fn object(&self) -> &Cq {
        &self.cq
    }

    pub(super) fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// Takes completions, at most `most`, and hands each on. Returns how many there were. `each` may post, but
    /// neither poll nor arm this queue.
    ///
    /// # Errors
    /// The device has written one that can't be; it is passed over.
    pub fn poll(&self, most: usize, mut each: impl FnMut(Completion)) -> Result<usize> {
        let mut ring = self.poller.ring();
        let mut resolver = Resolver { queues: &self.poller.queues, last: None };
        let mut count = 0;
        let mut result = Ok(());
        while count < most {
            match ring.poll(&mut resolver) {
                Some(Ok(completion)) => each(completion),
                Some(Err(error)) => result = Err(Error::from(error)),
                None => break,
            }
            count += 1;
            if result.is_err() {
                break;
            }
        }
        if count != 0 {
            ring.commit();
        }
        result.map(|()| count)
    }

    /// Asks for an event; if a completion is there that wasn't polled, the event comes at once.
    pub fn arm(&self, notify: Notify) {
        self.poller.ring().arm(notify);
    }

    /// Has room for at least so many completions from now on. Nothing is lost, and others may poll meanwhile.
    ///
    /// # Errors
    /// More are unread than that, no memory is left, or the device refuses it: the queue is as before. If the
    /// error [leaves it open](Error::leaves_open), or the device hasn't moved the queue as it should, the queue is
    /// lost.
    pub fn resize(&self, completions: u32) -> Result<()> {
        let geometry = geometry(&self.shared, completions)?;
        let mut resized = self.resized.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = Memory::new(self.shared.device.dma(), geometry.bytes() as usize)?;
        let place = Place { memory: Arc::clone(&memory), offset: 0 };
        if let Err(error) = self.poller.ring().prepare_resize(place, geometry) {
            Memory::release(memory);
            return Err(error.into());
        }
        let pages = memory.pages();
        if let Err(error) = self.cq.resize(geometry.log2_entries(), &Memory::ring(&pages)) {
            if !error.leaves_open() {
                self.poller.ring().cancel_resize();
                Memory::release(memory);
            }
            return Err(error);
        }
        self.poller.ring().finish_resize()?;
        // The first ring is beside the record, and stays with it.
        if let Some(before) = resized.replace(memory) {
            Memory::release(before);
        }
        Ok(())
    }

    /// How it is.
    ///
    /// # Errors
    /// The device doesn't tell.
    pub fn query(&self) -> Result<CqState> {
        self.cq.query()
    }

    /// Takes the queue back and frees its memory.
    ///
    /// # Errors
    /// The device doesn't give it back, or queue pairs still use it: the memory stays mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        self.destroy_unused()?.map_or(Ok(()), |_lost| Err(Error::Used("completion queue")))
    }

    /// As [`CompletionQueue::destroy`]; but if queue pairs still use it, it stays as it is, and is returned.
    ///
    /// # Errors
    /// The device doesn't give it back, and the memory stays mapped until the next reset.
    pub fn destroy_unused(self) -> Result<Option<Self>> {
        if Arc::strong_count(&self.poller) > 1 {
            return Ok(Some(self));
        }
        self.cq.destroy()?;
        drop(self.poller);
        let resized = self.resized.into_inner().unwrap_or_else(PoisonError::into_inner);
        resized.into_iter().chain([self.memory]).for_each(Memory::release);
        Ok(None)
    }
}

fn geometry(shared: &Shared, completions: u32) -> Result<CqGeometry> {
    let geometry = CqGeometry::new(completions, &shared.caps.queues)?;
    Ok(geometry.with_wide_entries(shared.layout.profile.wide_cqes))
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").field("cq", &self.cq).finish_non_exhaustive()
    }
}
