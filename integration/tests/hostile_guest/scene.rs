//! The daemon, two guests that exchange data all the time, and sockets for the hostile one.
//!
//! The daemon is on the model, or on the device that `PARAVERBS_DEVICE` names (e.g. `vfio:0000:01:00.0`). What is in
//! a card can't be seen from here: whoever runs it there compares that.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use integration::load::{End, Patience, RALLY_BYTES, Side, rally};
use integration::patience::until;
use paraverbs_verbs::Context;
use paraverbsd::config::{Config, Device, GuestEntry, GuestKind, GuestLimits};
use paraverbsd::{Daemon, HcaState};

use tempfile::TempDir;

use super::guest::Guest;
use super::memory::Seals;
use super::objects::Objects;

/// How long it may take until everything of a guest has been given back, and the others have gone on.
const SETTLE: Duration = Duration::from_secs(20);
/// Doorbells of one of the two others that are at least one message.
const MESSAGE: u64 = 8;

/// Panics of any thread of this process.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics from now on.
fn count_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
}

/// What there is: in the model, in the driver, in the daemon, in this process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    model: serde_json::Value,
    driver: usize,
    quarantined_bytes: u64,
    connected: Vec<String>,
    /// Of each guest that is connected: objects, quarantined ones, bytes registered and mapped.
    objects: Vec<[u64; 4]>,
    descriptors: usize,
    mappings: usize,
    threads: usize,
}

/// The scene.
pub(crate) struct Scene {
    daemon: Daemon,
    folder: TempDir,
    stop: Arc<AtomicBool>,
    players: Vec<JoinHandle<Result<u64>>>,
    /// A key of one of the two others, an address that it allows, and the QPN.
    pub(crate) foreign: integration::peer::Endpoint,
    /// The number that repeats the run.
    pub(crate) seed: u64,
    _contexts: Vec<Context>,
}

impl Scene {
    /// Starts everything.
    pub(crate) fn start(seed: u64) -> Result<Self> {
        count_panics();
        let folder = tempfile::tempdir()?;
        let entry = |name: &str, kind| GuestEntry::new(name, folder.path().join(name), kind);
        let small = GuestLimits {
            queue_pairs: Some(2),
            completion_queues: Some(2),
            memory_regions: Some(2),
            memory_windows: Some(2),
            protection_domains: Some(2),
            shared_receive_queues: Some(2),
            uars: Some(2),
            registered_bytes: Some(4 << 20),
        };
        let guests = vec![
            entry("one", GuestKind::Process),
            entry("other", GuestKind::Process),
            entry("process", GuestKind::Process),
            entry("vm", GuestKind::Vm),
            GuestEntry { limits: small, ..entry("small", GuestKind::Vm) },
        ];
        let device = match std::env::var("PARAVERBS_DEVICE") {
            Ok(name) => name.parse().context("PARAVERBS_DEVICE")?,
            Err(_) => Device::Model { ports: 2 },
        };
        let config = Config { device, fabric_sockets: Vec::new(), guests, spin: None };
        let daemon = Daemon::start(&config)?;
        let contexts = ["one", "other"].map(|name| Context::connect(folder.path().join(name)));
        let contexts = contexts.into_iter().collect::<Result<Vec<_>, _>>()?;
        let ends =
            contexts.iter().map(|context| End::new(context, RALLY_BYTES, 8)).collect::<Result<Vec<_>>>()?;
        let [one, other] = <[End; 2]>::try_from(ends).map_err(|_| anyhow!("two ends"))?;
        let (at_one, at_other) = (one.endpoint(), other.endpoint());
        one.connect(&at_other, Patience::Long)?;
        other.connect(&at_one, Patience::Long)?;
        let stop = Arc::<AtomicBool>::default();
        let play = |end: End, to, side| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || rally(&end, to, side, &stop))
        };
        let players = vec![play(other, at_one, Side::Second), play(one, at_other, Side::First)];
        Ok(Self { daemon, folder, stop, players, foreign: at_one, seed, _contexts: contexts })
    }

    /// The socket of a guest.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// A folder on a file system of the host.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A hostile guest, in a process's place.
    pub(crate) fn guest(&self) -> Result<Guest> {
        Guest::connect(&self.path("process"), Seals::Shrink)
    }

    /// A hostile guest, in a VMM's place, that can shorten its memory.
    pub(crate) fn vm(&self) -> Result<Guest> {
        Guest::connect(&self.path("vm"), Seals::None)
    }

    /// A counter of a guest that is connected.
    pub(crate) fn stats(&self, name: &str) -> Result<virtio_rdma::request::query::Stats> {
        let status = self.daemon.status();
        let guest = status.guests.into_iter().find(|guest| guest.name == name).context("no such guest")?;
        guest.stats.with_context(|| format!("{name} is not connected"))
    }

    /// Whether somebody is connected to a socket.
    pub(crate) fn is_connected(&self, name: &str) -> bool {
        self.daemon.status().guests.iter().any(|guest| guest.name == name && guest.connected)
    }

    /// How often a socket was connected to.
    pub(crate) fn connections(&self, name: &str) -> u64 {
        let status = self.daemon.status();
        status.guests.iter().find(|guest| guest.name == name).map_or(0, |guest| guest.connections)
    }

    /// The counts when nothing changes any more.
    pub(crate) fn rest(&self) -> Result<Counts> {
        let (mut counts, mut same) = (self.counts()?, 0);
        while same < 50 {
            thread::sleep(Duration::from_millis(2));
            let now = self.counts()?;
            same = if now == counts { same + 1 } else { 0 };
            counts = now;
        }
        Ok(counts)
    }

    /// A guest that comes, works and goes.
    pub(crate) fn rehearse(&self, name: &str) -> Result<()> {
        let mut guest = Guest::connect(&self.path(name), Seals::Shrink)?;
        Objects::connected(&mut guest)?.works(&guest)?;
        drop(guest);
        self.eventually("the guest has gone", |scene| Ok(!scene.is_connected(name)))
    }

    fn counts(&self) -> Result<Counts> {
        let status = self.daemon.status();
        let dump = self.daemon.model().map(|model| model.dump());
        let mut model: serde_json::Value = serde_json::from_str(dump.as_deref().unwrap_or("null"))?;
        if let Some(model) = model.as_object_mut() {
            model.remove("icm_pages");
        }
        let connected = status.guests.iter().filter(|guest| guest.connected);
        let maps = fs::read_to_string("/proc/self/maps")?;
        Ok(Counts {
            model,
            driver: status.objects,
            quarantined_bytes: status.quarantined_bytes,
            connected: connected.map(|guest| guest.name.clone()).collect(),
            objects: status
                .guests
                .iter()
                .filter_map(|guest| guest.stats)
                .map(|stats| {
                    let of = [stats.objects, stats.quarantined].map(|count| u64::from(count.get()));
                    [of[0], of[1], stats.registered_bytes.get(), stats.mapped_bytes.get()]
                })
                .collect(),
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
            threads: fs::read_dir("/proc/self/task")?.count(),
        })
    }

    /// Runs a case, and looks whether it has cost anybody anything.
    pub(crate) fn run(&self, name: &str, case: fn(&Self) -> Result<()>, before: &Counts) -> Result<()> {
        let doorbells = self.doorbells()?;
        let started = Instant::now();
        case(self).with_context(|| format!("case {name:?} of seed {}", self.seed))?;
        let ended = started.elapsed();
        self.settle(before, doorbells)
            .with_context(|| format!("after case {name:?} of seed {}", self.seed))?;
        println!("{name}: {ended:.1?}, settled after {:.1?}", started.elapsed());
        Ok(())
    }

    fn settle(&self, before: &Counts, doorbells: u64) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            self.check()?;
            let (now, gone_on) = (self.counts()?, self.doorbells()? >= doorbells + MESSAGE);
            if now == *before && gone_on {
                return Ok(());
            }
            if Instant::now() >= deadline {
                ensure!(gone_on, "the two others don't go on");
                bail!("not given back after {SETTLE:?}: {now:?}\nbefore: {before:?}");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Fails if something has gone wrong beside the hostile guest.
    fn check(&self) -> Result<()> {
        ensure!(!self.players.iter().any(JoinHandle::is_finished), "the two others have seen an error");
        ensure!(PANICS.load(Ordering::SeqCst) == 0, "a thread has panicked");
        ensure!(self.daemon.status().state == HcaState::Running, "the HCA has failed");
        Ok(())
    }

    /// Doorbells that one of the two others has rung.
    pub(crate) fn doorbells(&self) -> Result<u64> {
        Ok(self.stats("one")?.send_doorbells.get())
    }

    /// Waits until the two others have exchanged data from now on.
    pub(crate) fn others_go_on(&self) -> Result<()> {
        let from = self.doorbells()?;
        until("the two others go on", || {
            self.check()?;
            Ok(self.doorbells()? >= from + MESSAGE)
        })
    }

    /// Waits until something is so.
    pub(crate) fn eventually(&self, what: &str, mut so: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        until(what, || so(self))
    }

    /// Ends everything; answers how many messages the two others have exchanged.
    pub(crate) fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut messages = 0;
        for player in self.players {
            messages += player.join().map_err(|_| anyhow!("a player has panicked"))??;
        }
        drop(self._contexts);
        let model = self.daemon.model().map(Arc::clone);
        self.daemon.stop()?;
        if let Some(model) = model {
            let left: serde_json::Value = serde_json::from_str(&model.dump())?;
            ensure!(left["running"] == false && left["icm_pages"] == 0, "left in the model: {left}");
        }
        ensure!(PANICS.load(Ordering::SeqCst) == 0, "a thread has panicked");
        Ok(messages)
    }
}
