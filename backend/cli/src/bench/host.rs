//! The daemon on a card of the model, in this process, with a socket for each of two guests.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, Doorbells, GuestEntry, GuestKind};
use tempfile::TempDir;

/// Names of the guests.
const NAMES: [&str; 2] = ["a", "b"];

/// How long the daemon's thread looks for work before it sleeps. It is said for all machines, so that those with
/// two cores poll too, which the daemon by itself leaves to larger ones.
pub(crate) const SPIN: Duration = Duration::from_micros(50);

/// The daemon. Fields drop in order: it removes its sockets before the folder goes.
pub(crate) struct Host {
    daemon: Daemon,
    sockets: [PathBuf; 2],
    folder: TempDir,
}

impl Host {
    /// Starts the daemon.
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("paraverbs-bench-")
            .tempdir()
            .context("make a temporary folder; set TMPDIR to one that you may write to")?;
        let sockets = NAMES.map(|name| folder.path().join(format!("{name}.sock")));
        // The way that works with every VMM; `Way::doorbell` says so.
        let doorbells = Doorbells::Relayed;
        let guest = |(name, socket): (&&str, &PathBuf)| GuestEntry {
            doorbells,
            ..GuestEntry::new(name, socket, GuestKind::Process)
        };
        let config = Config {
            device: Device::default(),
            fabric_sockets: Vec::new(),
            guests: NAMES.iter().zip(&sockets).map(guest).collect(),
            spin: Some(SPIN),
        };
        let daemon = Daemon::start(&config).context("start the daemon")?;
        Ok(Self { daemon, sockets, folder })
    }

    /// The guests' sockets.
    pub(crate) fn sockets(&self) -> &[PathBuf; 2] {
        &self.sockets
    }

    /// A folder for files that go with the daemon.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// One of the model's counters.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let counters = self.daemon.model().map(|model| model.counters());
        counters.and_then(|counters| counters.iter().find(|(found, _)| *found == name)).map_or(0, |(_, n)| n)
    }

    /// Stops the daemon and removes the folder.
    pub(crate) fn stop(self) -> Result<()> {
        let Self { daemon, folder, .. } = self;
        daemon.stop().context("stop the daemon")?;
        folder.close().context("remove the temporary folder")
    }
}
