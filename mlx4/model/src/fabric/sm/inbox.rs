//! The queues behind QP0 and QP1 of the manager: bounded, filled from any thread, emptied by one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fabric::Endpoint;
use crate::fabric::datagram::Datagram;
use crate::fabric::packet::Packet;

/// MADs that each queue holds; more are dropped, as VL15 drops them, and as a QP1 without buffers does.
const CAPACITY: usize = 1024;

/// Where MADs for the manager arrive.
#[derive(Default)]
pub(super) struct Inbox {
    queues: Mutex<Queues>,
    filled: Condvar,
}

#[derive(Default)]
struct Queues {
    smps: VecDeque<Datagram>,
    others: VecDeque<Datagram>,
    closed: bool,
}

/// What [`Inbox::wait`] woke up for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// A MAD; subnet management goes first.
    Mad(Box<Datagram>),
    /// The time is over.
    Timeout,
    /// The manager shall stop.
    Closed,
}

impl Inbox {
    /// Waits for a MAD, at most for the given time if there is one.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Wake {
        let idle = |queues: &mut Queues| !queues.closed && queues.smps.is_empty() && queues.others.is_empty();
        let queues = self.lock();
        let mut queues = match timeout {
            None => self.filled.wait_while(queues, idle).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.filled
                    .wait_timeout_while(queues, timeout, idle)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        if queues.closed {
            return Wake::Closed;
        }
        let next = queues.smps.pop_front().or_else(|| queues.others.pop_front());
        next.map_or(Wake::Timeout, |datagram| Wake::Mad(Box::new(datagram)))
    }

    /// Makes [`wait`](Self::wait) return [`Wake::Closed`] from now on.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoint for Inbox {
    fn receive(&self, packet: &Packet<'_>) {
        let Some(datagram) = Datagram::read(packet) else { return };
        let mut queues = self.lock();
        let queue = if datagram.headers.vl15 { &mut queues.smps } else { &mut queues.others };
        if queue.len() < CAPACITY {
            queue.push_back(datagram);
            self.filled.notify_one();
        }
    }

    fn link_changed(&self, _: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::packet::Headers;

    fn deliver(inbox: &Inbox, vl15: bool) {
        let datagram = Datagram { headers: Headers { vl15, ..Headers::default() }, mad: [0; 256] };
        datagram.with_packet(|packet| inbox.receive(packet));
    }

    #[test]
    fn smps_overtake_and_a_flood_is_dropped() {
        let inbox = Inbox::default();
        for _ in 0..2 * CAPACITY {
            deliver(&inbox, false);
        }
        deliver(&inbox, true);
        assert!(matches!(inbox.wait(None), Wake::Mad(datagram) if datagram.headers.vl15));
        assert_eq!(inbox.lock().others.len(), CAPACITY);
    }

    #[test]
    fn waiting_ends_with_the_time_and_with_close() {
        let inbox = Inbox::default();
        assert_eq!(inbox.wait(Some(Duration::ZERO)), Wake::Timeout);
        inbox.close();
        assert_eq!(inbox.wait(None), Wake::Closed);
    }
}
