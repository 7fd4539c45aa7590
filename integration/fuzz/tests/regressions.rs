//! Inputs that once broke something, and a few that didn't, in the targets that they were found for. Without
//! coverage and on any compiler: what `cargo xtask fuzz` has found stays found.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use paraverbs_fuzz::TARGETS;

/// Gives a target every input in its folder; nothing panics, on no thread.
fn replay(name: &str) {
    let panics = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&panics);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        count.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    for input in inputs {
        target(&fs::read(&input).unwrap());
        assert_eq!(panics.load(Ordering::SeqCst), 0, "{}", input.display());
    }
}

#[test]
fn control_bears_what_broke_it() {
    replay("control");
}

#[test]
fn rings_bear_what_broke_them() {
    replay("rings");
}

#[test]
fn mads_are_borne_that_broke_something() {
    replay("mads");
}

#[test]
fn vfio_user_bears_what_broke_it() {
    replay("vfio_user");
}

#[test]
fn driver_bears_cards_that_broke_it() {
    replay("card");
}
