//! Connections come and go, and leave neither descriptors nor threads nor mappings behind.
//!
//! In a process of its own, since it counts what the process has.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "parts of the other tests"
)]

#[path = "device/fake.rs"]
mod fake;
#[path = "device/guest.rs"]
mod guest;
#[path = "device/objects.rs"]
mod objects;
#[path = "device/scene.rs"]
mod scene;

use crate::guest::{Guest, wait_until};
use crate::objects::Process;
use crate::scene::Scene;

/// Descriptors, threads, and mappings of guests' files that the process has.
fn held() -> (usize, usize, usize) {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.contains("memfd:guest")).count();
    (entries("/proc/self/fd"), entries("/proc/self/task"), mapped)
}

#[test]
fn connections_leave_nothing_behind() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let connection = |number| {
        let mut guest = Guest::new(socket.path());
        Process::new(&mut guest, number);
        drop(guest);
        wait_until(|| scene.hca.guests() == 0);
    };
    connection(0);
    wait_until(|| held().2 == 0);
    let before = held();
    for number in 1..20 {
        connection(number % 3);
    }
    wait_until(|| held() == before);
    socket.stop();
    let scene_threads = held().1;
    drop(scene);
    assert_eq!(held().1, scene_threads - 1);
}
