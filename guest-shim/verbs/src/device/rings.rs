//! A virtqueue with its memory.

use std::sync::Arc;

use crate::arena::{Arena, Block};
use crate::error::Result;
use crate::transport::{QueueRings, Transport};
use crate::virtqueue::{Broken, Buffer, Layout, Virtqueue};

/// A virtqueue that was started.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) queue: Virtqueue,
    _memory: Block,
}

impl Ring {
    pub(super) fn start(
        transport: &Arc<dyn Transport>,
        arena: &Arc<Arena>,
        index: u16,
        layout: Layout,
    ) -> Result<Self> {
        let memory = arena.allocate(layout.bytes(), 64)?;
        transport.start_queue(index, &QueueRings { address: memory.span().address(), layout })?;
        Ok(Self { queue: Virtqueue::new(memory.span().clone(), layout), _memory: memory })
    }
}

/// A virtqueue in which the device has buffers of one size to write into.
#[derive(Debug)]
pub(super) struct Inbox<const BYTES: usize> {
    ring: Ring,
    buffers: Block,
}

impl<const BYTES: usize> Inbox<BYTES> {
    /// Starts a queue with `count` buffers, a power of two, and gives them all to the device.
    pub(super) fn start(
        transport: &Arc<dyn Transport>,
        arena: &Arc<Arena>,
        index: u16,
        count: u16,
    ) -> Result<Self> {
        let buffers = arena.allocate(usize::from(count) * BYTES, 64)?;
        let mut ring = Ring::start(transport, arena, index, Layout { size: count })?;
        let length = u32::try_from(BYTES).unwrap_or(u32::MAX);
        for buffer in 0..count {
            let address = buffers.guest_address() + (usize::from(buffer) * BYTES) as u64;
            ring.queue.describe(buffer, Buffer { address, length, writable: true, next: None });
            ring.queue.offer(buffer);
        }
        transport.kick(index);
        Ok(Self { ring, buffers })
    }

    /// Takes everything that the device has written, and gives the buffers back. Answers whether the device
    /// wants to know of that.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&[u8])) -> std::result::Result<bool, Broken> {
        let mut any = false;
        while let Some(used) = self.ring.queue.take()? {
            let mut bytes = [0; BYTES];
            let length = usize::try_from(used.length).unwrap_or(usize::MAX).min(BYTES);
            let bytes = &mut bytes[..length];
            self.buffers.span().copy_out(usize::from(used.head) * BYTES, bytes);
            self.ring.queue.offer(used.head);
            any = true;
            each(bytes);
        }
        Ok(any && self.ring.queue.wants_kick())
    }
}
