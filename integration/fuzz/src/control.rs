//! A guest's requests, virtqueues and memory, in the daemon's device on the real HCA and its model.
//!
//! Requests are well formed until the input says otherwise: the handles in them are those that the device gave.
//! Nothing may be left when the guest has gone.

mod request;

use std::fs::File;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use arbitrary::Arbitrary;
use mlx4::Profile;
use mlx4_model::fabric::Fabric;
use mlx4_model::seam::ModelDevice;
use mlx4_pci::HostMemory;
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_rdma::{BareDevice, RdmaHost, RelayConfig};
use paraverbs_tenant::hca::Hca;
use paraverbs_tenant::{GuestConfig, Host, Limits};
use virtio_rdma::Status;
use virtio_rdma::queue::{CONTROL, EVENT, QUEUES};
use virtio_rdma::request::{HEADER_BYTES, ReplyHeader};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::FromBytes;

use crate::input::operations;
use crate::parts::{card, eventually, fabric, seam, settle};
use request::{Handles, Request};

/// State of a port that is ready.
const ACTIVE: u8 = 4;

/// Bytes of the guest's memory, and its address.
const BYTES: usize = 4 << 20;
pub(crate) const BASE: u64 = 1 << 32;

/// Entries of queues, bytes between them, and where buffers are.
const QUEUE_SIZE: u16 = 16;
const QUEUE_BYTES: u64 = 0x3000;
/// Bytes of the first three queues.
const QUEUES_BYTES: usize = 0x9000;
const REQUEST: u64 = 0x4_0000;
const REPLY: u64 = 0x5_0000;
const EVENTS: u64 = 0x6_0000;
/// Where the memory of objects is, in pages.
pub(crate) const OBJECTS: u64 = 0x8_0000;
/// What is cleared for each guest.
const CLEARED: usize = 0x10_0000;

/// Flags of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Request(Request<'a>),
    /// Bytes of a request as they are.
    Raw(&'a [u8]),
    /// Bytes into the queues' memory, and a look at one of them.
    Queue {
        at: u16,
        bytes: &'a [u8],
        serve: u8,
    },
    /// Starts a queue anew.
    Start {
        queue: u8,
        size: u16,
        moved: u16,
    },
    /// Bytes into the objects' memory: rings, records, doorbell areas.
    Object {
        at: u16,
        bytes: &'a [u8],
    },
    Serve(u8),
    Memory {
        regions: u8,
    },
    Reset,
    Run,
}

struct Scene {
    device: Arc<ModelDevice>,
    host: Arc<RdmaHost>,
    memory: HostMemory,
    tables: [GuestMemoryMmap<()>; 3],
    before: String,
    _fabric: Arc<Fabric>,
}

static SCENE: LazyLock<Mutex<Scene>> = LazyLock::new(|| Mutex::new(Scene::new()));

/// Is a guest.
pub fn run(bytes: &[u8]) {
    let scene = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    scene.memory.write(0, &[0; CLEARED]).unwrap();
    let limits = Limits { window_bytes: 1 << 36, mrs: 16, cqs: 8, qps: 8, srqs: 8, ..Limits::default() };
    let device = BareDevice::new(&scene.host, GuestConfig { limits, ..GuestConfig::default() }).unwrap();
    device.set_memory(scene.tables[0].clone(), false).unwrap();
    let mut guest = Guest { scene: &scene, device, available: 0, handles: Handles::default() };
    (0..QUEUES).for_each(|queue| guest.start(queue, QUEUE_SIZE, 0));
    guest.give_event_buffers();
    for step in operations::<Step<'_>>(bytes, 100) {
        guest.take(&step);
    }
    settle(scene.device.hca());
    let report = guest.device.close();
    assert_eq!(scene.host.host().quarantined_bytes(), 0, "{report:?}");
    assert_eq!(scene.device.refused(), 0, "accesses of the HCA to memory that nobody gave it");
    assert_eq!(scene.device.hca().dump(), scene.before, "objects are left behind");
}

fn table(memory: &HostMemory, regions: &[(u64, usize, u64)]) -> GuestMemoryMmap<()> {
    let file = || File::from(memory.fd().try_clone_to_owned().unwrap());
    let ranges = regions.iter().map(|(address, bytes, offset)| {
        (GuestAddress(*address), *bytes, Some(FileOffset::new(file(), *offset)))
    });
    GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()
}

impl Scene {
    fn new() -> Self {
        let fabric = fabric(true);
        let device = card(&fabric, 0x0002_c903_00f4_0000);
        let profile = Profile { log2_cqs: 10, log2_mcgs: 8, ..Profile::default() };
        let config = Mlx4Config { profile, completion_eqs: 1, ..Mlx4Config::default() };
        let hca = Mlx4Hca::open(seam(&device), config).unwrap();
        let active = || hca.query_port(1).ok().filter(|port| port.state == ACTIVE);
        eventually("an active port", &[device.hca()], active);
        settle(device.hca());
        let relay = RelayConfig { spin: Duration::ZERO };
        let host = RdmaHost::start(Host::new(hca), None, relay).unwrap();
        let memory = HostMemory::allocate(BYTES).unwrap();
        let half = BYTES / 2;
        let tables = [
            table(&memory, &[(BASE, BYTES, 0)]),
            table(&memory, &[(BASE, half, 0)]),
            table(&memory, &[(BASE, half, 0), (BASE + BYTES as u64, half, half as u64)]),
        ];
        let before = device.hca().dump();
        Self { device, host, memory, tables, before, _fabric: fabric }
    }
}

struct Guest<'a> {
    scene: &'a Scene,
    device: BareDevice,
    /// Index behind the last chain of the control queue.
    available: u16,
    handles: Handles,
}

impl Guest<'_> {
    fn take(&mut self, step: &Step<'_>) {
        match step {
            Step::Request(request) => {
                let generation = self.device.tenant().generation();
                let reply = self.ask(&request.bytes(&self.handles, generation));
                if let Some(handle) = reply {
                    self.handles.add(request.opcode(), handle);
                }
            }
            Step::Raw(bytes) => drop(self.ask(bytes)),
            Step::Queue { at, bytes, serve } => {
                let at = usize::from(*at) % QUEUES_BYTES;
                self.put(at as u64, &bytes[..bytes.len().min(0x1000)]);
                self.device.serve(u16::from(*serve) % QUEUES);
            }
            Step::Start { queue, size, moved } => {
                self.start(u16::from(*queue) % QUEUES, *size, u64::from(*moved));
            }
            Step::Object { at, bytes } => {
                self.put(OBJECTS + u64::from(*at), &bytes[..bytes.len().min(0x1000)]);
            }
            Step::Serve(queue) => self.device.serve(u16::from(*queue) % QUEUES),
            Step::Memory { regions } => {
                let table = match regions % 4 {
                    3 => GuestMemoryMmap::new(),
                    index => self.scene.tables[usize::from(index)].clone(),
                };
                let _refused = self.device.set_memory(table, regions & 0x80 != 0);
            }
            Step::Reset => self.device.reset(),
            Step::Run => settle(self.scene.device.hca()),
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.scene.memory.write(usize::try_from(at).unwrap(), bytes).unwrap();
    }

    fn start(&mut self, queue: u16, size: u16, moved: u64) {
        let start = BASE + u64::from(queue) * QUEUE_BYTES;
        self.device.start_queue(queue, size, [start + moved, start + 0x1000, start + 0x2000]);
        if queue == CONTROL {
            self.available = 0;
            self.put(0x1002, &[0; 2]);
        }
    }

    fn give_event_buffers(&self) {
        let start = u64::from(EVENT) * QUEUE_BYTES;
        for index in 0..QUEUE_SIZE {
            let buffer = BASE + EVENTS + 32 * u64::from(index);
            self.put(start + 16 * u64::from(index), &descriptor(buffer, 32, WRITE, 0));
            self.put(start + 0x1004 + 2 * u64::from(index), &index.to_le_bytes());
        }
        self.put(start + 0x1002, &QUEUE_SIZE.to_le_bytes());
    }

    /// Sends a request; the first word of the answer, if it was carried out.
    fn ask(&mut self, request: &[u8]) -> Option<u32> {
        let request = &request[..request.len().min(0x1_0000)];
        self.put(REQUEST, request);
        self.put(REPLY, &[0xff; HEADER_BYTES + 4]);
        let length = u32::try_from(request.len()).unwrap();
        self.put(0, &descriptor(BASE + REQUEST, length, NEXT, 1));
        self.put(16, &descriptor(BASE + REPLY, 512, WRITE, 0));
        self.put(0x1004 + 2 * u64::from(self.available % QUEUE_SIZE), &[0; 2]);
        self.available = self.available.wrapping_add(1);
        self.put(0x1002, &self.available.to_le_bytes());
        self.device.serve(CONTROL);
        let mut reply = [0; HEADER_BYTES + 4];
        self.scene.memory.read(usize::try_from(REPLY).unwrap(), &mut reply).unwrap();
        let (header, answer) = ReplyHeader::ref_from_prefix(&reply).unwrap();
        let answer = u32::from_le_bytes(*answer.first_chunk().unwrap());
        let length = usize::try_from(header.length.get()).unwrap();
        (header.status == Status::OK && length > HEADER_BYTES).then_some(answer)
    }
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}
