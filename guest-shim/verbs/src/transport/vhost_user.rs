//! vhost-user spoken directly: this process is to the daemon what a VMM is.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_rdma::config::Config;
use virtio_rdma::queue::QUEUES;

use super::region::Region;
use super::{QueueRings, Transport};
use crate::error::{Error, Result};
use crate::event_fd::Event;
use crate::memory::{Chunk, Span};

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the daemon must have of the protocol.
const NEEDED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// What is used of it to have doorbells mapped, where the daemon offers that.
const REGION: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::SHMEM.union(VhostUserProtocolFeatures::BACKEND_REQ);

/// How long the daemon may take to its first answer. It serves one connection of a socket after another.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of guest addresses that the daemon gives each guest.
const ADDRESS_SPACE: u64 = 1 << 40;

/// A connection to the daemon.
pub(crate) struct VhostUser {
    path: PathBuf,
    frontend: Frontend,
    stream: UnixStream,
    kicks: Vec<Event>,
    interrupts: Vec<Event>,
    region: Option<Region>,
}

impl VhostUser {
    /// Connects to a socket, and speaks until memory and queues are wanted.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let connect = |error| Error::Connect { path: path.to_owned(), error };
        let stream = UnixStream::connect(path).map_err(connect)?;
        probe(&stream).map_err(|what| Error::Handshake {
            path: path.to_owned(),
            step: "first message",
            what,
        })?;
        let eventfds = || -> Result<Vec<Event>> {
            (0..QUEUES)
                .map(|_| Event::new())
                .collect::<io::Result<_>>()
                .map_err(Error::system("eventfds of queues"))
        };
        let clone = stream.try_clone().map_err(Error::system("another descriptor of the socket"))?;
        let frontend = Frontend::from_stream(clone, QUEUES.into());
        let (kicks, interrupts) = (eventfds()?, eventfds()?);
        let mut device = Self { path: path.to_owned(), frontend, stream, kicks, interrupts, region: None };
        device.agree()?;
        Ok(device)
    }

    fn failed<T>(&self, step: &'static str, result: vhost::Result<T>) -> Result<T> {
        result.map_err(|error| self.handshake(step, error.to_string()))
    }

    fn handshake(&self, step: &'static str, what: String) -> Error {
        Error::Handshake { path: self.path.clone(), step, what }
    }

    /// Settles features and protocol features.
    fn agree(&mut self) -> Result<()> {
        let mut frontend = self.frontend.clone();
        self.failed("SET_OWNER", frontend.set_owner())?;
        let features = self.failed("GET_FEATURES", frontend.get_features())?;
        let wanted = VERSION_1 | PROTOCOL_FEATURES;
        if features & wanted != wanted {
            return Err(self.handshake("GET_FEATURES", format!("{features:#x} lacks {wanted:#x}")));
        }
        let offered = self.failed("GET_PROTOCOL_FEATURES", frontend.get_protocol_features())?;
        if !offered.contains(NEEDED) {
            let lacks = NEEDED.difference(offered);
            return Err(self.handshake("GET_PROTOCOL_FEATURES", format!("the daemon lacks {lacks:?}")));
        }
        let region = offered.contains(REGION);
        let taken = if region { NEEDED | REGION } else { NEEDED };
        self.failed("SET_PROTOCOL_FEATURES", frontend.set_protocol_features(taken))?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let queues = self.failed("GET_QUEUE_NUM", frontend.get_queue_num())?;
        if queues < QUEUES.into() {
            return Err(self.handshake("GET_QUEUE_NUM", format!("{queues} queues, {QUEUES} are needed")));
        }
        if region {
            self.region = self.agree_on_region()?;
        }
        self.failed("SET_FEATURES", frontend.set_features(wanted))
    }

    /// Learns of the shared-memory region and gives the daemon the channel on which it says what to map of it.
    fn agree_on_region(&self) -> Result<Option<Region>> {
        let mut frontend = self.frontend.clone();
        let config = self.failed("GET_SHMEM_CONFIG", frontend.get_shmem_config())?;
        let Some(bytes) = config.memory_sizes.first().filter(|bytes| config.nregions != 0 && **bytes != 0)
        else {
            return Ok(None);
        };
        let region = Region::new(*bytes).map_err(Error::system("a channel for the daemon"))?;
        let given = frontend.set_backend_request_fd(&region.far_end());
        self.failed("SET_BACKEND_REQ_FD", given)?;
        Ok(Some(region))
    }
}

/// Asks for the features, by hand, and waits for the answer only so long: behind a socket that another guest has,
/// or a daemon that hangs, nobody answers.
fn probe(mut stream: &UnixStream) -> std::result::Result<(), String> {
    /// Code 1, `VHOST_USER_GET_FEATURES`; version 1; no payload.
    const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let mut answer = [0; 20];
    let set = |patience| stream.set_read_timeout(patience).map_err(|error| error.to_string());
    set(Some(PATIENCE))?;
    let asked = stream.write_all(&GET_FEATURES).and_then(|()| stream.read_exact(&mut answer));
    set(None)?;
    match asked {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err("no answer; another guest may have the socket, or the daemon hangs".into())
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err("the daemon closed the connection; its log tells why".into())
        }
        Err(error) => Err(error.to_string()),
    }
}

impl Transport for VhostUser {
    fn config(&self) -> Result<Config> {
        let mut frontend = self.frontend.clone();
        let room = [0; Config::BYTES];
        #[expect(clippy::cast_possible_truncation, reason = "256")]
        let bytes = Config::BYTES as u32;
        let asked = frontend.get_config(0, bytes, VhostUserConfigFlags::empty(), &room);
        let (_, bytes) = self.failed("GET_CONFIG", asked)?;
        Ok(Config::read(&bytes)?)
    }

    fn add_memory(&self, chunk: &Arc<Chunk>, guest_address: u64) -> Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: guest_address,
            memory_size: chunk.len() as u64,
            userspace_addr: chunk.address(),
            mmap_offset: 0,
            mmap_handle: chunk.fd().as_raw_fd(),
        };
        self.frontend
            .clone()
            .add_mem_region(&region)
            .map(|_| ())
            .map_err(|error| Error::NoMemory(format!("the daemon takes no more memory: {error}")))
    }

    fn address_space(&self) -> u64 {
        ADDRESS_SPACE
    }

    fn start_queue(&self, index: u16, rings: &QueueRings) -> Result<()> {
        let mut frontend = self.frontend.clone();
        let at = usize::from(index);
        let size = rings.layout.size;
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: rings.address,
            used_ring_addr: rings.address + rings.layout.used() as u64,
            avail_ring_addr: rings.address + rings.layout.available() as u64,
            log_addr: None,
        };
        self.failed("SET_VRING_NUM", frontend.set_vring_num(at, size))?;
        self.failed("SET_VRING_ADDR", frontend.set_vring_addr(at, &config))?;
        self.failed("SET_VRING_BASE", frontend.set_vring_base(at, 0))?;
        self.failed("SET_VRING_CALL", frontend.set_vring_call(at, self.interrupts[at].inner()))?;
        self.failed("SET_VRING_KICK", frontend.set_vring_kick(at, self.kicks[at].inner()))?;
        self.failed("SET_VRING_ENABLE", frontend.set_vring_enable(at, true))
    }

    fn kick(&self, index: u16) {
        self.kicks[usize::from(index)].raise();
    }

    fn interrupt(&self, index: u16) -> &Event {
        &self.interrupts[usize::from(index)]
    }

    fn region(&self, offset: u64, bytes: usize) -> Option<Span> {
        self.region.as_ref()?.span(offset, bytes)
    }

    fn wanted(&self) -> Option<BorrowedFd<'_>> {
        self.region.as_ref().map(Region::wanted)
    }

    fn serve(&self) -> bool {
        self.region.as_ref().is_some_and(Region::serve)
    }

    fn hangup(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl std::fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUser").field("path", &self.path).finish_non_exhaustive()
    }
}
