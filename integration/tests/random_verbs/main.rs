//! Random sequences of verbs by two guests, end to end in one process, beside an oracle that knows what each must
//! come to: error numbers, completions and their order, payload, states, limits.
//!
//! The same sequences in each run; `PARAVERBS_SEED` chooses others. A sequence ends at the first step that isn't as
//! the oracle has it, and prints the steps before it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod connection;
mod objects;
#[path = "../guest_verbs/scene.rs"]
#[allow(dead_code, reason = "a part is used here")]
mod scene;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use paraverbs_verbs::QpType;
use paraverbsd::config::GuestLimits;

use connection::Connection;
use objects::Objects;
use scene::Scene;

/// Steps of a sequence.
const STEPS: usize = 400;
/// Steps that are printed of one that fails.
const PRINTED: usize = 40;

/// What the sequences are chosen by.
fn seed() -> u64 {
    let given = std::env::var("PARAVERBS_SEED").ok();
    given.map_or(0x7061_7261_7665_7262, |text| text.parse().expect("PARAVERBS_SEED is a number"))
}

fn limits() -> GuestLimits {
    GuestLimits {
        queue_pairs: Some(objects::QPS + 3),
        completion_queues: Some(objects::CQS + 3),
        memory_regions: Some(objects::MRS + 3),
        protection_domains: Some(objects::PDS + 3),
        registered_bytes: Some(objects::BYTES),
        ..GuestLimits::default()
    }
}

/// One sequence.
fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let scene = Scene::with_limits(limits());
    let guests = scene.guests();
    let kinds = [QpType::Rc, QpType::Rc, QpType::Uc];
    let mut connections = kinds.map(|kind| Connection::new([&guests[0], &guests[1]], kind));
    let mut objects = guests.each_ref().map(Objects::new);
    let mut history = Vec::new();
    let done = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            if rng.u8(..4) == 0 {
                let which = rng.usize(..2);
                objects[which].step(&mut rng, &mut |what| history.push(format!("guest {which}: {what}")));
            } else {
                let which = rng.usize(..connections.len());
                let note = &mut |what| history.push(format!("connection {which}: {what}"));
                connections[which].step(&mut rng, note);
            }
        }
        connections.iter_mut().for_each(Connection::settle);
    }));
    if let Err(panic) = done {
        let first = history.len().saturating_sub(PRINTED);
        println!("seed {seed:#x}, step {}:\n{}", history.len(), history[first..].join("\n"));
        resume_unwind(panic);
    }
    drop((connections, objects, guests));
    scene.stop();
}

#[test]
fn random_verbs_do_what_the_oracle_says() {
    let mut seeds = Rng::with_seed(seed());
    for _ in 0..4 {
        run(seeds.u64(..));
    }
}
