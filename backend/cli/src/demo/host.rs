//! The host's side of the demo: the daemon, in a folder that goes with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, Doorbells as Granted, GuestEntry, GuestKind};
use tempfile::TempDir;

use super::guests::NAMES;
use super::protocol::Doorbells;

/// When guests have gone, what they had is taken from the HCA within this time.
const TEARDOWN: Duration = Duration::from_secs(5);

/// Bytes of a path that Unix sockets can have.
const SOCKET_PATH_MAX: usize = 107;

/// How long the daemon's thread looks for work before it sleeps: it needs a core beside that of one guest only,
/// since two guests that poll at once have another one.
pub(crate) const SPIN: Duration = Duration::from_micros(50);

/// The daemon. Fields drop in order: the daemon removes its sockets before the folder goes.
pub(crate) struct Host {
    daemon: Daemon,
    relayed: [PathBuf; 2],
    direct: [PathBuf; 2],
    folder: TempDir,
}

/// What the model has counted, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// A count since an earlier look.
    pub(crate) fn since(&self, before: &Self, name: &str) -> u64 {
        let count = |counts: &Self| counts.0.get(name).copied().unwrap_or(0);
        count(self) - count(before)
    }
}

impl Host {
    /// Starts the daemon with two sockets for each guest, one for each kind of doorbells; a card has relayed ones
    /// only.
    pub(crate) fn start(device: &Device) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("paraverbs-demo-")
            .tempdir()
            .context("make a temporary folder; set TMPDIR to one that you may write to")?;
        let relayed = NAMES.map(|name| folder.path().join(format!("{name}.sock")));
        let direct = NAMES.map(|name| folder.path().join(format!("{name}-direct.sock")));
        if direct[0].as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "the temporary folder {} is too deep for sockets; set TMPDIR to a shorter path",
                folder.path().display()
            );
        }
        let guest = |name: &str, socket, doorbells| GuestEntry {
            doorbells,
            ..GuestEntry::new(name, socket, GuestKind::Process)
        };
        let [a, b] = NAMES;
        let mut guests =
            vec![guest(a, &relayed[0], Granted::Relayed), guest(b, &relayed[1], Granted::Relayed)];
        if !device.is_card() {
            guests.push(guest(&format!("{a}-direct"), &direct[0], Granted::Direct));
            guests.push(guest(&format!("{b}-direct"), &direct[1], Granted::Direct));
        }
        let config = Config { device: device.clone(), fabric_sockets: Vec::new(), guests, spin: Some(SPIN) };
        let daemon = Daemon::start(&config)?;
        Ok(Self { daemon, relayed, direct, folder })
    }

    /// The guests' sockets.
    pub(crate) fn sockets(&self, doorbells: Doorbells) -> &[PathBuf; 2] {
        match doorbells {
            Doorbells::Relayed => &self.relayed,
            Doorbells::Direct => &self.direct,
        }
    }

    /// What the model has counted so far; `None` of a card, into which the daemon can't look.
    pub(crate) fn counts(&self) -> Option<Counts> {
        self.daemon.model().map(|model| Counts(model.counters().iter().collect()))
    }

    /// What is in the model, as text; `None` of a card.
    pub(crate) fn dump(&self) -> Option<String> {
        self.daemon.model().map(|model| model.dump())
    }

    /// Waits until the daemon has noticed that the guests have gone, and has taken from the HCA what they had.
    /// Answers the dump then, or how many guests are left.
    pub(crate) fn wait_alone(&self) -> Result<Option<String>, usize> {
        let deadline = Instant::now() + TEARDOWN;
        loop {
            let connected = self.daemon.status().guests.iter().filter(|guest| guest.connected).count();
            if connected == 0 {
                return Ok(self.dump());
            }
            if Instant::now() >= deadline {
                return Err(connected);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the daemon and removes the folder.
    pub(crate) fn stop(self) -> Result<()> {
        let Self { daemon, folder, .. } = self;
        daemon.stop().context("stop the daemon")?;
        folder.close().context("remove the temporary folder")
    }
}
