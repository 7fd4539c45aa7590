//! `paraverbs demo` as a user runs it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::{Command, Stdio};
use std::time::Duration;

use integration::process::Child;
use integration::program;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A debug build on a busy machine; a release build takes seconds.
const LIMIT: Duration = Duration::from_secs(300);

fn demo() -> Command {
    let mut command = Command::new(program("paraverbs-cli", "paraverbs").unwrap());
    command.arg("demo");
    command
}

/// The names of the checks, as the program lists them.
fn checks() -> Vec<String> {
    let output = demo().arg("--list").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn demo_passes_every_check() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = demo();
    command.env("TMPDIR", folder.path());
    let mut child = Child::spawn("demo", &command, &folder.path().join("log")).unwrap();
    let status = child.wait(LIMIT);
    let text = child.tail(1000);
    let status = status.unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    assert_eq!(status.code(), Some(0), "{text}");
    let checks = checks();
    assert!(checks.len() > 10, "{checks:?}");
    for check in &checks {
        let passed = text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("ok") && words.next() == Some(check)
        });
        assert!(passed, "{check} did not pass:\n{text}");
    }
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with('│'))
        .map(|line| line.split(['│', '┆']).map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let is_measured = |cells: [&str; 4]| rows.iter().any(|row| row.starts_with(&cells));
    for operation in ["send", "write", "read"] {
        for doorbells in ["relayed", "direct"] {
            for size in ["8 B", "64 B", "4 KiB", "64 KiB", "1 MiB"] {
                assert!(
                    is_measured([operation, "RC", doorbells, size]),
                    "{operation} {doorbells} {size}:\n{text}"
                );
            }
        }
    }
    for (operation, service) in [
        ("send", "RC, SRQ"),
        ("send", "UC"),
        ("write", "UC"),
        ("send", "UD"),
        ("fetch-add", "RC"),
        ("compare-swap", "RC"),
    ] {
        assert!(is_measured([operation, service, "relayed", "8 B"]), "{operation} {service}:\n{text}");
    }
    let last = format!("demo: {} checks passed, 0 failed", checks.len());
    assert_eq!(text.lines().last(), Some(last.as_str()), "{text}");
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 1, "the demo has left something in its temporary folder");
}

#[test]
fn temporary_folder_that_can_not_be_used_ends_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (none, deep) = (folder.path().join("none"), folder.path().join("x".repeat(100)));
    std::fs::create_dir(&deep).unwrap();
    for path in [&none, &deep] {
        let output = demo().env("TMPDIR", path).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("set TMPDIR to") && text.lines().count() == 1, "{text}");
    }
    assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0, "the demo has left its folder");
}

#[test]
fn demo_that_is_interrupted_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = demo();
    command.env("TMPDIR", folder.path());
    let mut child = Child::spawn("demo", &command, &folder.path().join("log")).unwrap();
    let guests = wait_for_guests(&mut child);
    kill_process(pid(child.pid()), Signal::INT).unwrap();
    let status = child.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(130), "{}", child.tail(20));
    assert!(child.tail(1).starts_with("paraverbs: interrupted"), "{}", child.tail(20));
    for guest in guests {
        assert!(test_kill_process(pid(guest)).is_err(), "guest {guest} still runs");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn guest_that_is_killed_is_a_failed_check() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Child::spawn("demo", &demo(), &folder.path().join("log")).unwrap();
    let guests = wait_for_guests(&mut child);
    kill_process(pid(guests[1]), Signal::KILL).unwrap();
    let status = child.wait(Duration::from_secs(60)).unwrap();
    let text = child.tail(100);
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.lines().any(|line| line.starts_with("FAILED ")), "{text}");
    assert!(text.contains("guest b has ended: signal: 9"), "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("demo: ") && last.ends_with(" failed") && !last.ends_with(" 0 failed"),
        "{text}"
    );
    assert!(test_kill_process(pid(guests[0])).is_err(), "guest {} still runs", guests[0]);
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

/// The process ids of both guests, as soon as they have opened their devices.
fn wait_for_guests(child: &mut Child) -> Vec<u32> {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !child.tail(100).contains("open ") {
        assert!(child.status().unwrap().is_none(), "{}", child.tail(100));
        assert!(std::time::Instant::now() < deadline, "{}", child.tail(100));
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut guests = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
        .filter(|process| parent(*process) == Some(child.pid()))
        .collect::<Vec<_>>();
    guests.sort_unstable();
    assert_eq!(guests.len(), 2, "{guests:?}");
    guests
}

/// The parent of a process, unless that has ended.
fn parent(process: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may have spaces: state and parent.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
