//! Who reads the areas and drives the engine: the worker of a kick while the relay's thread sleeps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use paraverbs_rdma::{Engine, Progress};
use virtio_rdma::doorbell::{Words, ring};
use virtio_rdma::queue::FIRST_KICK;
use virtio_rdma::request::query::QueryDevice;

use crate::guest::{Guest, wait_until};
use crate::objects::Process;
use crate::scene::Scene;

/// The relay's thread, and the workers of connections.
const RELAY: &str = "rdma-relay";
const WORKER: &str = "vring_worker";

/// An engine that notes which threads run it. It has work, or a timer, when a test says so.
#[derive(Default)]
struct NotingEngine {
    runs: Mutex<BTreeMap<String, u64>>,
    works: AtomicBool,
    timer: Mutex<Option<Instant>>,
    fired: AtomicU64,
}

impl NotingEngine {
    fn runs_on(&self, name: &str) -> u64 {
        self.runs.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

impl Engine for NotingEngine {
    fn run(&self) -> Progress {
        let name = thread::current().name().unwrap_or("?").to_owned();
        *self.runs.lock().unwrap().entry(name).or_default() += 1;
        let mut next_timer = self.timer.lock().unwrap();
        if next_timer.take_if(|at| *at <= Instant::now()).is_some() {
            self.fired.fetch_add(1, Ordering::SeqCst);
        }
        Progress { worked: self.works.load(Ordering::SeqCst), next_timer: *next_timer }
    }

    fn may_sleep(&self) -> bool {
        true
    }

    fn set_waker(&self, _: Box<dyn Fn() + Send + Sync>) {}
}

fn sleeps(guest: &Guest, process: &Process) -> bool {
    process.area(guest).word(0x40 / 8).load(Ordering::SeqCst) != 0
}

#[test]
fn kick_of_a_sleeper_is_served_by_its_own_worker() {
    const KICKS: u64 = 100;
    let engine = Arc::new(NotingEngine::default());
    let scene = Scene::with(Some(engine.clone()), Duration::ZERO);
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let process = Process::new(&mut guest, 0);
    for value in 1..=KICKS {
        wait_until(|| sleeps(&guest, &process));
        assert!(ring(&process.area(&guest), process.send, value));
        guest.kick(FIRST_KICK);
        wait_until(|| scene.hca.sends(process.qpn).1 == value);
    }
    // The relay's thread may have been awake still, for the area that is new.
    assert!(engine.runs_on(WORKER) >= KICKS / 2, "{:?}", engine.runs);
}

#[test]
fn spinning_relay_goes_on_after_a_worker_has_served_the_kick() {
    let engine = Arc::new(NotingEngine::default());
    let scene = Scene::with(Some(engine.clone()), Duration::from_millis(1));
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let process = Process::new(&mut guest, 0);
    for value in 1..20 {
        wait_until(|| sleeps(&guest, &process));
        let before = engine.runs_on(RELAY);
        if ring(&process.area(&guest), process.send, value) {
            guest.kick(FIRST_KICK);
        }
        wait_until(|| scene.hca.sends(process.qpn).1 == value && engine.runs_on(RELAY) > before);
    }
}

#[test]
fn work_without_end_becomes_that_of_the_relays_thread() {
    let engine = Arc::new(NotingEngine::default());
    let scene = Scene::with(Some(engine.clone()), Duration::ZERO);
    let sockets = ["a", "b"].map(|name| scene.socket(name));
    let mut guests = sockets.each_ref().map(|socket| Guest::new(socket.path()));
    let [first, second] = guests.each_mut().map(|guest| Process::new(guest, 0));
    engine.works.store(true, Ordering::SeqCst);
    guests[0].kick(FIRST_KICK);
    let before = engine.runs_on(RELAY);
    wait_until(|| engine.runs_on(RELAY) > before + 100);
    for (guest, process) in guests.iter().zip([&first, &second]) {
        let _kick = ring(&process.area(guest), process.send, 1);
        guest.kick(FIRST_KICK);
        wait_until(|| scene.hca.sends(process.qpn).0 == 1);
    }
    // No worker is held up.
    sockets[0].disconnect();
    wait_until(|| !sockets[0].status().connected);
    guests[1].call(&QueryDevice {}, &[]).unwrap();
    engine.works.store(false, Ordering::SeqCst);
    wait_until(|| sleeps(&guests[1], &second));
}

/// Only the relay's thread can sleep until then, and nobody but the worker knows of the timer.
#[test]
fn timer_that_a_worker_finds_is_kept() {
    let engine = Arc::new(NotingEngine::default());
    let scene = Scene::with(Some(engine.clone()), Duration::ZERO);
    let sockets = ["a", "b"].map(|name| scene.socket(name));
    let mut guests = sockets.each_ref().map(|socket| Guest::new(socket.path()));
    let processes = guests.each_mut().map(|guest| Process::new(guest, 0));
    let mut value = 0;
    for round in 0..100 {
        // Later and later, so that the thread sleeps with one that is over, or too late for the next.
        let set =
            |micros| *engine.timer.lock().unwrap() = Some(Instant::now() + Duration::from_micros(micros));
        for (after, (guest, process)) in
            [2000, 50 * (round % 20)].into_iter().zip(guests.iter().zip(&processes))
        {
            set(after);
            value += 1;
            let _kick = ring(&process.area(guest), process.send, value);
            guest.kick(FIRST_KICK);
        }
        wait_until(|| engine.timer.lock().unwrap().is_none());
    }
    assert!(engine.fired.load(Ordering::SeqCst) >= 100);
    wait_until(|| processes.iter().all(|process| scene.hca.sends(process.qpn).1 == value));
}
