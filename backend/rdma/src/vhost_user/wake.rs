//! Wakes the worker threads of a connection for what doesn't come from the guest: events to deliver, and the end.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use paraverbs_tenant::Notify;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// Worker threads of a connection.
pub(crate) const WORKERS: usize = 3;
/// The worker of the event queue and the completion vectors.
pub(crate) const EVENT_WORKER: usize = 1;

/// The bits of asynchronous events and of MADs; that of a vector is above them.
const EVENTS: u32 = 1;
const MADS: u32 = 2;
const FIRST_VECTOR: u32 = 4;

/// What there is to do for the worker of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due(u32);

impl Due {
    /// Whether there are asynchronous events.
    pub(crate) fn events(self) -> bool {
        self.0 & EVENTS != 0
    }

    /// Whether there are MADs left in their queue.
    pub(crate) fn mads(self) -> bool {
        self.0 & MADS != 0
    }

    /// Whether there are completion events of a vector.
    pub(crate) fn completions(self, vector: u16) -> bool {
        self.0 & vector_bit(vector) != 0
    }
}

fn vector_bit(vector: u16) -> u32 {
    FIRST_VECTOR.checked_shl(u32::from(vector)).unwrap_or(0)
}

/// An eventfd for each worker, and what the worker of events has to do.
#[derive(Debug)]
pub(crate) struct Wake {
    events: [(EventConsumer, EventNotifier); WORKERS],
    due: AtomicU32,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        let event = || new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC);
        Ok(Self { events: [event()?, event()?, event()?], due: AtomicU32::new(0) })
    }

    /// What a worker waits for.
    pub(crate) fn consumer(&self, worker: usize) -> Option<&EventConsumer> {
        self.events.get(worker).map(|(consumer, _)| consumer)
    }

    /// Wakes all workers.
    pub(crate) fn all(&self) {
        for (_, notifier) in &self.events {
            // Only a full counter fails, and that wakes too.
            let _full = notifier.notify();
        }
    }

    /// Takes what there is to do. What comes later wakes the worker again.
    pub(crate) fn take(&self) -> Due {
        if let Some(consumer) = self.consumer(EVENT_WORKER) {
            // Empty if somebody was faster.
            let _empty = consumer.consume();
        }
        Due(self.due.swap(0, Ordering::AcqRel))
    }

    /// There are MADs left in their queue.
    pub(crate) fn mads(&self) {
        self.mark(MADS);
    }

    fn mark(&self, bit: u32) {
        if self.due.fetch_or(bit, Ordering::AcqRel) == 0
            && let Some((_, notifier)) = self.events.get(EVENT_WORKER)
        {
            let _full = notifier.notify();
        }
    }
}

impl Notify for Wake {
    fn events(&self) {
        self.mark(EVENTS);
    }

    fn completions(&self, vector: u16) {
        self.mark(vector_bit(vector));
    }
}
