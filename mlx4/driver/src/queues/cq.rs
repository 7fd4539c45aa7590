//! A completion queue that this process polls.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_pci::DoorbellKind;
use mlx4_queue::geometry::CqGeometry;
use mlx4_queue::{Completion, CompletionQueue as Ring, Notify, Place, PostedReceive, PostedSend, WorkQueues};

use super::memory::{Bell, Memory};
use super::qp::Work;
use crate::cq::{Cq, CqConfig, CqState};
use crate::error::{Error, Result};
use crate::object::Uar;
use crate::registry::Registry;
use crate::shared::Shared;

type CqRing = Ring<Arc<Memory>, Bell>;

/// The ring of a completion queue; its queue pairs know it too, to clean it of theirs.
pub(super) struct Poller {
    ring: Mutex<CqRing>,
    queues: Arc<Registry<Work>>,
}

impl Poller {
    fn ring(&self) -> MutexGuard<'_, CqRing> {
        // A panic while polling leaves the indexes as they are.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Finds the queues that completions are of.
struct Resolver<'a>(&'a Registry<Work>);

impl Resolver<'_> {
    fn work(&self, qpn: u32) -> Option<Arc<Work>> {
        self.0.get(qpn).filter(|work| work.qpn() == qpn)
    }
}

impl WorkQueues for Resolver<'_> {
    fn send_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedSend> {
        self.work(qpn)?.send_completed(wqe_index)
    }

    fn receive_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedReceive> {
        self.work(qpn)?.receive_completed(wqe_index)
    }
}

/// A completion queue in memory of the driver.
///
/// Its queue pairs must be destroyed before it.
pub struct CompletionQueue {
    cq: Cq,
    memory: Arc<Memory>,
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
        let geometry = CqGeometry::new(completions, &shared.caps.queues)?;
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
        let cq = memory.unless_kept(Cq::new(shared, number, &config, notify))?;
        let poller = Poller { ring: Mutex::new(ring), queues: Arc::clone(&shared.queues) };
        Ok(Self { cq, memory, poller: Arc::new(poller) })
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
        let mut resolver = Resolver(&self.poller.queues);
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
    /// The device doesn't give it back, and the memory stays mapped until the next reset; or queue pairs still
    /// use it.
    pub fn destroy(self) -> Result<()> {
        let Some(poller) = Arc::into_inner(self.poller) else { return Err(Error::InUse(1)) };
        self.cq.destroy()?;
        drop(poller);
        Memory::release(self.memory);
        Ok(())
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").field("cq", &self.cq).finish_non_exhaustive()
    }
}
