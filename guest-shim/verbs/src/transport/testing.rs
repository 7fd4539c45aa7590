//! A device for tests, in the same process: it answers requests as a test says, and breaks rules when told to.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use virtio_rdma::config::{Config, DeviceState, MAGIC, Mlx4Format, QueueFormat, VERSION_MAJOR};
use virtio_rdma::queue::{CONTROL, QUEUES};
use virtio_rdma::request::{Request, answer_gone, refuse};
use virtio_rdma::{Reason, U16, U32, U64};
use zerocopy::FromZeros;

use super::{QueueRings, Transport};
use crate::error::Result;
use crate::event_fd::Event;
use crate::memory::{Chunk, Span};
use crate::virtqueue::Layout;

/// The generation of the device.
pub(crate) const GENERATION: u32 = 7;

/// What the device does with a request.
pub(crate) enum Reply {
    /// Answers with zeros, and these bytes in front.
    Answer(Vec<u8>),
    /// Refuses it.
    Refuse(Reason),
    /// Writes these bytes, whatever they are.
    Bytes(Vec<u8>),
    /// Keeps it, until [`Fake::reply_to_kept`].
    Keep,
}

type Respond = Box<dyn Fn(&Request<'_>) -> Reply + Send + Sync>;

/// The device's side of a queue.
struct Queue {
    rings: Span,
    layout: Layout,
    taken: u16,
    used: u16,
}

/// A chain that the driver has offered.
struct Chain {
    head: u16,
    readable: Vec<u8>,
    /// Address and length of what may be written.
    writable: (u64, usize),
}

#[derive(Default)]
struct State {
    chunks: Vec<(u64, Arc<Chunk>)>,
    queues: HashMap<u16, Queue>,
    kept: Vec<Chain>,
    kicks: Vec<u16>,
}

/// A device for tests.
pub(crate) struct Fake {
    pub(crate) config: Config,
    /// How long this side waits for it.
    pub(crate) patience: Duration,
    respond: Respond,
    state: Mutex<State>,
    interrupts: Vec<Event>,
    connection: (UnixStream, Mutex<Option<UnixStream>>),
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fake").finish_non_exhaustive()
    }
}

/// The parameters of a ConnectX-3.
fn config() -> Config {
    Config {
        magic: MAGIC,
        version_major: U16::new(VERSION_MAJOR),
        generation: U32::new(GENERATION),
        state: DeviceState::READY,
        ports: 1,
        completion_vectors: 2,
        kick_queues: 1,
        queue_format: QueueFormat::MLX4,
        max_request_bytes: U32::new(4096),
        max_segments: U32::new(64),
        max_registered_bytes: U64::new(1 << 30),
        max_uars: U32::new(4),
        max_slots: U32::new(64),
        max_events: U32::new(16),
        format: Mlx4Format {
            cqe_bytes: U16::new(32),
            max_send_wqe_bytes: U16::new(1008),
            max_receive_wqe_bytes: U16::new(512),
            max_send_sge: U16::new(32),
            max_receive_sge: U16::new(32),
            max_inline_bytes: U16::new(900),
            headroom_bytes: U16::new(2048),
            headroom_wqes: 1,
            log2_min_send_stride: 6,
            log2_min_receive_stride: 4,
            log2_min_srq_stride: 5,
            log2_max_wqes: 14,
            log2_max_srq_wqes: 14,
            log2_max_cqes: 22,
            cq_record_bytes: 8,
            receive_record_bytes: 4,
            ..Mlx4Format::new_zeroed()
        },
        ..Config::new_zeroed()
    }
}

impl Fake {
    pub(crate) fn new(respond: impl Fn(&Request<'_>) -> Reply + Send + Sync + 'static) -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        Self {
            config: config(),
            patience: Duration::from_secs(600),
            respond: Box::new(respond),
            state: Mutex::default(),
            interrupts: (0..QUEUES).map(|_| Event::new().unwrap()).collect(),
            connection: (near, Mutex::new(Some(far))),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The connection ends.
    pub(crate) fn hang_up(&self) {
        self.connection.1.lock().unwrap().take();
    }

    /// Whether a range is in one region that the device was told of.
    pub(crate) fn knows(&self, address: u64, length: u64) -> bool {
        self.state().span(address, usize::try_from(length).unwrap()).is_some()
    }

    /// The lengths of all regions.
    pub(crate) fn regions(&self) -> Vec<u64> {
        self.state().chunks.iter().map(|(_, chunk)| chunk.len() as u64).collect()
    }

    /// Writes into memory.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.state().span(address, bytes.len()).expect("memory").copy_in(0, bytes);
    }

    /// How often a queue was kicked.
    pub(crate) fn kicks(&self, queue: u16) -> usize {
        self.state().kicks.iter().filter(|kicked| **kicked == queue).count()
    }

    /// Writes into the next buffer of a queue, and says that it wrote `length` bytes. `None` if the driver has
    /// offered no buffer.
    pub(crate) fn try_deliver(&self, queue: u16, bytes: &[u8], length: u32) -> Option<()> {
        let mut state = self.state();
        let chain = state.pop(queue)?;
        state.span(chain.writable.0, bytes.len()).expect("a buffer in memory").copy_in(0, bytes);
        state.push(queue, chain.head.into(), length);
        drop(state);
        self.interrupts[usize::from(queue)].raise();
        Some(())
    }

    /// As [`Fake::try_deliver`], where there is a buffer.
    pub(crate) fn deliver(&self, queue: u16, bytes: &[u8], length: u32) {
        self.try_deliver(queue, bytes, length).expect("a buffer");
    }

    /// Says that a chain was used, whether it was offered or not.
    pub(crate) fn push_used(&self, queue: u16, head: u32, length: u32) {
        self.state().push(queue, head, length);
        self.interrupts[usize::from(queue)].raise();
    }

    /// How many requests are kept.
    pub(crate) fn kept(&self) -> usize {
        self.state().kept.len()
    }

    /// Replies to the requests that are kept, the newest first.
    pub(crate) fn reply_to_kept(&self) {
        let mut state = self.state();
        while let Some(chain) = state.kept.pop() {
            state.reply(&chain, Reply::Answer(Vec::new()));
        }
        drop(state);
        self.interrupts[usize::from(CONTROL)].raise();
    }
}

impl State {
    /// Memory at an address of the device's.
    fn span(&self, address: u64, length: usize) -> Option<Span> {
        self.chunks.iter().find_map(|(start, chunk)| {
            let offset = usize::try_from(address.checked_sub(*start)?).unwrap();
            (offset < chunk.len()).then(|| Span::new(chunk, offset, length))?
        })
    }

    fn pop(&mut self, index: u16) -> Option<Chain> {
        let queue = self.queues.get_mut(&index)?;
        let ring = queue.layout.available();
        if queue.rings.u16_at(ring + 2).load(Ordering::Acquire) == queue.taken {
            return None;
        }
        let slot = usize::from(queue.taken & (queue.layout.size - 1));
        let head = queue.rings.u16_at(ring + 4 + 2 * slot).load(Ordering::Relaxed);
        queue.taken = queue.taken.wrapping_add(1);
        let mut chain = Chain { head, readable: Vec::new(), writable: (0, 0) };
        let mut next = Some(head);
        while let Some(descriptor) = next {
            let mut bytes = [0; 16];
            self.queues[&index].rings.copy_out(16 * usize::from(descriptor), &mut bytes);
            let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
            let flags = bytes[12];
            let memory = self.span(address, length).expect("a buffer in memory");
            if flags & 2 != 0 {
                chain.writable = (address, length);
            } else {
                chain.readable.resize(length, 0);
                memory.copy_out(0, &mut chain.readable);
            }
            next = (flags & 1 != 0).then(|| u16::from_le_bytes(bytes[14..].try_into().unwrap()));
        }
        Some(chain)
    }

    fn push(&mut self, queue: u16, head: u32, length: u32) {
        let queue = self.queues.get_mut(&queue).unwrap();
        let ring = queue.layout.used();
        let slot = ring + 4 + 8 * usize::from(queue.used & (queue.layout.size - 1));
        queue.rings.u32_at(slot).store(head, Ordering::Relaxed);
        queue.rings.u32_at(slot + 4).store(length, Ordering::Relaxed);
        queue.used = queue.used.wrapping_add(1);
        queue.rings.u16_at(ring + 2).store(queue.used, Ordering::Release);
    }

    fn reply(&mut self, chain: &Chain, reply: Reply) {
        let mut bytes = vec![0; chain.writable.1];
        let length = match reply {
            Reply::Answer(start) => {
                let request = Request::parse(&chain.readable).unwrap();
                let length = answer_gone(&mut bytes, request.header, GENERATION).unwrap();
                bytes[24..24 + start.len()].copy_from_slice(&start);
                length
            }
            Reply::Refuse(reason) => {
                let header = refuse(&chain.readable, reason, GENERATION);
                bytes[..24].copy_from_slice(zerocopy::IntoBytes::as_bytes(&header));
                24
            }
            Reply::Bytes(reply) => {
                bytes[..reply.len()].copy_from_slice(&reply);
                reply.len()
            }
            Reply::Keep => unreachable!("kept before"),
        };
        self.span(chain.writable.0, length).unwrap().copy_in(0, &bytes[..length]);
        self.push(CONTROL, chain.head.into(), u32::try_from(length).unwrap());
    }
}

impl Transport for Fake {
    fn patience(&self) -> Duration {
        self.patience
    }

    fn config(&self) -> Result<Config> {
        Ok(self.config)
    }

    fn add_memory(&self, chunk: &Arc<Chunk>, guest_address: u64) -> Result<()> {
        self.state().chunks.push((guest_address, Arc::clone(chunk)));
        Ok(())
    }

    fn address_space(&self) -> u64 {
        1 << 40
    }

    fn start_queue(&self, index: u16, rings: &QueueRings) -> Result<()> {
        let mut state = self.state();
        let memory = state.chunks.iter().find_map(|(_, chunk)| {
            let offset = usize::try_from(rings.address.checked_sub(chunk.address())?).unwrap();
            (offset < chunk.len()).then(|| Span::new(chunk, offset, rings.layout.bytes()))?
        });
        let rings =
            Queue { rings: memory.expect("rings in memory"), layout: rings.layout, taken: 0, used: 0 };
        state.queues.insert(index, rings);
        Ok(())
    }

    fn kick(&self, index: u16) {
        let mut state = self.state();
        state.kicks.push(index);
        if index != CONTROL {
            return;
        }
        while let Some(chain) = state.pop(CONTROL) {
            let reply = (self.respond)(&Request::parse(&chain.readable).expect("a request"));
            match reply {
                Reply::Keep => state.kept.push(chain),
                reply => state.reply(&chain, reply),
            }
        }
        drop(state);
        self.interrupts[usize::from(CONTROL)].raise();
    }

    fn interrupt(&self, index: u16) -> &Event {
        &self.interrupts[usize::from(index)]
    }

    fn hangup(&self) -> BorrowedFd<'_> {
        self.connection.0.as_fd()
    }
}
