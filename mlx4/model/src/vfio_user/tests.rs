//! The server under the protocol crate's own client, and under messages that no client should send.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use ::vfio_user::Client;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER as TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD as EVENTFD,
    VFIO_IRQ_SET_DATA_NONE as NONE, VFIO_PCI_CONFIG_REGION_INDEX as CONFIG, VFIO_PCI_INTX_IRQ_INDEX as INTX,
    VFIO_PCI_MSIX_IRQ_INDEX as MSIX, VFIO_PCI_ROM_REGION_INDEX as ROM,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::device::Interrupts;
use crate::mem::{Access, FaultCause};

const BAR_SIZE: usize = 0x2000;
const IOVA: u64 = 0x7000_0000_0000;
const VECTORS: u16 = 8;

/// Memory as configuration space and as BAR 0.
struct Memory {
    config: Mutex<[u8; 4096]>,
    bar: Mutex<[u8; BAR_SIZE]>,
    resets: AtomicUsize,
}

impl PciFunction for Memory {
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.config.lock().unwrap()[offset..offset + data.len()]);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn bar_size(&self, bar: u8) -> u64 {
        if bar == 0 { BAR_SIZE as u64 } else { 0 }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        assert_eq!(bar, 0);
        let offset = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.bar.lock().unwrap()[offset..offset + data.len()]);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        assert_eq!(bar, 0);
        let offset = usize::try_from(offset).unwrap();
        self.bar.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn reset(&self) {
        self.config.lock().unwrap()[4..6].fill(0);
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Rig {
    folder: tempfile::TempDir,
    function: Arc<Memory>,
    dma: Arc<DmaSpace>,
    irqs: Arc<EventFdInterrupts>,
    server: Option<VfioUserServer>,
}

impl Rig {
    fn new() -> Self {
        let mut config = [0; 4096];
        config[..4].copy_from_slice(&[0xb3, 0x15, 0x03, 0x10]);
        config[0x3d] = 1;
        let function = Arc::new(Memory {
            config: Mutex::new(config),
            bar: Mutex::new([0; BAR_SIZE]),
            resets: AtomicUsize::new(0),
        });
        let mut rig = Self {
            folder: tempfile::tempdir().unwrap(),
            function,
            dma: Arc::new(DmaSpace::new()),
            irqs: Arc::new(EventFdInterrupts::new(VECTORS)),
            server: None,
        };
        rig.server = Some(rig.start(&rig.path()).unwrap());
        rig
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("hca.sock")
    }

    fn start(&self, path: &Path) -> Result<VfioUserServer, ServeError> {
        let function = Arc::clone(&self.function);
        VfioUserServer::start(path, function, Arc::clone(&self.dma), Arc::clone(&self.irqs))
    }

    fn client(&self) -> Client {
        Client::new(&self.path()).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn resets(&self) -> usize {
        self.function.resets.load(Ordering::SeqCst)
    }

    /// Waits until the server has cleaned up after a client.
    fn wait_for_resets(&self, wanted: usize) {
        let started = Instant::now();
        while self.resets() < wanted {
            assert!(started.elapsed() < Duration::from_secs(10), "{} resets", self.resets());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A message of the protocol: id 7, the command, flags 0, then the body.
fn message(command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + body.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend([7u16, command].iter().flat_map(|field| field.to_le_bytes()));
    bytes.extend([size, flags, 0].iter().flat_map(|field| field.to_le_bytes()));
    bytes.extend(body);
    bytes
}

/// The body of a region access.
fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    let words = [region, count];
    let mut body = offset.to_le_bytes().to_vec();
    body.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    body.extend(data);
    body
}

/// The body of a DMA map.
fn map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut body: Vec<u8> = [32, flags].iter().flat_map(|word| word.to_le_bytes()).collect();
    body.extend([offset, address, size].iter().flat_map(|word| word.to_le_bytes()));
    body
}

/// Reads a reply's header: (message id, command, whether it is an error).
fn reply(stream: &mut UnixStream) -> (u16, u16, bool) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    (half(0), half(2), header[8] & 1 << 5 != 0)
}

const DMA_MAP: u16 = 2;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;

#[test]
fn regions_and_interrupts_are_described() {
    let rig = Rig::new();
    let mut client = rig.client();
    let size = |index| client.region(index).map(|region| region.size);
    assert_eq!(size(0), Some(BAR_SIZE as u64));
    assert_eq!(size(1), Some(0));
    assert_eq!(size(ROM), Some(0));
    assert_eq!(size(CONFIG), Some(4096));
    assert!((0..9).all(|index| client.region(index).is_some_and(|region| region.sparse_areas.is_empty())));
    let counts: Vec<u32> = (0..5).map(|index| client.get_irq_info(index).unwrap().count).collect();
    assert_eq!(counts, [1, 0, u32::from(VECTORS), 0, 0]);
}

#[test]
fn accesses_reach_the_function() {
    let rig = Rig::new();
    let mut client = rig.client();
    let mut whole = vec![0; 4096];
    client.region_read(CONFIG, 0, &mut whole).unwrap();
    assert_eq!(whole[..4], [0xb3, 0x15, 0x03, 0x10]);
    client.region_write(0, 0x1ff8, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let mut word = [0; 4];
    client.region_read(0, 0x1ffc, &mut word).unwrap();
    assert_eq!(word, [5, 6, 7, 8]);
}

#[test]
fn access_outside_a_region_is_refused_or_dropped() {
    let rig = Rig::new();
    let mut stream = rig.raw();
    for (region, offset, count) in
        [(0, 0x1ffd, 4), (0, u64::MAX, 4), (1, 0, 4), (CONFIG, 0, u32::MAX), (99, 0, 1)]
    {
        stream.write_all(&message(REGION_READ, 0, &access(region, offset, count, &[]))).unwrap();
        assert_eq!(reply(&mut stream), (7, REGION_READ, true), "region {region} offset {offset:#x}");
    }
    // A posted write to nowhere gets no answer: the next answer is the one to the read.
    stream.write_all(&message(REGION_WRITE, 1 << 4, &access(0, 0x2000, 4, &[9; 4]))).unwrap();
    stream.write_all(&message(REGION_READ, 0, &access(0, 0x1ffc, 4, &[]))).unwrap();
    assert_eq!(reply(&mut stream), (7, REGION_READ, false));
    let mut rest = [0; 20];
    stream.read_exact(&mut rest).unwrap();
    assert_eq!(rest[16..], [0; 4]);
}

#[test]
fn malformed_message_costs_its_sender_only_the_connection() {
    let rig = Rig::new();
    // A version message shorter than its fixed part, and one whose text has no end.
    for body in [&b""[..], &[0, 0, 1, 0, b'x', b'y']] {
        let resets = rig.resets();
        let mut stream = rig.raw();
        stream.write_all(&message(1, 0, body)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // Whatever it answers, the connection ends.
        let _ = stream.read_to_end(&mut rest);
        rig.wait_for_resets(resets + 1);
    }
    assert_eq!(rig.client().region(CONFIG).map(|region| region.size), Some(4096));
}

#[test]
fn interrupts_arrive_on_the_vectors_that_are_connected() {
    let rig = Rig::new();
    let mut client = rig.client();
    let fds: Vec<EventFd> = (0..2).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
    // As QEMU does: enable without a descriptor, then one vector after the other.
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1, &[]).unwrap();
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 3, 1, &[fds[0].as_raw_fd()]).unwrap();
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 7, 1, &[fds[1].as_raw_fd()]).unwrap();
    for vector in [0, 3, 3, 7, 8, u16::MAX] {
        rig.irqs.signal(vector);
    }
    assert_eq!((fds[0].read().unwrap(), fds[1].read().unwrap()), (2, 1));
    client.set_irqs(MSIX, NONE | TRIGGER, 7, 1, &[]).unwrap();
    assert_eq!(fds[1].read().unwrap(), 1);
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 3, 1, &[]).unwrap();
    rig.irqs.signal(3);
    assert!(fds[0].read().is_err());
    client.set_irqs(MSIX, NONE | TRIGGER, 0, 0, &[]).unwrap();
    rig.irqs.signal(7);
    assert!(fds[1].read().is_err());
    // The pin's eventfd is taken and never used.
    client.set_irqs(INTX, EVENTFD | TRIGGER, 0, 1, &[fds[0].as_raw_fd()]).unwrap();
}

#[test]
fn interrupt_never_waits_for_a_full_eventfd() {
    let rig = Rig::new();
    let mut client = rig.client();
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1, &[full.as_raw_fd()]).unwrap();
    rig.irqs.signal(0);
    assert_eq!(full.read().unwrap(), u64::MAX - 1);
}

#[test]
fn vectors_beyond_the_table_are_refused() {
    let rig = Rig::new();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    for (start, count) in [(8, 1), (7, 2), (u32::MAX, 1), (u32::MAX, u32::MAX)] {
        let fds = vec![File::open("/dev/null").unwrap()];
        assert!(rig.irqs.connect(start, count, fds).is_err(), "{start} {count}");
        assert!(rig.irqs.raise(start, count).is_err(), "{start} {count}");
    }
    let mut client = rig.client();
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 8, 1, &[fd.as_raw_fd()]).unwrap();
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 7, 1, &[fd.as_raw_fd()]).unwrap();
    rig.irqs.signal(7);
    assert_eq!(fd.read().unwrap(), 1);
}

#[test]
fn memory_of_the_client_is_reached_while_mapped_and_bus_master_is_on() {
    let rig = Rig::new();
    let mut client = rig.client();
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x4000).unwrap();
    client.dma_map(0x1000, IOVA, 0x2000, file.as_raw_fd()).unwrap();
    assert_eq!(rig.dma.snapshot().write(IOVA, b"off").unwrap_err().cause, FaultCause::Disabled);
    client.region_write(CONFIG, 4, &[6, 0]).unwrap();
    rig.dma.snapshot().write(IOVA + 0x1000, b"here").unwrap();
    let mut bytes = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0x2000).unwrap();
    assert_eq!(&bytes, b"here");
    client.dma_unmap(IOVA, 0x2000).unwrap();
    assert_eq!(rig.dma.snapshot().write(IOVA, b"gone").unwrap_err().cause, FaultCause::Unmapped);
    client.reset().unwrap();
    assert_eq!(rig.resets(), 1);
    assert_eq!(rig.dma.snapshot().write(IOVA, b"reset").unwrap_err().cause, FaultCause::Disabled);
}

#[test]
fn maps_without_descriptor_are_skipped_and_read_only_ones_stay_so() {
    let rig = Rig::new();
    let mut stream = rig.raw();
    stream.write_all(&message(DMA_MAP, 0, &map(3, 0, IOVA, 0x1000))).unwrap();
    assert_eq!(reply(&mut stream), (7, DMA_MAP, false));
    assert_eq!(rig.dma.mappings(), 0);
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1000).unwrap();
    stream.send_with_fd(&message(DMA_MAP, 0, &map(1, 0, IOVA, 0x1000))[..], file.as_raw_fd()).unwrap();
    assert_eq!(reply(&mut stream), (7, DMA_MAP, false));
    rig.dma.set_enabled(true);
    let view = rig.dma.snapshot();
    assert!(view.slice(IOVA, 0x1000, Access::Read).is_ok());
    assert_eq!(view.write(IOVA, &[1]).unwrap_err().cause, FaultCause::ReadOnly);
    drop(view);
    // Beyond the end of the file.
    stream.send_with_fd(&message(DMA_MAP, 0, &map(3, 0x1000, 0, 0x1000))[..], file.as_raw_fd()).unwrap();
    assert_eq!(reply(&mut stream), (7, DMA_MAP, true));
    assert_eq!(rig.dma.mappings(), 1);
}

#[test]
fn next_client_finds_everything_as_the_first_did() {
    let rig = Rig::new();
    let mut first = rig.client();
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1000).unwrap();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    first.region_write(CONFIG, 4, &[6, 0]).unwrap();
    first.dma_map(0, IOVA, 0x1000, file.as_raw_fd()).unwrap();
    first.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1, &[fd.as_raw_fd()]).unwrap();
    first.shutdown().unwrap();
    drop(first);
    let mut second = rig.client();
    assert_eq!((rig.resets(), rig.dma.mappings()), (1, 0));
    rig.irqs.signal(0);
    assert!(fd.read().is_err());
    let mut command = [1; 2];
    second.region_read(CONFIG, 4, &mut command).unwrap();
    assert_eq!(command, [0, 0]);
    second.dma_map(0, IOVA, 0x1000, file.as_raw_fd()).unwrap();
}

#[test]
fn stop_disconnects_the_client_and_removes_the_socket() {
    let mut rig = Rig::new();
    let mut stream = rig.raw();
    stream.write_all(&message(REGION_READ, 0, &access(0, 0, 4, &[]))).unwrap();
    assert_eq!(reply(&mut stream), (7, REGION_READ, false));
    let started = Instant::now();
    rig.server.take().unwrap().stop();
    assert!(started.elapsed() < STOP_PATIENCE);
    assert!(!rig.path().exists());
    assert_eq!((rig.resets(), rig.dma.mappings()), (1, 0));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 20);
    // And without a client.
    let server = rig.start(&rig.path()).unwrap();
    drop(server);
    assert!(!rig.path().exists());
}

#[test]
fn path_that_cannot_be_used_is_named_in_the_error() {
    let rig = Rig::new();
    let path = rig.path();
    let start = |path: &Path| match rig.start(path) {
        Err(ServeError::Socket(error)) => Err(error),
        other => Ok(other),
    };
    assert!(matches!(start(&path), Err(SocketError::InUse { path: named }) if named == path));
    assert!(path.exists(), "the running server's socket was taken away");
    let long = rig.folder.path().join("x".repeat(108));
    assert!(matches!(start(&long), Err(SocketError::PathTooLong { len, .. }) if len > 108));
    let plain = rig.folder.path().join("plain");
    fs::write(&plain, "kept").unwrap();
    assert!(matches!(start(&plain), Err(SocketError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&plain).unwrap(), "kept");
    let nowhere = rig.folder.path().join("none/hca.sock");
    assert!(matches!(start(&nowhere), Err(SocketError::Listen { .. })));
}

#[test]
fn socket_of_a_dead_server_is_replaced_and_of_another_left() {
    let mut rig = Rig::new();
    let stale = rig.folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let server = rig.start(&stale).unwrap();
    assert!(Client::new(&stale).is_ok());
    drop(server);
    // Somebody moved the socket away and put another there.
    let path = rig.path();
    fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rig.server.take().unwrap().stop();
    assert!(path.exists());
    drop(other);
}
