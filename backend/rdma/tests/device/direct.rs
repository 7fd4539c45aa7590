//! Doorbells in the device's shared-memory region: offered, mapped, rung, and misused.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use paraverbs_rdma::{Doorbells, GuestSocket, GuestSocketConfig};
use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use virtio_rdma::Reason;
use virtio_rdma::config::Capabilities;
use virtio_rdma::doorbell::{DoorbellMode, Words, ring};
use virtio_rdma::queue::{CONTROL, FIRST_KICK, QUEUES};
use virtio_rdma::request::domain::{AllocPd, AllocUar, DeallocUar, UarAllocated};
use virtio_rdma::request::query::{QueryDevice, QueryStats};
use virtio_rdma::{U32, U64};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::FromZeros;

use crate::guest::{BASE, BYTES, Guest, Memory, VERSION_1, config, connect, memfd, wait_until};
use crate::hostile::Stopping;
use crate::objects::{Process, alloc_uar};
use crate::scene::Scene;

/// Words of an area, by their index.
const SLEEPING: usize = 0x40 / 8;
const UPPER: usize = 0x80 / 8;
const LOWER: usize = 0x200 / 8;

/// Slots of an area in the region: the guest's limit.
const SLOTS: u32 = 4096;

const DIRECT: AllocUar = AllocUar {
    mode: DoorbellMode::DIRECT,
    reserved: virtio_rdma::Reserved::ZERO,
    slots: U32::ZERO,
    area: U64::ZERO,
    reserved_end: virtio_rdma::Reserved::ZERO,
};

/// What the front end was asked for.
#[derive(Debug, Default)]
struct Asked {
    log: Mutex<Vec<&'static str>>,
    map: Mutex<Option<Arc<MmapRegion>>>,
    refuses: AtomicBool,
}

impl VhostUserFrontendReqHandler for Asked {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let (id, at, from, flags) = (request.shmid, request.shm_offset, request.fd_offset, request.flags);
        assert_eq!((id, at, from, flags), (0, 0, 0, 1));
        if self.refuses.load(Ordering::SeqCst) {
            return Err(std::io::Error::from_raw_os_error(12));
        }
        // As the VMM has it from then on, whatever becomes of the descriptor.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let file = File::options().read(true).write(true).open(path).unwrap();
        assert!(file.set_len(0).is_err(), "the guest could take it away");
        let region = MmapRegion::from_file(FileOffset::new(file, 0), request.len as usize).unwrap();
        self.log.lock().unwrap().push("map");
        *self.map.lock().unwrap() = Some(Arc::new(region));
        Ok(0)
    }

    fn shmem_unmap(&self, _: &VhostUserMMap) -> HandlerResult<u64> {
        self.log.lock().unwrap().push("unmap");
        Ok(0)
    }
}

/// A guest whose front end maps regions, when it is told to look what it was asked for.
struct DirectGuest {
    guest: Guest,
    handler: FrontendReqHandler<Asked>,
    asked: Arc<Asked>,
}

/// An area of a region.
#[derive(Clone, Debug)]
struct Area {
    map: Arc<MmapRegion>,
    offset: usize,
}

impl Words for Area {
    fn word(&self, index: usize) -> &AtomicU64 {
        self.map.get_atomic_ref(self.offset + 8 * index).unwrap()
    }
}

impl Area {
    fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::SeqCst)
    }

    fn store(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::SeqCst);
    }

    /// Sets every summary bit that there is, and some that there aren't.
    fn set_all(&self) {
        (0..64).for_each(|word| self.word(LOWER + word).store(u64::MAX, Ordering::Relaxed));
        self.word(UPPER).store(u64::MAX, Ordering::Release);
    }
}

/// A front end that has agreed on a region, and the region's size.
fn frontend(path: &Path) -> (Frontend, FrontendReqHandler<Asked>, Arc<Asked>, u64) {
    let mut frontend = Frontend::connect(path, u64::from(QUEUES)).unwrap();
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    frontend.set_features(VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()).unwrap();
    let region = VhostUserProtocolFeatures::SHMEM | VhostUserProtocolFeatures::BACKEND_REQ;
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(region));
    frontend.set_protocol_features(offered).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let asked = Arc::new(Asked::default());
    let mut handler = FrontendReqHandler::new(Arc::clone(&asked)).unwrap();
    handler.set_reply_ack_flag(true);
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
    let config = frontend.get_shmem_config().unwrap();
    assert_eq!(config.nregions, 1);
    (frontend, handler, asked, config.memory_sizes[0])
}

impl DirectGuest {
    fn new(path: &Path) -> Self {
        let (frontend, handler, asked, bytes) = frontend(path);
        assert_eq!(bytes, 4 << 20);
        let file = memfd(BYTES as u64, rustix::fs::SealFlags::SHRINK);
        let mut guest = Guest::on(frontend, VERSION_1, Memory::new(BASE, file, BYTES));
        let offered = config(&mut guest.frontend).capabilities;
        assert!(offered.contains(Capabilities::DOORBELLS_DIRECT));
        guest.start_queues();
        guest.give_event_buffers();
        Self { guest, handler, asked }
    }

    /// A UAR in the region, for which the front end is asked to map first.
    fn first_uar(&mut self) -> UarAllocated {
        self.guest.send(&DIRECT, &[]);
        self.handler.handle_request().unwrap();
        self.guest.reply::<AllocUar>().unwrap()
    }

    fn uar(&mut self) -> UarAllocated {
        self.guest.call(&DIRECT, &[]).unwrap()
    }

    fn area(&self, uar: &UarAllocated) -> Area {
        let map = self.asked.map.lock().unwrap().clone().unwrap();
        assert_eq!((uar.area_bytes.get(), uar.slots.get()), (4096 + 8 * SLOTS, SLOTS));
        Area { map, offset: uar.area_offset.get() as usize }
    }

    fn free(&mut self, uar: &UarAllocated) -> Result<(), Reason> {
        self.guest.call(&DeallocUar { uar: uar.uar, ..DeallocUar::new_zeroed() }, &[]).map(|_| ())
    }

    /// What the front end was asked for so far.
    fn log(&self) -> Vec<&'static str> {
        self.asked.log.lock().unwrap().clone()
    }

    /// Waits until the device wants something of the front end.
    fn wait_until_asked(&self) {
        wait_until(|| is_readable(&self.handler));
    }
}

fn is_readable(handler: &FrontendReqHandler<Asked>) -> bool {
    let epoll = Epoll::new().unwrap();
    let wanted = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, handler.as_raw_fd(), wanted).unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

fn socket(scene: &Scene, name: &str) -> GuestSocket {
    let config = GuestSocketConfig { doorbells: Doorbells::Direct, ..scene.config(name) };
    GuestSocket::listen(&scene.host, config).unwrap()
}

#[test]
fn rings_in_the_region_arrive_and_the_reader_asks_for_kicks_as_ever() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    let uar = guest.first_uar();
    let area = guest.area(&uar);
    assert_eq!((area.load(0), area.load(UPPER)), (1 | u64::from(SLOTS) << 32, 0));
    let process = Process::in_uar(&mut guest.guest, 0, 0, &uar);
    for value in 1..200 {
        wait_until(|| area.load(SLEEPING) != 0);
        assert!(ring(&area, process.send, value), "the reader sleeps and wants no kick");
        guest.guest.kick(FIRST_KICK);
        wait_until(|| scene.hca.sends(process.qpn) == (value, value));
    }
    wait_until(|| area.load(SLEEPING) != 0);
    assert!(ring(&area, process.arm, 7), "the reader sleeps and wants no kick");
    guest.guest.kick(FIRST_KICK);
    wait_until(|| scene.hca.arms.load(Ordering::Acquire) == 1);
    let stats = guest.guest.call(&QueryStats {}, &[]).unwrap();
    assert_eq!((stats.send_doorbells.get(), stats.bad_doorbells.get()), (199, 0));
    assert_eq!(guest.log(), ["map"]);
}

#[test]
fn request_that_names_memory_of_its_own_is_refused() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    guest.first_uar();
    for wrong in [AllocUar { slots: U32::new(1), ..DIRECT }, AllocUar { area: U64::new(BASE), ..DIRECT }] {
        assert_eq!(guest.guest.call(&wrong, &[]).err(), Some(Reason::BAD_ATTRIBUTE));
    }
    let registers = AllocUar { mode: DoorbellMode::REGISTERS, ..DIRECT };
    assert_eq!(guest.guest.call(&registers, &[]).err(), Some(Reason::NOT_OFFERED));
}

#[test]
fn front_end_without_regions_has_its_doorbells_relayed() {
    let scene = Scene::new();
    let sockets = [socket(&scene, "direct"), scene.socket("relayed")];
    for socket in &sockets {
        let mut guest = Guest::new(socket.path());
        let offered = config(&mut guest.frontend).capabilities;
        assert!(!offered.contains(Capabilities::DOORBELLS_DIRECT));
        assert_eq!(guest.call(&DIRECT, &[]).err(), Some(Reason::NOT_OFFERED));
        let process = Process::new(&mut guest, 0);
        let before = scene.hca.sends(process.qpn).0;
        let _kick = ring(&process.area(&guest), process.send, 1);
        guest.kick(FIRST_KICK);
        wait_until(|| scene.hca.sends(process.qpn).0 == before + 1);
    }
    let mut frontend = connect(sockets[1].path(), VERSION_1);
    let region = VhostUserProtocolFeatures::SHMEM | VhostUserProtocolFeatures::BACKEND_REQ;
    assert!(!frontend.get_protocol_features().unwrap().intersects(region), "it was not asked for");
}

#[test]
fn front_end_that_refuses_to_map_is_asked_once() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    guest.asked.refuses.store(true, Ordering::SeqCst);
    guest.guest.send(&DIRECT, &[]);
    guest.handler.handle_request().unwrap_err();
    assert_eq!(guest.guest.reply::<AllocUar>().err(), Some(Reason::NOT_OFFERED));
    assert_eq!(guest.guest.call(&DIRECT, &[]).err(), Some(Reason::NOT_OFFERED));
    assert!(!is_readable(&guest.handler));
    let before = scene.hca.left().0;
    guest.guest.call(&alloc_uar(BASE + 0x40_0000), &[]).unwrap();
    assert_eq!(scene.hca.left().0, before + 1, "a UAR without doorbells was kept");
}

#[test]
fn front_end_that_never_answers_holds_up_nobody() {
    let scene = Scene::new();
    let sockets = ["mute", "other"].map(|name| socket(&scene, name));
    let mut other = DirectGuest::new(sockets[1].path());
    let mut mute = DirectGuest::new(sockets[0].path());
    mute.guest.send(&DIRECT, &[]);
    mute.wait_until_asked();
    // Nothing of the device waits for it but the one request: not the configuration, which a VMM reads with its
    // main loop stopped, nor the reset.
    config(&mut mute.guest.frontend);
    other.first_uar();
    mute.guest.frontend.get_vring_base(usize::from(CONTROL)).unwrap();
    mute.guest.frontend_restart(CONTROL);
    mute.guest.call(&AllocPd {}, &[]).unwrap();
    mute.guest.send(&DIRECT, &[]);
    let [socket, _other] = sockets;
    socket.stop();
    assert_eq!(scene.hca.guests(), 1);
    other.guest.call(&QueryDevice {}, &[]).unwrap();
}

#[test]
fn next_connection_comes_when_the_last_front_end_has_let_go() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut mute = DirectGuest::new(socket.path());
    mute.guest.send(&DIRECT, &[]);
    mute.wait_until_asked();
    drop(mute);
    let mut guest = DirectGuest::new(socket.path());
    guest.first_uar();
}

#[test]
fn region_is_mapped_anew_after_a_reset_and_unmapped_at_the_end() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    let before = guest.first_uar();
    guest.guest.frontend_restart(CONTROL);
    guest.guest.send(&DIRECT, &[]);
    guest.handler.handle_request().unwrap();
    guest.handler.handle_request().unwrap();
    let uar = guest.guest.reply::<AllocUar>().unwrap();
    assert_eq!((guest.log(), uar.area_offset), (vec!["map", "unmap", "map"], before.area_offset));
    let process = Process::in_uar(&mut guest.guest, 0, 0, &uar);
    let _kick = ring(&guest.area(&uar), process.send, 1);
    guest.guest.kick(FIRST_KICK);
    wait_until(|| scene.hca.sends(process.qpn).0 == 1);

    socket.disconnect();
    guest.handler.handle_request().unwrap();
    assert_eq!(guest.log(), ["map", "unmap", "map", "unmap"]);
    wait_until(|| !socket.status().connected);
    // What it rings now is memory of its own that nobody reads.
    let area = guest.area(&uar);
    area.set_all();
    drop(guest);
    let mut next = DirectGuest::new(socket.path());
    let uar = next.first_uar();
    assert_eq!(next.area(&uar).load(UPPER), 0, "memory of the last connection");
    assert_eq!(area.load(UPPER), u64::MAX);
}

#[test]
fn several_uars_are_apart_and_one_that_is_closed_is_not_read() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    let closed = guest.first_uar();
    let uars = [(); 3].map(|()| guest.uar());
    let processes: Vec<_> =
        (0..).zip(&uars).map(|(number, uar)| Process::in_uar(&mut guest.guest, number, 0, uar)).collect();
    assert_eq!(guest.free(&uars[0]), Err(Reason::IN_USE));
    let closed_area = guest.area(&closed);
    guest.free(&closed).unwrap();
    closed_area.set_all();
    for value in 1..50 {
        for (process, uar) in processes.iter().zip(&uars) {
            let _kick = ring(&guest.area(uar), process.send, value);
        }
        guest.guest.kick(FIRST_KICK);
        wait_until(|| processes.iter().all(|process| scene.hca.sends(process.qpn).0 >= value));
    }
    assert_eq!(closed_area.load(UPPER), u64::MAX);
    assert_eq!(guest.guest.call(&QueryStats {}, &[]).unwrap().bad_doorbells.get(), 0);
    let again = guest.uar();
    assert_eq!(again.area_offset, closed.area_offset);
    assert_eq!((closed_area.load(UPPER), closed_area.load(LOWER)), (0, 0));
    assert_eq!(guest.log(), ["map"]);
}

#[test]
fn as_many_uars_as_the_guest_may_have_fit_into_the_region() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    let mut uars = vec![guest.first_uar()];
    uars.extend((1..64).map(|_| guest.uar()));
    assert_eq!(guest.guest.call(&DIRECT, &[]).err(), Some(Reason::OBJECT_LIMIT));
    let mut offsets: Vec<_> = uars.iter().map(|uar| uar.area_offset.get()).collect();
    offsets.sort_unstable();
    assert!(offsets.windows(2).all(|pair| pair[0] + u64::from(4096 + 8 * SLOTS) <= pair[1]));
    assert!(offsets.last().unwrap() + u64::from(4096 + 8 * SLOTS) <= 4 << 20);
    for uar in &uars {
        guest.free(uar).unwrap();
    }
    guest.uar();
}

#[test]
fn slots_that_are_not_rung_are_not_looked_at() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    let uar = guest.first_uar();
    let area = guest.area(&uar);
    let idle = Process::in_uar(&mut guest.guest, 0, 0, &uar);
    let busy = Process::in_uar(&mut guest.guest, 1, 0, &uar);
    let (word, bit) = ((busy.send / 64) as usize, busy.send % 64);
    // Whoever looks at a lower word empties it: bits that no upper bit tells of show that nobody has looked.
    let canary = |of: usize| if of == word { 0 } else { u64::MAX };
    (0..64).for_each(|of| area.store(LOWER + of, canary(of)));
    for value in 1..=2000 {
        area.store((4096 + 8 * busy.send as usize) / 8, value);
        area.word(LOWER + word).fetch_or(1 << bit, Ordering::Release);
        area.word(UPPER).fetch_or(1 << word, Ordering::SeqCst);
        guest.guest.kick(FIRST_KICK);
        wait_until(|| scene.hca.sends(busy.qpn).0 >= value);
    }
    assert!((0..64).all(|of| area.load(LOWER + of) == canary(of)));
    assert_eq!((scene.hca.sends(idle.qpn).0, scene.hca.arms.load(Ordering::SeqCst)), (0, 0));
    assert_eq!(guest.guest.call(&QueryStats {}, &[]).unwrap().bad_doorbells.get(), 0);
}

#[test]
fn nonsense_in_the_region_costs_only_its_writer() {
    let scene = Scene::new();
    let sockets = ["hostile", "honest"].map(|name| socket(&scene, name));
    let mut hostile = DirectGuest::new(sockets[0].path());
    let mut honest = DirectGuest::new(sockets[1].path());
    let (loud, quiet) = (hostile.first_uar(), honest.first_uar());
    let (loud_area, quiet_area) = (hostile.area(&loud), honest.area(&quiet));
    let mine = Process::in_uar(&mut hostile.guest, 0, 0, &loud);
    let process = Process::in_uar(&mut honest.guest, 0, 0, &quiet);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopping = Stopping(&stop);
        scope.spawn(|| {
            // All of the region, whatever lies in it: header, flag, summaries, slots, and what is behind the areas.
            while !stop.load(Ordering::Relaxed) {
                for word in 0..(4 << 20) / 8 {
                    loud_area
                        .map
                        .get_atomic_ref::<AtomicU64>(8 * word)
                        .unwrap()
                        .store(u64::MAX, Ordering::Relaxed);
                }
            }
        });
        hostile.guest.kick(FIRST_KICK);
        for value in 1..50 {
            if ring(&quiet_area, process.send, value) {
                honest.guest.kick(FIRST_KICK);
            }
            wait_until(|| scene.hca.sends(process.qpn).0 >= value);
            honest.guest.call(&QueryDevice {}, &[]).unwrap();
        }
        let refused = || sockets[0].status().stats.unwrap().bad_doorbells.get();
        wait_until(|| {
            hostile.guest.kick(FIRST_KICK);
            refused() >= u64::from(SLOTS) - 2
        });
        sockets[0].disconnect();
        wait_until(|| !sockets[0].status().connected);
        drop(stopping);
    });
    // Its own queue pair was rung: that it may.
    assert!(scene.hca.sends(mine.qpn).0 > 0);
    assert_eq!(honest.guest.call(&QueryStats {}, &[]).unwrap().bad_doorbells.get(), 0);
}

#[test]
fn uar_is_closed_while_others_ring_in_it() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    let first = guest.first_uar();
    let area = guest.area(&first);
    let kicks = guest.guest.queues[usize::from(FIRST_KICK)].kick.try_clone().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopping = Stopping(&stop);
        for thread in 0..2 {
            let (area, kicks, stop) = (&area, &kicks, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for slot in 0..64 {
                        let _sleeping = ring(area, slot + 64 * thread, 1);
                    }
                    kicks.write(1).unwrap();
                }
            });
        }
        let mut uar = first;
        for _ in 0..200 {
            guest.free(&uar).unwrap();
            uar = guest.uar();
            assert_eq!(uar.area_offset, first.area_offset);
        }
        let process = Process::in_uar(&mut guest.guest, 0, 0, &uar);
        wait_until(|| scene.hca.sends(process.qpn).0 > 0);
        drop(stopping);
    });
    assert_eq!(guest.log(), ["map"]);
}

#[test]
fn region_outlives_the_loss_of_the_hca_and_areas_do_not() {
    let scene = Scene::new();
    let socket = socket(&scene, "a");
    let mut guest = DirectGuest::new(socket.path());
    let uar = guest.first_uar();
    let area = guest.area(&uar);
    let process = Process::in_uar(&mut guest.guest, 0, 0, &uar);
    scene.host.stop_all();
    let _kick = ring(&area, process.send, 1);
    guest.guest.kick(FIRST_KICK);
    scene.hca.lose(true);
    guest.guest.generation = scene.host.device_lost();
    assert_eq!(guest.guest.call(&DIRECT, &[]).err(), Some(Reason::STARTING));
    scene.hca.lose(false);
    scene.host.device_ready();
    assert_ne!(area.load(UPPER), 0, "somebody has read the area of a lost HCA");
    let uar = guest.uar();
    let process = Process::in_uar(&mut guest.guest, 1, 0, &uar);
    let _kick = ring(&guest.area(&uar), process.send, 1);
    guest.guest.kick(FIRST_KICK);
    wait_until(|| scene.hca.sends(process.qpn).0 == 1);
    assert_eq!(guest.log(), ["map"]);
}
