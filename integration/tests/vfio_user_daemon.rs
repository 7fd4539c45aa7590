//! The daemon on a card in another process: `paraverbs model` serves it on a socket, and `paraverbsd --device
//! vfio-user:PATH` takes it. Each in turn is killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use integration::process::{self, Child};
use serde_json::Value;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    folder: tempfile::TempDir,
    pverbs: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let pverbs = integration::program("paraverbs-verbs", "pverbs").unwrap();
        Self { folder: tempfile::tempdir().unwrap(), pverbs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path at which a dead process's socket isn't any more.
    fn without(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        path
    }

    /// The model, once its sockets are there.
    fn model(&self) -> Child {
        let mut command = Command::new(integration::program("paraverbs-cli", "paraverbs").unwrap());
        command.arg("model").arg("--socket").arg(self.without("card"));
        command.arg("--dump-socket").arg(self.without("dump"));
        let mut model = Child::spawn("paraverbs model", &command, &self.path("model.log")).unwrap();
        model.wait_for_files(&[self.path("card"), self.path("dump")], PATIENCE).unwrap();
        model
    }

    /// The daemon, once its guests' sockets are there.
    fn daemon(&self) -> Child {
        let guests = ["a", "b"].map(|name| self.without(name));
        let mut command = Command::new(integration::program("paraverbsd", "paraverbsd").unwrap());
        command.arg("--device").arg(format!("vfio-user:{}", self.path("card").display()));
        command.args(["--kind", "process"]);
        for (name, path) in ["a", "b"].iter().zip(&guests) {
            command.arg("--guest").arg(format!("{name}={}", path.display()));
        }
        let mut daemon = Child::spawn("paraverbsd", &command, &self.path("daemon.log")).unwrap();
        daemon.wait_for_files(&guests, PATIENCE).unwrap();
        daemon
    }

    fn ping(&self, guest: &str, port: u16, more: &[&str]) -> Command {
        let mut command = Command::new(&self.pverbs);
        command.args(["ping", "-c", "-s", "10000", "-n", "200", "--port", &port.to_string()]);
        command.args(more).arg("--socket").arg(self.path(guest));
        command
    }

    /// The end of a ping that waits for the other one, with its objects made.
    fn waiting(&self, guest: &str, port: u16) -> Child {
        let log = self.path("ping.log");
        let mut server = Child::spawn("pverbs", &self.ping(guest, port, &[]), &log).unwrap();
        wait_for("the ping's address", || {
            assert!(server.status().unwrap().is_none(), "{}", server.tail(9));
            fs::read_to_string(&log).unwrap().contains("local address:")
        });
        server
    }

    /// Data goes to and fro, and both ends compare it.
    fn exchange(&self, from: &str, to: &str) {
        let port = TcpListener::bind(("::", 0)).unwrap().local_addr().unwrap().port();
        let mut server = self.waiting(to, port);
        let client = process::run(&self.ping(from, port, &["localhost"]), PATIENCE).unwrap();
        assert!(String::from_utf8(client).unwrap().contains(" usec/iter\n"));
        assert!(server.wait(PATIENCE).unwrap().success(), "{}", server.tail(9));
        println!("ok     ping {from} to {to}  200 messages of 10000 bytes each way, compared");
    }

    fn dump(&self) -> Value {
        let mut text = String::new();
        UnixStream::connect(self.path("dump")).unwrap().read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} didn't come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sockets that are left in a folder.
fn left(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| !name.ends_with(".log")).collect()
}

#[test]
fn guests_talk_through_a_card_of_another_process_and_either_process_may_be_killed() {
    let scene = Scene::new();
    let model = scene.model();
    let untouched = scene.dump()["cards"].clone();
    let daemon = scene.daemon();
    scene.exchange("a", "b");
    scene.exchange("b", "a");

    let port = TcpListener::bind(("::", 0)).unwrap().local_addr().unwrap().port();
    let guest = scene.waiting("a", port);
    assert_ne!(scene.dump()["cards"], untouched);
    drop(daemon);
    drop(guest);
    wait_for("the card's reset", || scene.dump()["cards"] == untouched);
    println!("ok     daemon killed  the card is as it was");

    let mut daemon = scene.daemon();
    scene.exchange("a", "b");
    assert_eq!(scene.dump()["counters"][0]["refused_accesses"], 0);
    assert!(daemon.terminate(PATIENCE).unwrap().success(), "{}", daemon.tail(20));
    assert_eq!(scene.dump()["cards"], untouched);
    println!("ok     daemon again  0 accesses refused, nothing left in the card");

    let mut daemon = scene.daemon();
    drop(model);
    wait_for("the daemon's word", || daemon.tail(99).contains("the HCA does not come up again"));
    let log = daemon.tail(99);
    assert!(log.contains("the connection to its server has ended: the server has left"), "{log}");
    assert!(log.contains("the HCA has failed"), "{log}");
    assert!(log.contains("is gone"), "{log}");
    assert!(daemon.terminate(PATIENCE).unwrap().success(), "{}", daemon.tail(20));
    println!("ok     model killed  the daemon says so, and ends when it is told to");

    let mut left = left(scene.folder.path());
    left.sort();
    assert_eq!(left, ["card", "dump"], "the killed model's own");
    let _model = scene.model();
    let daemon = scene.daemon();
    scene.exchange("b", "a");
    drop(daemon);
    println!("ok     model again  both start over");
}
