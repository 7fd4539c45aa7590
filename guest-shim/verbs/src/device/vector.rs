//! A completion vector: its queue, and the channels of the CQs on it.
//!
//! No thread of the library stands between the device and whoever waits: the waiters read the queue themselves,
//! one at a time, and hand each other what isn't theirs.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mlx4_queue::ArmSequence;
use virtio_rdma::event::CompletionEvent;
use virtio_rdma::queue::FIRST_VECTOR;
use zerocopy::FromBytes;

use super::rings::Inbox;
use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::event_fd::Event;
use crate::signal::Loss;
use crate::transport::Transport;

/// Bytes of a buffer: room for several events.
const BUFFER_BYTES: usize = 32 * size_of::<CompletionEvent>();
/// Buffers that the device has.
const BUFFERS: u16 = 32;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events that wait in a channel.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Numbers of CQs that fired.
    cqns: Mutex<VecDeque<u32>>,
    /// Readable while there are some.
    readable: Event,
}

impl Pending {
    pub(crate) fn new() -> Result<Self> {
        let readable = Event::new().map_err(Error::system("an event descriptor"))?;
        Ok(Self { cqns: Mutex::default(), readable })
    }

    /// The number of the next CQ that fired.
    pub(crate) fn next(&self) -> Option<u32> {
        let mut cqns = lock(&self.cqns);
        let next = cqns.pop_front();
        if cqns.is_empty() {
            self.readable.clear();
        }
        next
    }

    fn add(&self, cqn: u32) {
        lock(&self.cqns).push_back(cqn);
        self.readable.raise();
    }

    fn remove(&self, cqn: u32) {
        let mut cqns = lock(&self.cqns);
        cqns.retain(|found| *found != cqn);
        if cqns.is_empty() {
            self.readable.clear();
        }
    }

    /// A descriptor that is readable while there are some.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

/// A CQ whose events go to a channel.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) cqn: u32,
    pub(crate) sequence: Arc<ArmSequence>,
    /// Gone when the channel is dropped.
    pub(crate) channel: Weak<Pending>,
}

#[derive(Debug)]
struct State {
    inbox: Inbox<BUFFER_BYTES>,
    /// By handle.
    subscribers: HashMap<u32, Subscriber>,
}

/// A completion vector.
#[derive(Debug)]
pub(crate) struct Vector {
    transport: Arc<dyn Transport>,
    loss: Arc<Loss>,
    generation: u32,
    queue: u16,
    state: Mutex<State>,
}

impl Vector {
    pub(super) fn start(
        transport: &Arc<dyn Transport>,
        arena: &Arc<Arena>,
        loss: &Arc<Loss>,
        generation: u32,
        vector: u16,
    ) -> Result<Self> {
        let queue = FIRST_VECTOR + vector;
        let inbox = Inbox::start(transport, arena, queue, BUFFERS)?;
        Ok(Self {
            transport: Arc::clone(transport),
            loss: Arc::clone(loss),
            generation,
            queue,
            state: Mutex::new(State { inbox, subscribers: HashMap::new() }),
        })
    }

    /// What the device signals when there are events.
    pub(crate) fn interrupt(&self) -> BorrowedFd<'_> {
        self.transport.interrupt(self.queue).as_fd()
    }

    /// Hands the events that are there to their channels.
    pub(crate) fn drain(&self) {
        let mut state = lock(&self.state);
        // Before the queue is read: what comes later raises it again.
        self.transport.interrupt(self.queue).clear();
        let State { inbox, subscribers } = &mut *state;
        let drained = inbox.drain(|bytes| {
            for event in bytes.chunks_exact(size_of::<CompletionEvent>()) {
                let Ok(event) = CompletionEvent::read_from_bytes(event) else { continue };
                if event.generation.get() != self.generation {
                    continue;
                }
                if let Some(subscriber) = subscribers.get(&event.cq.get()) {
                    subscriber.sequence.event_taken();
                    if let Some(channel) = subscriber.channel.upgrade() {
                        channel.add(subscriber.cqn);
                    }
                }
            }
        });
        match drained {
            Ok(true) => self.transport.kick(self.queue),
            Ok(false) => {}
            Err(_) => {
                self.loss.set("it broke the rules of a completion vector");
            }
        }
    }

    pub(crate) fn subscribe(&self, handle: u32, subscriber: Subscriber) {
        lock(&self.state).subscribers.insert(handle, subscriber);
    }

    /// A CQ is gone: so are its events.
    pub(crate) fn unsubscribe(&self, handle: u32) {
        self.drain();
        let subscriber = lock(&self.state).subscribers.remove(&handle);
        if let Some(Subscriber { cqn, channel, .. }) = subscriber
            && let Some(channel) = channel.upgrade()
        {
            channel.remove(cqn);
        }
    }
}
