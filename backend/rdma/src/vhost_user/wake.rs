//! Wakes the worker threads of a connection for what doesn't come from the guest: events to deliver, and the end.
//!
//! What is due is one word of bits, and whoever sets the first wakes the worker of events. The worker of kicks, before
//! it does the work that events come of, sets a bit of its own ([`Wake::collect`]): nobody sets the first then. It takes
//! the word afterwards, with all that has come, and delivers that, or gives it back. So there is always somebody who will
//! take the word while anything is in it, and nothing is lost whatever the two workers do at the same time: each bit is
//! taken out by one of them.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use paraverbs_tenant::Notify;
use virtio_rdma::queue::MAX_VECTORS;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// Worker threads of a connection.
pub(crate) const WORKERS: usize = 3;
/// The worker of the event queue and the completion vectors.
pub(crate) const EVENT_WORKER: usize = 1;

/// The bits of asynchronous events and of MADs; that of a vector is above them.
const EVENTS: u32 = 1;
const MADS: u32 = 2;
const FIRST_VECTOR: u32 = 4;
/// The worker of kicks will take what is due.
const COLLECTING: u32 = 1 << 31;
const _: () = assert!(FIRST_VECTOR << (MAX_VECTORS - 1) < COLLECTING);

/// What there is to deliver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due(u32);

impl Due {
    /// Whether there is nothing.
    pub(crate) fn is_empty(self) -> bool {
        self.0 & !COLLECTING == 0
    }

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

    /// From now on what comes wakes nobody: the caller takes it by [`Wake::collected`], soon.
    pub(crate) fn collect(&self) {
        self.due.fetch_or(COLLECTING, Ordering::AcqRel);
    }

    /// Takes what there is to do, on another thread than the worker of events. What comes later wakes that worker again.
    pub(crate) fn collected(&self) -> Due {
        Due(self.due.swap(0, Ordering::AcqRel))
    }

    /// Leaves what was taken to the worker of events.
    pub(crate) fn give_back(&self, due: Due) {
        self.mark(due.0 & !COLLECTING);
    }

    /// There are MADs left in their queue.
    pub(crate) fn mads(&self) {
        self.mark(MADS);
    }

    fn mark(&self, bits: u32) {
        if self.due.fetch_or(bits, Ordering::AcqRel) == 0
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn is_woken(wake: &Wake) -> bool {
        wake.consumer(EVENT_WORKER).is_some_and(|consumer| consumer.consume().is_ok())
    }

    #[test]
    fn what_is_collected_wakes_nobody() {
        let wake = Wake::new().unwrap();
        wake.collect();
        wake.completions(3);
        assert!(!is_woken(&wake));
        let due = wake.collected();
        assert!(due.completions(3) && !due.completions(2) && !due.is_empty());
        wake.collect();
        assert!(wake.collected().is_empty());
        wake.completions(0);
        assert!(is_woken(&wake));
        assert!(wake.take().completions(0));
        wake.give_back(due);
        assert!(is_woken(&wake));
        assert!(wake.take().completions(3) && wake.take().is_empty());
    }

    /// The event worker sleeps for ever if it isn't woken; it may take what the other one collects.
    #[test]
    fn whoever_takes_it_what_is_marked_is_taken() {
        const MARKS: u32 = 20_000;
        let wake = Wake::new().unwrap();
        let (taken, ended) = (AtomicU32::new(0), AtomicBool::new(false));
        let take = |due: Due| {
            if due.completions(1) {
                taken.fetch_add(1, Ordering::SeqCst);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    wake.collect();
                    take(wake.collected());
                }
            });
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    if is_woken(&wake) {
                        take(wake.take());
                    }
                    std::thread::yield_now();
                }
            });
            for mark in 0..MARKS {
                wake.completions(1);
                while taken.load(Ordering::SeqCst) <= mark {
                    std::thread::yield_now();
                }
            }
            ended.store(true, Ordering::SeqCst);
        });
        assert_eq!(taken.load(Ordering::SeqCst), MARKS);
    }
}
