//! What fuzzing has found, and a corpus of inputs that cover much: none harms anybody any more.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use paraverbs_fuzz::Target;

/// Inputs of bytes from a generator, for each target: so the test shows something before anything is found.
const RANDOM: u64 = 50;

fn replay(name: &str) {
    let target = paraverbs_fuzz::target(name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).into_iter().flatten().flatten().collect();
    files.sort_by_key(fs::DirEntry::path);
    for file in &files {
        println!("{}", file.path().display());
        (target.run)(&fs::read(file.path()).expect("an input"));
    }
    random(target);
    println!("{name}: {} inputs that were found, {RANDOM} random ones", files.len());
}

fn random(target: &Target) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..RANDOM {
        let mut bytes = Vec::new();
        for _ in 0..round % 64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        (target.run)(&bytes);
    }
}

#[test]
fn control_queue_survives_what_was_found() {
    replay("control");
}

#[test]
fn rings_harm_nobody_with_what_was_found() {
    replay("rings");
}

#[test]
fn datagrams_harm_nobody_with_what_was_found() {
    replay("mads");
}

#[test]
fn server_survives_what_was_found() {
    replay("vfio_user");
}

#[test]
fn driver_survives_cards_that_were_found() {
    replay("card");
}
