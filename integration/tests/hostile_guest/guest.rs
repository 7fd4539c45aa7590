//! A guest written by hand: it speaks vhost-user by the crate `vhost`, and everything beyond that in raw bytes.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_rdma::config::Config;
use virtio_rdma::memory::Segment;
use virtio_rdma::queue::{CONTROL, QUEUES};
use virtio_rdma::request::{HEADER_BYTES, ReplyError, ReplyHeader, SegmentMode, decode, encode};
use virtio_rdma::{Reason, Status, U64, Verb};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::FromBytes;

use super::memory::{Memory, Seals};
use super::queue::{AVAILABLE, Descriptor, NEXT, Queue, RINGS, SIZE, USED, WRITE};

/// How long the daemon may take to anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Where the memory is in the guest.
pub(crate) const BASE: u64 = 0x4000_0000;
/// Where the guest says that it has its memory mapped.
pub(crate) const USER: u64 = 0x7e00_0000_0000;
/// Bytes of the memory.
pub(crate) const BYTES: u64 = 8 << 20;
/// Where requests are built, as an offset.
pub(crate) const REQUEST: u64 = 0x2_0000;
/// Where replies arrive, as an offset.
pub(crate) const REPLY: u64 = 0x4_0000;
/// Room for requests.
const REQUEST_BYTES: u64 = REPLY - REQUEST;
/// Room that a reply needs at most.
const ROOM: u32 = 512;

/// `VIRTIO_F_VERSION_1`, `VHOST_USER_F_PROTOCOL_FEATURES`, `VIRTIO_F_INDIRECT_DESC`.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28;

/// What came back for a request.
#[derive(Debug)]
pub(crate) struct Reply {
    /// What the device wrote; nothing if the chain was refused.
    pub(crate) bytes: Vec<u8>,
}

impl Reply {
    /// Status and reason, which must be a pair that the document has.
    pub(crate) fn ended(&self) -> Result<(Status, Reason)> {
        let (header, rest) = ReplyHeader::read_from_prefix(&self.bytes)
            .map_err(|_| anyhow!("a reply of {} bytes", self.bytes.len()))?;
        ensure!(header.length.get() as usize == self.bytes.len(), "a reply lies: {header:?}");
        ensure!(header.reason.name().is_some(), "a reason that nobody knows: {header:?}");
        ensure!(header.reason.status() == header.status, "a status that isn't the reason's: {header:?}");
        ensure!(header.status == Status::OK || rest.is_empty(), "a refusal with an answer: {header:?}");
        Ok((header.status, header.reason))
    }
}

/// The guest.
pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) stream: UnixStream,
    pub(crate) memory: Memory,
    pub(crate) queues: Vec<Queue>,
    pub(crate) kicks: Vec<EventFd>,
    pub(crate) calls: Vec<EventFd>,
    pub(crate) generation: u32,
    cookie: u64,
}

/// The guest's address of an offset of its memory.
pub(crate) fn at(offset: u64) -> u64 {
    BASE + offset
}

impl Guest {
    /// Connects, agrees on features, and does nothing else.
    pub(crate) fn bare(path: &Path, seals: Seals) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut frontend = Frontend::from_stream(stream.try_clone()?, QUEUES.into());
        frontend.set_owner()?;
        let features = frontend.get_features().context("first answer")?;
        ensure!(features & FEATURES == FEATURES, "features {features:#x}");
        let wanted = Protocol::MQ | Protocol::CONFIG | Protocol::REPLY_ACK | Protocol::CONFIGURE_MEM_SLOTS;
        frontend.get_protocol_features()?;
        frontend.set_protocol_features(wanted)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(FEATURES)?;
        let event = || -> Result<EventFd> { Ok(EventFd::new(nonblocking())?) };
        let mut guest = Self {
            frontend,
            stream,
            memory: Memory::new(BYTES, seals)?,
            queues: (0..QUEUES).map(|queue| Queue::new(u64::from(queue) * RINGS)).collect(),
            kicks: (0..QUEUES).map(|_| event()).collect::<Result<_>>()?,
            calls: (0..QUEUES).map(|_| event()).collect::<Result<_>>()?,
            generation: 0,
            cookie: 0,
        };
        guest.generation = guest.config()?.generation.get();
        Ok(guest)
    }

    /// Connects, shares its memory and starts all queues.
    pub(crate) fn connect(path: &Path, seals: Seals) -> Result<Self> {
        let mut guest = Self::bare(path, seals)?;
        guest.frontend.set_mem_table(&[guest.region()]).context("memory table")?;
        for queue in 0..QUEUES {
            guest.start(queue)?;
        }
        Ok(guest)
    }

    /// The region that the memory is.
    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        region(&self.memory, BASE, USER)
    }

    /// The configuration space.
    pub(crate) fn config(&mut self) -> Result<Config> {
        let (_, bytes) =
            self.frontend.get_config(0, 256, VhostUserConfigFlags::empty(), &[0; Config::BYTES])?;
        Config::read(&bytes).map_err(|error| anyhow!("configuration space: {error:?}"))
    }

    /// Starts a queue where it is by itself.
    pub(crate) fn start(&mut self, queue: u16) -> Result<()> {
        let at = usize::from(queue);
        let rings = USER + self.queues[at].offset;
        self.queues[at] = Queue::new(self.queues[at].offset);
        self.memory.zero(self.queues[at].offset, usize::try_from(RINGS)?)?;
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: rings,
            used_ring_addr: rings + USED,
            avail_ring_addr: rings + AVAILABLE,
            log_addr: None,
        };
        self.frontend.set_vring_num(at, SIZE)?;
        self.frontend.set_vring_addr(at, &config)?;
        self.frontend.set_vring_base(at, 0)?;
        self.frontend.set_vring_call(at, &self.calls[at])?;
        self.frontend.set_vring_kick(at, &self.kicks[at])?;
        Ok(self.frontend.set_vring_enable(at, true)?)
    }

    /// Resets the device: everything of this guest is destroyed, and the control queue starts anew.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.frontend.get_vring_base(CONTROL.into())?;
        self.start(CONTROL)
    }

    /// Notifies the device of a queue.
    pub(crate) fn kick(&self, queue: u16) {
        // A full counter is a notification too.
        let _full = self.kicks[usize::from(queue)].write(1);
    }

    /// Whether the daemon has hung up.
    pub(crate) fn is_cut_off(&self) -> bool {
        hung_up(&self.stream, Duration::ZERO)
    }

    /// Waits until the daemon hangs up.
    pub(crate) fn expect_cut_off(&self) -> Result<()> {
        ensure!(hung_up(&self.stream, PATIENCE), "the guest was not cut off");
        Ok(())
    }

    /// Waits for the next used chain of a queue.
    pub(crate) fn used(&mut self, queue: u16) -> Result<(u32, u32)> {
        self.used_within(queue, PATIENCE)?.with_context(|| format!("queue {queue} hangs"))
    }

    /// Waits for the next used chain of a queue, so long; none if the time is over.
    pub(crate) fn used_within(&mut self, queue: u16, patience: Duration) -> Result<Option<(u32, u32)>> {
        let deadline = Instant::now() + patience;
        let index = usize::from(queue);
        loop {
            if let Some(used) = self.queues[index].take(&self.memory)? {
                return Ok(Some(used));
            }
            ensure!(!self.is_cut_off(), "the guest was cut off while queue {queue} had a chain");
            if Instant::now() >= deadline {
                return Ok(None);
            }
            wait(&self.calls[index]);
        }
    }

    /// Offers a chain that begins at a head, and notifies.
    pub(crate) fn offer(&mut self, queue: u16, head: u16) -> Result<()> {
        let memory = self.memory.share()?;
        self.queues[usize::from(queue)].offer(&memory, head)?;
        self.kick(queue);
        Ok(())
    }

    /// Writes the descriptors of a queue, from the first one.
    pub(crate) fn describe(&self, queue: u16, descriptors: &[Descriptor]) -> Result<()> {
        for (index, descriptor) in (0..).zip(descriptors) {
            self.queues[usize::from(queue)].describe(&self.memory, index, *descriptor)?;
        }
        Ok(())
    }

    /// Puts a chain of these descriptors into a queue; answers the used length.
    pub(crate) fn chain(&mut self, queue: u16, descriptors: &[Descriptor]) -> Result<u32> {
        self.describe(queue, descriptors)?;
        self.offer(queue, 0)?;
        let (head, length) = self.used(queue)?;
        ensure!(head == 0, "a chain of head 0 came back as {head}");
        Ok(length)
    }

    /// The two descriptors of a request and its reply's room.
    pub(crate) fn descriptors(bytes: u32, room: u32) -> [Descriptor; 2] {
        [Descriptor::new(at(REQUEST), bytes, NEXT, 1), Descriptor::new(at(REPLY), room, WRITE, 0)]
    }

    /// Sends a request of any bytes.
    pub(crate) fn send(&mut self, request: &[u8], room: u32) -> Result<Reply> {
        ensure!(request.len() as u64 <= REQUEST_BYTES, "the test's own request is too long");
        self.memory.write(REQUEST, request)?;
        let length = u32::try_from(request.len())?;
        let length = self.chain(CONTROL, &Self::descriptors(length, room))?;
        ensure!(length <= room, "a reply of {length} bytes in {room}");
        Ok(Reply { bytes: self.memory.read(REPLY, length as usize)? })
    }

    /// The bytes of a request.
    pub(crate) fn request<V: Verb>(
        &mut self,
        verb: &V,
        segments: &[(u64, u64)],
        mode: SegmentMode,
    ) -> Result<Vec<u8>> {
        self.cookie += 1;
        let segments: Vec<_> = segments
            .iter()
            .map(|&(address, length)| Segment { address: U64::new(address), length: U64::new(length) })
            .collect();
        let mut bytes = vec![0; HEADER_BYTES + size_of::<V>() + size_of_val(segments.as_slice())];
        encode(&mut bytes, verb, &segments, mode, self.cookie, self.generation).context("encode")?;
        Ok(bytes)
    }

    /// Asks for a verb.
    pub(crate) fn ask<V: Verb>(
        &mut self,
        verb: &V,
        segments: &[(u64, u64)],
        mode: SegmentMode,
    ) -> Result<std::result::Result<V::Answer, Reason>> {
        let request = self.request(verb, segments, mode)?;
        let reply = self.send(&request, ROOM)?;
        match decode::<V>(&reply.bytes, self.cookie) {
            Ok(answer) => Ok(Ok(answer)),
            Err(ReplyError::Refused { reason, .. }) => {
                reply.ended()?;
                Ok(Err(reason))
            }
            Err(error) => bail!("{}: {error}", V::NAME),
        }
    }

    /// Asks for a verb that must be carried out.
    pub(crate) fn must<V: Verb>(&mut self, verb: &V, segments: &[(u64, u64)]) -> Result<V::Answer> {
        self.ask(verb, segments, SegmentMode::DIRECT)?
            .map_err(|reason| anyhow!("{} was refused: {reason}", V::NAME))
    }

    /// Asks for a verb that must be refused for a reason.
    pub(crate) fn refused<V: Verb>(
        &mut self,
        verb: &V,
        segments: &[(u64, u64)],
        reason: Reason,
    ) -> Result<()> {
        self.refused_as(verb, segments, SegmentMode::DIRECT, reason)
    }

    /// As [`Guest::refused`], with a segment mode.
    pub(crate) fn refused_as<V: Verb>(
        &mut self,
        verb: &V,
        segments: &[(u64, u64)],
        mode: SegmentMode,
        reason: Reason,
    ) -> Result<()> {
        match self.ask(verb, segments, mode)? {
            Err(seen) if seen == reason => Ok(()),
            Err(seen) => bail!("{} {segments:x?}: {seen} instead of {reason}", V::NAME),
            Ok(_) => bail!("{} {segments:x?}: carried out instead of {reason}", V::NAME),
        }
    }
}

/// A region of a memory.
pub(crate) fn region(memory: &Memory, guest_address: u64, user_address: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest_address,
        memory_size: memory.bytes(),
        userspace_addr: user_address,
        mmap_offset: 0,
        mmap_handle: memory.file().as_raw_fd(),
    }
}

/// Whether the other end hangs up within a time. What it still said is read.
pub(crate) fn hung_up(stream: &UnixStream, patience: Duration) -> bool {
    use std::io::Read;
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::new(stream, PollFlags::IN)];
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        match (&*stream).read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}

/// Waits a moment for an eventfd, and empties it.
fn wait(event: &EventFd) {
    if event.read().is_err() {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The flags of an eventfd that doesn't block.
fn nonblocking() -> i32 {
    EventfdFlags::NONBLOCK.bits().cast_signed()
}
