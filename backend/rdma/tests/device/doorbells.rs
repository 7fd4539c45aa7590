//! Doorbells reach the HCA: from several areas, threads and guests, while the relay sleeps or not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use paraverbs_rdma::{Engine, GuestSocket, Progress};
use virtio_rdma::doorbell::{Words, ring};
use virtio_rdma::queue::FIRST_KICK;
use virtio_rdma::request::domain::DeallocUar;
use virtio_rdma::request::query::{QueryDevice, QueryStats};
use virtio_rdma::{Reason, U32};
use zerocopy::FromZeros;

use crate::guest::{BASE, EVENT_IDX, Guest, VERSION_1, memfd, wait_until};
use crate::objects::{Process, SLOTS, alloc_uar};
use crate::scene::Scene;

#[test]
fn rings_from_several_areas_threads_and_guests_arrive() {
    for spin in [Duration::ZERO, Duration::from_millis(1)] {
        let scene = Scene::with(None, spin);
        let sockets = ["a", "b"].map(|name| scene.socket(name));
        let mut guests = sockets.each_ref().map(|socket| Guest::new(socket.path()));
        let processes = guests.each_mut().map(|guest| [0, 1, 2].map(|number| Process::new(guest, number)));
        std::thread::scope(|scope| {
            for (guest, processes) in guests.iter().zip(&processes) {
                for process in processes {
                    let (hca, area) = (&scene.hca, process.area(guest));
                    scope.spawn(move || {
                        // Each ring is waited for, so that the relay falls asleep again and again.
                        for value in 1..200 {
                            let before = hca.sends(process.qpn).0;
                            if ring(&area, process.send, value) {
                                guest.kick(FIRST_KICK);
                            }
                            wait_until(|| hca.sends(process.qpn).0 > before);
                        }
                    });
                }
            }
        });
        let stats = guests[0].call(&QueryStats {}, &[]).unwrap();
        assert_eq!(stats.bad_doorbells.get(), 0);
        assert_eq!(stats.send_doorbells.get(), 3 * 199);
    }
}

#[test]
fn two_threads_of_one_area_lose_no_last_ring() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let process = Process::new(&mut guest, 0);
    let guest = &guest;
    std::thread::scope(|scope| {
        for (slot, top) in [(process.send, 4000), (process.arm, 2000)] {
            let area = process.area(guest);
            scope.spawn(move || {
                for value in 1..=top {
                    if ring(&area, slot, value) {
                        guest.kick(FIRST_KICK);
                    }
                }
            });
        }
    });
    // Rings may become one, but the last value of each slot arrives.
    wait_until(|| scene.hca.sends(process.qpn).1 == 4000 && scene.hca.arms.load(Ordering::Acquire) != 0);
    wait_until(|| process.area(guest).word(0x80 / 8).load(Ordering::SeqCst) == 0);
}

#[test]
fn relay_that_sleeps_says_so_and_is_woken_by_the_kick_only() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let process = Process::new(&mut guest, 0);
    let sleeping = |guest: &Guest| process.area(guest).word(0x40 / 8).load(Ordering::SeqCst) != 0;
    wait_until(|| sleeping(&guest));
    assert!(ring(&process.area(&guest), process.send, 1));
    guest.kick(FIRST_KICK);
    wait_until(|| scene.hca.sends(process.qpn).0 == 1 && sleeping(&guest));
    assert_eq!(guest.call(&QueryStats {}, &[]).unwrap().kicks.get(), 1);
}

#[test]
fn slots_without_an_object_are_dropped_and_counted() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let process = Process::new(&mut guest, 0);
    let _kick = ring(&process.area(&guest), SLOTS - 1, 1);
    guest.kick(FIRST_KICK);
    wait_until(|| socket.status().stats.is_some_and(|stats| stats.bad_doorbells.get() == 1));
    assert_eq!(scene.hca.sends(process.qpn).0, 0);
}

#[test]
fn area_that_is_closed_is_not_touched_any_more() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let uar = guest.call(&alloc_uar(BASE + 0x40_0000), &[]).unwrap().uar;
    guest.call(&DeallocUar { uar, ..DeallocUar::new_zeroed() }, &[]).unwrap();
    let area = crate::guest::Area { memory: &guest.memory, offset: 0x40_0000 };
    (0..(0x1000 / 8)).for_each(|word| area.word(word).store(u64::MAX, Ordering::SeqCst));

    // Another area is served meanwhile.
    let process = Process::new(&mut guest, 0);
    for value in 1..100 {
        let _kick = ring(&process.area(&guest), process.send, value);
        guest.kick(FIRST_KICK);
        wait_until(|| scene.hca.sends(process.qpn).1 >= value);
    }
    let area = crate::guest::Area { memory: &guest.memory, offset: 0x40_0000 };
    assert!((0..(0x1000 / 8)).all(|word| area.word(word).load(Ordering::SeqCst) == u64::MAX));
    assert_eq!(guest.call(&QueryStats {}, &[]).unwrap().bad_doorbells.get(), 0);
}

/// An engine that counts its runs and has work when it was given some.
#[derive(Default)]
struct CountingEngine {
    runs: AtomicU64,
    work: AtomicU64,
    asleep: AtomicBool,
    waker: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl CountingEngine {
    fn give(&self) {
        self.work.fetch_add(1, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            (self.waker.lock().unwrap().as_ref().unwrap())();
        }
    }
}

impl Engine for CountingEngine {
    fn run(&self) -> Progress {
        self.asleep.store(false, Ordering::SeqCst);
        self.runs.fetch_add(1, Ordering::SeqCst);
        Progress { worked: self.work.swap(0, Ordering::SeqCst) != 0, next_timer: None }
    }

    fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        self.work.load(Ordering::SeqCst) == 0
    }

    fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        *self.waker.lock().unwrap() = Some(waker);
    }
}

#[test]
fn engine_is_run_when_it_wakes_the_thread() {
    let engine = Arc::new(CountingEngine::default());
    let scene = Scene::with(Some(engine.clone()), Duration::ZERO);
    for _ in 0..1000 {
        engine.give();
        wait_until(|| engine.work.load(Ordering::SeqCst) == 0);
    }
    drop(scene);
    assert!(engine.runs.load(Ordering::SeqCst) >= 1000);
}

/// An engine that notes the most rings between two of its runs.
#[derive(Default)]
struct WatchingEngine {
    socket: OnceLock<Arc<GuestSocket>>,
    before: AtomicU64,
    most: AtomicU64,
}

impl Engine for WatchingEngine {
    fn run(&self) -> Progress {
        if let Some(stats) = self.socket.get().and_then(|socket| socket.status().stats) {
            let rung = stats.bad_doorbells.get() + stats.send_doorbells.get() + stats.arm_doorbells.get();
            self.most.fetch_max(rung - self.before.swap(rung, Ordering::SeqCst), Ordering::SeqCst);
        }
        Progress::default()
    }

    fn may_sleep(&self) -> bool {
        true
    }

    fn set_waker(&self, _: Box<dyn Fn() + Send + Sync>) {}
}

#[test]
fn guest_with_many_areas_has_no_more_rings_in_a_round_than_one_with_one() {
    const AREAS: u64 = 24;
    let engine = Arc::new(WatchingEngine::default());
    let scene = Scene::with(Some(engine.clone()), Duration::ZERO);
    let socket = Arc::new(scene.socket("a"));
    assert!(engine.socket.set(Arc::clone(&socket)).is_ok());
    let mut guest = Guest::new(socket.path());
    let processes: Vec<_> = (0..AREAS).map(|number| Process::new(&mut guest, number)).collect();
    for _ in 0..20 {
        let before = socket.status().stats.unwrap();
        for process in &processes {
            let area = process.area(&guest);
            (0..64).for_each(|word| area.word(0x200 / 8 + word).store(u64::MAX, Ordering::Relaxed));
            area.word(0x80 / 8).store(u64::MAX, Ordering::Release);
        }
        guest.kick(FIRST_KICK);
        // All arrive all the same.
        wait_until(|| {
            let stats = socket.status().stats.unwrap();
            stats.send_doorbells.get() >= before.send_doorbells.get() + AREAS
        });
    }
    let most = engine.most.load(Ordering::SeqCst);
    assert!((1..64 + u64::from(SLOTS)).contains(&most), "{most} rings in a round");
}

#[test]
fn guest_that_rings_without_end_stops_neither_the_engine_nor_another_guest() {
    let engine = Arc::new(CountingEngine::default());
    let scene = Scene::with(Some(engine.clone()), Duration::ZERO);
    let sockets = ["hostile", "honest"].map(|name| scene.socket(name));
    let mut hostile = Guest::new(sockets[0].path());
    let file = memfd(crate::guest::BYTES as u64, rustix::fs::SealFlags::SHRINK);
    let mut honest = Guest::with(sockets[1].path(), VERSION_1 | EVENT_IDX, file);
    let loud = Process::new(&mut hostile, 0);
    let quiet = Process::new(&mut honest, 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let area = loud.area(&hostile);
            while !stop.load(Ordering::Relaxed) {
                (0..64).for_each(|word| area.word(0x200 / 8 + word).store(u64::MAX, Ordering::Relaxed));
                area.word(0x80 / 8).store(u64::MAX, Ordering::Release);
            }
        });
        hostile.kick(FIRST_KICK);
        for value in 1..50 {
            let runs = engine.runs.load(Ordering::SeqCst);
            if ring(&quiet.area(&honest), quiet.send, value) {
                honest.kick(FIRST_KICK);
            }
            wait_until(|| scene.hca.sends(quiet.qpn).0 >= value);
            wait_until(|| engine.runs.load(Ordering::SeqCst) > runs);
            honest.call(&QueryDevice {}, &[]).unwrap();
        }
        // It is closed under the relay's thread, which is busy with it.
        let dealloc = DeallocUar { uar: U32::new(quiet.uar), ..DeallocUar::new_zeroed() };
        assert_eq!(honest.call(&dealloc, &[]).err(), Some(Reason::IN_USE));
        sockets[0].disconnect();
        wait_until(|| !sockets[0].status().connected);
        stop.store(true, Ordering::Relaxed);
    });
    honest.call(&QueryDevice {}, &[]).unwrap();
}
