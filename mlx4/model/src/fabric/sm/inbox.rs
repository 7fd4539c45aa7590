//! The queues behind QP0 and QP1 of the manager: bounded, filled from any thread, emptied by one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fabric::Endpoint;
use crate::fabric::datagram::Datagram;
use crate::fabric::packet::Packet;

/// MADs that each queue holds; more are dropped, as VL15 drops them, and as a QP1 without buffers does.
const CAPACITY: usize = 1024;
/// MADs from one LID that the queue of QP1 holds, so that a flood from there drowns nobody else's.
const CAPACITY_PER_LID: usize = 128;

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
    /// How many of those came from each LID.
    by_lid: HashMap<u16, usize>,
    closed: bool,
}

impl Queues {
    fn push(&mut self, datagram: Datagram) -> bool {
        if datagram.headers.vl15 {
            let room = self.smps.len() < CAPACITY;
            if room {
                self.smps.push_back(datagram);
            }
            return room;
        }
        let from_there = self.by_lid.get(&datagram.headers.slid).copied().unwrap_or(0);
        let room = self.others.len() < CAPACITY && from_there < CAPACITY_PER_LID;
        if room {
            self.by_lid.insert(datagram.headers.slid, from_there + 1);
            self.others.push_back(datagram);
        }
        room
    }

    fn pop(&mut self) -> Option<Datagram> {
        if let Some(smp) = self.smps.pop_front() {
            return Some(smp);
        }
        let datagram = self.others.pop_front()?;
        match self.by_lid.get_mut(&datagram.headers.slid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.by_lid.remove(&datagram.headers.slid)),
        }
        Some(datagram)
    }
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
        queues.pop().map_or(Wake::Timeout, |datagram| Wake::Mad(Box::new(datagram)))
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
        if self.lock().push(datagram) {
            self.filled.notify_one();
        }
    }

    fn link_changed(&self, _: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::packet::Headers;

    fn deliver(inbox: &Inbox, vl15: bool, slid: u16) {
        let datagram = Datagram { headers: Headers { vl15, slid, ..Headers::default() }, mad: [0; 256] };
        datagram.with_packet(|packet| inbox.receive(packet));
    }

    #[test]
    fn flood_leaves_room_for_others_and_smps_overtake_it() {
        let inbox = Inbox::default();
        for _ in 0..2 * CAPACITY {
            deliver(&inbox, false, 5);
        }
        deliver(&inbox, false, 6);
        deliver(&inbox, true, 5);
        assert!(matches!(inbox.wait(None), Wake::Mad(datagram) if datagram.headers.vl15));
        let mut lids = Vec::new();
        while let Wake::Mad(datagram) = inbox.wait(Some(Duration::ZERO)) {
            lids.push(datagram.headers.slid);
        }
        assert_eq!((lids.len(), lids.last()), (CAPACITY_PER_LID + 1, Some(&6)));
        assert!(inbox.lock().by_lid.is_empty());
        deliver(&inbox, false, 5);
        assert!(matches!(inbox.wait(None), Wake::Mad(_)));
    }

    #[test]
    fn full_queue_drops_what_comes() {
        let inbox = Inbox::default();
        for slid in 0..10 {
            for _ in 0..CAPACITY_PER_LID {
                deliver(&inbox, false, slid);
                deliver(&inbox, true, slid);
            }
        }
        let queues = inbox.lock();
        assert_eq!((queues.smps.len(), queues.others.len()), (CAPACITY, CAPACITY));
    }

    #[test]
    fn waiting_ends_with_the_time_and_with_close() {
        let inbox = Inbox::default();
        assert_eq!(inbox.wait(Some(Duration::ZERO)), Wake::Timeout);
        inbox.close();
        assert_eq!(inbox.wait(None), Wake::Closed);
    }
}
