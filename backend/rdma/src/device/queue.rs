//! A virtqueue in guest memory, for as long as the transport's lock on it is held.

use virtio_queue::{Queue as SplitQueue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::chain::{self, Chain};
use crate::memory::Memory;

/// A virtqueue, as the transport has it.
pub(crate) trait Ring {
    /// Runs `run` on the queue and the guest's memory of this moment.
    fn with<T>(&self, run: impl FnOnce(&mut Queue<'_>) -> T) -> T;

    /// Tells the driver that chains were used. Doesn't block.
    fn signal(&self);
}

/// What comes next in a queue.
#[derive(Debug)]
pub(crate) enum Next {
    /// A chain.
    Chain(Chain),
    /// A chain with this head, whose form is wrong.
    Bad(u16),
    /// Nothing.
    None,
    /// The queue itself is none: it is outside memory, or its index is beyond its size.
    Nonsense,
}

/// A virtqueue and the memory that it is in.
#[derive(Debug)]
pub(crate) struct Queue<'a> {
    queue: &'a mut SplitQueue,
    memory: &'a Memory,
    /// Whether it was started and is enabled.
    running: bool,
    /// Whether a chain was used.
    any_used: bool,
}

impl<'a> Queue<'a> {
    pub(crate) fn new(queue: &'a mut SplitQueue, memory: &'a Memory, running: bool) -> Self {
        Self { queue, memory, running, any_used: false }
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// Whether it was started and is enabled.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Takes the next chain. A queue that isn't running has none.
    pub(crate) fn next(&mut self) -> Next {
        if !self.running {
            return Next::None;
        }
        if !self.is_in_memory() {
            return Next::Nonsense;
        }
        let memory = self.memory;
        let Ok(mut available) = self.queue.iter(memory) else { return Next::Nonsense };
        let Some(chain) = available.next() else { return Next::None };
        let head = chain.head_index();
        let longest = usize::from(self.queue.size());
        chain::collect(chain, memory, longest).map_or(Next::Bad(head), Next::Chain)
    }

    /// Gives the chain that was taken last back, as if it hadn't been.
    pub(crate) fn untake(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Whether all three parts lie in the guest's memory.
    fn is_in_memory(&self) -> bool {
        let size = usize::from(self.queue.size());
        [
            (self.queue.desc_table(), 16 * size),
            (self.queue.avail_ring(), 6 + 2 * size),
            (self.queue.used_ring(), 6 + 8 * size),
        ]
        .into_iter()
        .all(|(address, bytes)| self.memory.check_range(GuestAddress(address), bytes))
    }

    /// Asks the driver for a notification when there is more; true if there is some already.
    pub(crate) fn wait_for_more(&mut self) -> bool {
        self.running && self.queue.enable_notification(self.memory).unwrap_or(false)
    }

    /// Asks the driver for no notifications until [`Queue::wait_for_more`] does. (With event indexes there are none
    /// unless they were asked for.)
    pub(crate) fn needs_no_more(&mut self) {
        if self.running {
            // A ring that isn't there notifies of nothing that could be used.
            let _elsewhere = self.queue.disable_notification(self.memory);
        }
    }

    /// Gives a chain back to the driver. What was stopped meanwhile gets it too, since it was taken before.
    pub(crate) fn used(&mut self, head: u16, bytes: u32) {
        if head < self.queue.size() {
            // If the ring is gone nobody waits for it.
            self.any_used |= self.queue.add_used(self.memory, head, bytes).is_ok();
        }
    }

    /// Whether the driver wants to be told of what was used.
    pub(crate) fn must_signal(&mut self) -> bool {
        self.any_used && self.queue.needs_notification(self.memory).unwrap_or(false)
    }

    /// Whether chains have gone through it before this device had it.
    pub(crate) fn was_in_use(&self) -> bool {
        self.queue.next_avail() != 0 || self.queue.next_used() != 0
    }
}
