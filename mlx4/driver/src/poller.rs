//! Event queues for completions that have neither an interrupt nor a thread: whoever drives the device polls them.

use std::fmt;
use std::sync::{Arc, Mutex, TryLockError};

use crate::eq::{EqRing, EventReader};
use crate::handlers::CompletionHandler;

/// How completion events come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionEvents {
    /// By interrupts: each event queue has a thread that waits for its own.
    #[default]
    Interrupts,
    /// Whoever drives the device polls for them ([`EventPoller`]): for a device whose work is done in this process, by
    /// a thread that is awake anyway. Completion queues that this process polls ([`crate::CompletionQueue`]), those
    /// of the driver itself among them, have their events by an interrupt all the same.
    Polled,
}

/// An event queue.
struct Queue {
    ring: Arc<EqRing>,
    reader: Mutex<EventReader>,
}

impl Queue {
    /// Takes what there is; at most one round of the ring. True if there may be more.
    fn poll(&self, handler: &CompletionHandler) -> bool {
        if self.ring.is_empty() {
            return false;
        }
        let mut reader = match self.reader.try_lock() {
            Ok(reader) => reader,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        let all = reader.drain(|eqe| handler.take(eqe));
        !all.unwrap_or_else(|error| {
            handler.sink.refused(&error);
            true
        })
    }
}

/// Takes the events of completion queues in anybody's memory ([`crate::Cq`]), on whichever thread asks.
///
/// It must be dropped before the device is closed.
pub struct EventPoller {
    queues: Vec<Queue>,
    handler: CompletionHandler,
}

impl EventPoller {
    pub(crate) fn new(readers: Vec<EventReader>, handler: CompletionHandler) -> Self {
        let queue =
            |reader: EventReader| Queue { ring: Arc::clone(reader.ring()), reader: Mutex::new(reader) };
        Self { queues: readers.into_iter().map(queue).collect(), handler }
    }

    /// Calls `notify` of each completion queue that has an event, on this thread. Where there are none that is a look
    /// at each event queue: it takes no lock and makes no system call. It never waits, and takes at most as many events
    /// as the queues have room for. True if there may be more, or another thread is at it.
    pub fn poll(&self) -> bool {
        self.queues.iter().fold(false, |more, queue| queue.poll(&self.handler) | more)
    }
}

impl fmt::Debug for EventPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventPoller({} queues)", self.queues.len())
    }
}
