//! The daemon as a library: start, status, failure of the HCA, end.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use paraverbsd::config::{Config, Device, GuestEntry, GuestKind};
use paraverbsd::{Daemon, HcaState, StartError};

const PATIENCE: Duration = Duration::from_secs(30);

fn config(folder: &Path, ports: u8) -> Config {
    let guest = |name: &str| GuestEntry::new(name, folder.join(name), GuestKind::Process);
    Config {
        device: Device::Model { ports },
        fabric_sockets: Vec::new(),
        guests: vec![guest("a"), guest("b")],
        spin: None,
    }
}

/// Waits until something holds that another thread brings about.
fn wait_until(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}");
        thread::yield_now();
    }
}

#[test]
fn status_tells_hca_ports_and_guests() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), 2)).unwrap();
    let status = daemon.status();
    assert_eq!((status.device.as_str(), status.state), ("model", HcaState::Running));
    assert_eq!(status.ports.iter().map(|port| port.number).collect::<Vec<_>>(), [1, 2]);
    assert!(status.ports.iter().all(|port| port.active && port.lid != 0), "{status:?}");
    assert_ne!(status.firmware, (0, 0, 0));
    assert!(status.objects > 0);
    let names = status.guests.iter().map(|guest| (guest.name.as_str(), guest.connected));
    assert_eq!(names.collect::<Vec<_>>(), [("a", false), ("b", false)]);

    let stream = UnixStream::connect(folder.path().join("b")).unwrap();
    let connected = || daemon.status().guests.iter().map(|guest| guest.connected).collect::<Vec<_>>();
    wait_until("guest b is seen", || connected() == [false, true]);
    drop(stream);
    wait_until("guest b is seen to leave", || connected() == [false, false]);
    assert_eq!(daemon.refused_accesses(), 0);
    assert_eq!(daemon.status().quarantined_bytes, 0);

    let model = daemon.model().map(std::sync::Arc::clone).unwrap();
    daemon.stop().unwrap();
    assert!(model.dump().contains("\"running\":false"), "{}", model.dump());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn hca_that_fails_comes_back_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), 1)).unwrap();
    let model = daemon.model().unwrap();
    for code in 1..3 {
        let commands = model.counters().commands.get();
        model.fail_firmware(code);
        // A life of its own begins with commands.
        wait_until("the HCA is brought up again", || model.counters().commands.get() > commands + 10);
        wait_until("the HCA works", || {
            let status = daemon.status();
            status.state == HcaState::Running && status.ports.iter().all(|port| port.active)
        });
    }
    daemon.stop().unwrap();
}

#[test]
fn start_that_fails_or_is_cancelled_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Daemon::start_unless(&config(folder.path(), 1), &|| true).unwrap().is_none());
    let mut config = config(folder.path(), 1);
    config.guests[1].limits.queue_pairs = Some(u32::MAX);
    assert!(matches!(Daemon::start(&config), Err(StartError::Limit { .. })));
    config.guests[1] = GuestEntry::new("b", folder.path().join("none/b"), GuestKind::Vm);
    assert!(matches!(Daemon::start(&config), Err(StartError::Listen(_))));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    config.guests.truncate(1);
    drop(Daemon::start(&config).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
