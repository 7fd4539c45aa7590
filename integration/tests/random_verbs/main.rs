//! Random sequences of verbs by two guests, end to end in one process, beside an oracle that knows what each must
//! come to: error numbers, completions and their order, payload, states, limits.
//!
//! The same sequences in each run; `PARAVERBS_SEED` chooses others. A sequence ends at the first step that isn't as
//! the oracle has it, and prints the steps before it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod connection;
mod datagrams;
mod due;
mod events;
mod objects;
#[path = "../guest_verbs/scene.rs"]
#[allow(dead_code, reason = "a part is used here")]
mod scene;
mod shared;
mod windows;
mod xrc;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use paraverbs_verbs::{Context, QpType};
use paraverbsd::config::GuestLimits;

use connection::Connection;
use datagrams::Datagrams;
use objects::Objects;
use scene::Scene;
use shared::Shared;
use windows::Windows;
use xrc::Extended;

/// Steps of a sequence.
const STEPS: usize = 500;
/// Steps that are printed of one that fails.
const PRINTED: usize = 40;

/// What the sequences are chosen by.
fn seed() -> u64 {
    let given = std::env::var("PARAVERBS_SEED").ok();
    given.map_or(0x7061_7261_7665_7262, |text| text.parse().expect("PARAVERBS_SEED is a number"))
}

/// Room for all that the guests do with each other, and a little more, which [`Objects`] uses up.
fn limits() -> GuestLimits {
    GuestLimits {
        queue_pairs: Some(12),
        completion_queues: Some(15),
        memory_regions: Some(17),
        memory_windows: Some(4),
        protection_domains: Some(15),
        shared_receive_queues: Some(4),
        uars: Some(1),
        registered_bytes: Some(objects::BYTES),
    }
}

/// Everything that two guests do with each other.
struct Traffic {
    connections: [Connection; 3],
    datagrams: Datagrams,
    shared: Shared,
    windows: Windows,
    extended: Extended,
}

impl Traffic {
    fn new(guests: [&Context; 2]) -> Self {
        let kinds = [QpType::Rc, QpType::Rc, QpType::Uc];
        Self {
            connections: kinds.map(|kind| Connection::new(guests, kind)),
            datagrams: Datagrams::new(guests),
            shared: Shared::new(guests),
            windows: Windows::new(guests),
            extended: Extended::new(guests),
        }
    }

    fn step(&mut self, rng: &mut Rng, history: &mut Vec<String>) {
        let names =
            ["connection 0", "connection 1", "connection 2", "datagrams", "shared", "windows", "extended"];
        let which = rng.usize(..names.len());
        let name = names[which];
        let note = &mut |what| history.push(format!("{name}: {what}"));
        match which {
            3 => self.datagrams.step(rng, note),
            4 => self.shared.step(rng, note),
            5 => self.windows.step(rng, note),
            6 => self.extended.step(rng, note),
            _ => self.connections[which].step(rng, note),
        }
    }

    fn settle(&mut self) {
        self.connections.iter_mut().for_each(Connection::settle);
        self.shared.settle();
        self.windows.settle();
        self.extended.settle();
    }
}

/// One sequence.
fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let scene = Scene::with_limits(limits());
    let guests = scene.guests();
    let mut traffic = Traffic::new([&guests[0], &guests[1]]);
    let mut objects = guests.each_ref().map(Objects::new);
    let mut history = Vec::new();
    let done = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            if rng.u8(..5) == 0 {
                let which = rng.usize(..2);
                objects[which].step(&mut rng, &mut |what| history.push(format!("guest {which}: {what}")));
            } else {
                traffic.step(&mut rng, &mut history);
            }
        }
        traffic.settle();
    }));
    if let Err(panic) = done {
        let first = history.len().saturating_sub(PRINTED);
        println!("seed {seed}, step {}:\n{}", history.len(), history[first..].join("\n"));
        resume_unwind(panic);
    }
    drop((traffic, objects, guests));
    scene.stop();
}

#[test]
fn random_verbs_do_what_the_oracle_says() {
    let seed = seed();
    // The one that a sequence that failed has printed, and a few more.
    run(seed);
    let mut seeds = Rng::with_seed(seed);
    (0..2).for_each(|_| run(seeds.u64(..)));
}

#[test]
fn events_that_a_guest_does_not_take_are_counted_and_the_oldest_kept() {
    let seed = seed();
    println!("seed {seed}");
    events::run(&mut Rng::with_seed(seed));
}
