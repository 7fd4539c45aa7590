//! Inputs that are kept, in the targets that they are for: `found-*` once broke something, `seed-*` never did and reach
//! what chance reaches late. Without coverage and on any compiler: what `cargo xtask fuzz` has found stays found.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::panic;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use paraverbs_fuzz::TARGETS;

/// Panics of any thread so far.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Held by the one target that runs: a panic is its.
static RUNNING: Mutex<()> = Mutex::new(());

fn count_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
}

/// Gives a target every input in its folder; nothing panics, on no thread.
fn replay(name: &str) {
    count_panics();
    // What panicked under it has failed its own test.
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    let before = PANICS.load(Ordering::SeqCst);
    for input in inputs {
        target(&fs::read(&input).unwrap());
        assert_eq!(PANICS.load(Ordering::SeqCst), before, "{}", input.display());
    }
}

#[test]
fn control_bears_the_inputs_that_are_kept() {
    replay("control");
}

#[test]
fn rings_bear_the_inputs_that_are_kept() {
    replay("rings");
}

#[test]
fn mads_that_are_kept_are_borne() {
    replay("mads");
}

#[test]
fn vfio_user_bears_the_inputs_that_are_kept() {
    replay("vfio_user");
}

#[test]
fn driver_bears_the_cards_that_are_kept() {
    replay("card");
}
