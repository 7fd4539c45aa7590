//! A guest: `vhost`'s front end with memory and virtqueues of its own, in the process of the test.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_rdma::config::Config;
use virtio_rdma::doorbell::Words;
use virtio_rdma::event::AsyncEvent;
use virtio_rdma::memory::Segment;
use virtio_rdma::queue::{CONTROL, EVENT, QUEUES};
use virtio_rdma::request::{ReplyError, SegmentMode, decode, encode};
use virtio_rdma::{Reason, U64, Verb};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::FromBytes;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;

/// Entries of each queue.
pub(crate) const QUEUE_SIZE: u16 = 16;

/// Flags of descriptors.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT_TABLE: u16 = 4;

/// The flag of a used ring.
const NO_NOTIFY: u16 = 1;

/// Bytes of a guest's memory, and the address of its first one.
pub(crate) const BYTES: usize = 8 << 20;
pub(crate) const BASE: u64 = 0x1_0000_0000;

/// Where queues are (a page for each part), where buffers, and where memory is free for tests.
const QUEUE_BYTES: u64 = 0x4000;
pub(crate) const REQUEST: u64 = 0x8_0000;
pub(crate) const REPLY: u64 = 0x9_0000;
const EVENTS: u64 = 0xa_0000;
pub(crate) const FREE: u64 = 0x10_0000;

/// How long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file with memory for a guest.
pub(crate) fn memfd(bytes: u64, seals: SealFlags) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(fd);
    file.set_len(bytes).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// A region from the start of a file.
pub(crate) fn region(address: u64, bytes: u64, host: u64, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: address,
        memory_size: bytes,
        userspace_addr: host,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

/// One region of guest memory, as the guest has it mapped.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) base: u64,
    pub(crate) file: File,
    map: MmapRegion,
}

impl Memory {
    pub(crate) fn new(base: u64, file: File, bytes: usize) -> Self {
        let map = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), bytes).unwrap();
        Self { base, file, map }
    }

    pub(crate) fn info(&self) -> VhostUserMemoryRegionInfo {
        region(self.base, self.map.size() as u64, self.map.as_ptr() as u64, &self.file)
    }

    fn host(&self, offset: u64) -> u64 {
        self.map.as_ptr() as u64 + offset
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.map.as_volatile_slice().write_slice(bytes, offset as usize).unwrap();
    }

    pub(crate) fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.map.as_volatile_slice().read_slice(&mut read, offset as usize).unwrap();
        read
    }

    pub(crate) fn write16(&self, offset: u64, value: u16) {
        self.map.as_volatile_slice().store(value, offset as usize, Ordering::SeqCst).unwrap();
    }

    pub(crate) fn read16(&self, offset: u64) -> u16 {
        self.map.as_volatile_slice().load(offset as usize, Ordering::SeqCst).unwrap()
    }
}

/// A doorbell area in a guest's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) offset: u64,
}

impl Words for Area<'_> {
    fn word(&self, index: usize) -> &AtomicU64 {
        self.memory.map.get_atomic_ref(self.offset as usize + 8 * index).unwrap()
    }
}

/// The driver's side of a queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) index: u16,
    pub(crate) kick: EventFd,
    call: EventFd,
    next: u16,
    seen: u16,
}

impl Queue {
    pub(crate) fn descriptors(&self) -> u64 {
        u64::from(self.index) * QUEUE_BYTES
    }

    pub(crate) fn available(&self) -> u64 {
        self.descriptors() + 0x1000
    }

    fn used(&self) -> u64 {
        self.descriptors() + 0x2000
    }
}

/// A descriptor: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) memory: Memory,
    pub(crate) queues: Vec<Queue>,
    pub(crate) generation: u32,
    event_idx: bool,
    cookie: u64,
}

impl std::ops::Deref for Guest {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

/// Says hello; the rest of a connection is the caller's.
pub(crate) fn connect(path: &Path, features: u64) -> Frontend {
    let mut frontend = Frontend::connect(path, u64::from(QUEUES)).unwrap();
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    assert_eq!(offered & !(VERSION_1 | EVENT_IDX | INDIRECT | protocol), 0);
    frontend.set_features(features | protocol).unwrap();
    let wanted = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert!(frontend.get_protocol_features().unwrap().contains(wanted));
    frontend.set_protocol_features(wanted).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend
}

pub(crate) fn config(frontend: &mut Frontend) -> Config {
    let zeroes = [0; 256];
    let (_, bytes) = frontend.get_config(0, 256, VhostUserConfigFlags::WRITABLE, &zeroes).unwrap();
    Config::read(&bytes).unwrap()
}

/// Waits for an event and takes it; gives up after a second, for the caller to look again.
fn wait_for(event: &EventFd) {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    epoll.wait(1000, &mut [EpollEvent::default()]).unwrap();
    let _none = event.read();
}

/// Waits until `what` holds.
pub(crate) fn wait_until(mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::yield_now();
    }
}

impl Guest {
    /// A guest with all its queues, and buffers for events.
    pub(crate) fn new(path: &Path) -> Self {
        Self::with(path, VERSION_1, memfd(BYTES as u64, SealFlags::SHRINK))
    }

    pub(crate) fn with(path: &Path, features: u64, file: File) -> Self {
        let mut guest = Self::without_queues(path, features, file);
        guest.start_queues();
        guest.give_event_buffers();
        guest
    }

    pub(crate) fn without_queues(path: &Path, features: u64, file: File) -> Self {
        Self::on(connect(path, features), features, Memory::new(BASE, file, BYTES))
    }

    /// A guest on a connection that was made.
    pub(crate) fn on(mut frontend: Frontend, features: u64, memory: Memory) -> Self {
        let generation = config(&mut frontend).generation.get();
        frontend.set_mem_table(&[memory.info()]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let queues = (0..QUEUES)
            .map(|index| Queue { index, kick: event(), call: event(), next: 0, seen: 0 })
            .collect();
        let event_idx = features & EVENT_IDX != 0;
        Self { frontend, memory, queues, generation, event_idx, cookie: 0 }
    }

    pub(crate) fn start_queues(&mut self) {
        (0..QUEUES).for_each(|queue| self.start_queue(queue));
    }

    pub(crate) fn start_queue(&mut self, index: u16) {
        let queue = &self.queues[usize::from(index)];
        let number = usize::from(index);
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: self.memory.host(queue.descriptors()),
            used_ring_addr: self.memory.host(queue.used()),
            avail_ring_addr: self.memory.host(queue.available()),
            log_addr: None,
        };
        self.frontend.set_vring_num(number, QUEUE_SIZE).unwrap();
        self.frontend.set_vring_addr(number, &addresses).unwrap();
        // All that the device took it has used.
        self.frontend.set_vring_base(number, queue.seen).unwrap();
        self.frontend.set_vring_call(number, &queue.call).unwrap();
        self.frontend.set_vring_kick(number, &queue.kick).unwrap();
        self.frontend.set_vring_enable(number, true).unwrap();
    }

    /// Stops a queue and starts it again from nothing.
    pub(crate) fn frontend_restart(&mut self, index: u16) {
        self.frontend.get_vring_base(usize::from(index)).unwrap();
        let queue = &mut self.queues[usize::from(index)];
        (queue.next, queue.seen) = (0, 0);
        let (start, call) = (queue.descriptors(), EventFd::new(EFD_NONBLOCK).unwrap());
        (queue.kick, queue.call) = (EventFd::new(EFD_NONBLOCK).unwrap(), call);
        self.memory.write(start, &[0; QUEUE_BYTES as usize]);
        self.start_queue(index);
    }

    /// Continues with the queues of a device that was there before.
    pub(crate) fn take_over(&mut self, before: Vec<Queue>) {
        self.queues = before;
    }

    pub(crate) fn give_event_buffers(&mut self) {
        for index in 0..QUEUE_SIZE {
            let buffer = (BASE + EVENTS + 32 * u64::from(index), 32, WRITE, 0);
            self.offer(EVENT, index, &[buffer]);
        }
    }

    /// Writes a chain, from a descriptor on, and makes it available. No notification.
    pub(crate) fn offer(&mut self, queue: u16, head: u16, chain: &[Descriptor]) {
        self.describe(self.queues[usize::from(queue)].descriptors(), head, chain);
        self.make_available(queue, head);
    }

    pub(crate) fn describe(&self, table: u64, first: u16, chain: &[Descriptor]) {
        for (index, (address, length, flags, next)) in (u64::from(first)..).zip(chain) {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            self.memory.write(table + 16 * index, &bytes);
        }
    }

    pub(crate) fn make_available(&mut self, queue: u16, head: u16) {
        let queue = &mut self.queues[usize::from(queue)];
        let place = queue.available() + 4 + 2 * u64::from(queue.next % QUEUE_SIZE);
        queue.next = queue.next.wrapping_add(1);
        self.memory.write16(place, head);
        self.memory.write16(queue.available() + 2, queue.next);
    }

    pub(crate) fn kick(&self, queue: u16) {
        self.queues[usize::from(queue)].kick.write(1).unwrap();
    }

    /// The next chain that was used, if there is one: its head and its used length.
    pub(crate) fn try_used(&mut self, queue: u16) -> Option<(u32, u32)> {
        let queue = &mut self.queues[usize::from(queue)];
        if self.memory.read16(queue.used() + 2) == queue.seen {
            return None;
        }
        let entry = self.memory.read(queue.used() + 4 + 8 * u64::from(queue.seen % QUEUE_SIZE), 8);
        queue.seen = queue.seen.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// Whether the device asks to be notified of chains. Not with event indexes.
    pub(crate) fn wants_kick(&self, queue: u16) -> bool {
        self.memory.read16(self.queues[usize::from(queue)].used()) & NO_NOTIFY == 0
    }

    /// Waits for the next chain that was used, by the call.
    pub(crate) fn used(&mut self, queue: u16) -> (u32, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.try_used(queue) {
                return used;
            }
            let ring = &self.queues[usize::from(queue)];
            if self.event_idx {
                let used_event = ring.available() + 4 + 2 * u64::from(QUEUE_SIZE);
                self.memory.write16(used_event, ring.seen);
                std::sync::atomic::fence(Ordering::SeqCst);
                if self.memory.read16(ring.used() + 2) != ring.seen {
                    continue;
                }
            }
            assert!(start.elapsed() < PATIENCE, "queue {queue} stands still");
            wait_for(&ring.call);
        }
    }

    /// Carries out a request.
    pub(crate) fn call<V: Verb>(&mut self, verb: &V, segments: &[(u64, u64)]) -> Result<V::Answer, Reason> {
        self.send(verb, segments);
        self.reply::<V>()
    }

    /// Sends a request, and doesn't wait.
    pub(crate) fn send<V: Verb>(&mut self, verb: &V, segments: &[(u64, u64)]) {
        let segments: Vec<Segment> = segments
            .iter()
            .map(|(address, length)| Segment { address: U64::new(*address), length: U64::new(*length) })
            .collect();
        self.cookie += 1;
        let mut request = [0; 4096];
        let mode = SegmentMode::DIRECT;
        let length = encode(&mut request, verb, &segments, mode, self.cookie, self.generation).unwrap();
        self.memory.write(REQUEST, &request[..length]);
        let length = u32::try_from(length).unwrap();
        let chain = [(BASE + REQUEST, length, NEXT, 1), (BASE + REPLY, 512, WRITE, 0)];
        self.offer(CONTROL, 0, &chain);
        self.kick(CONTROL);
    }

    /// The reply to the last request.
    pub(crate) fn reply<V: Verb>(&mut self) -> Result<V::Answer, Reason> {
        let (head, length) = self.used(CONTROL);
        assert_eq!(head, 0);
        let reply = self.memory.read(REPLY, length as usize);
        decode::<V>(&reply, self.cookie).map_err(|error| match error {
            ReplyError::Refused { reason, .. } => reason,
            ReplyError::Malformed { .. } => panic!("malformed reply of {length} bytes"),
        })
    }

    /// Waits for the next asynchronous event; its buffer goes back.
    pub(crate) fn event(&mut self) -> AsyncEvent {
        let (head, length) = self.used(EVENT);
        assert_eq!(length, 32);
        let bytes = self.memory.read(EVENTS + 32 * u64::from(head), 32);
        let event = AsyncEvent::read_from_bytes(&bytes).unwrap();
        self.make_available(EVENT, u16::try_from(head).unwrap());
        self.kick(EVENT);
        event
    }
}
