//! The daemon as a process: `paraverbsd` on the model, a socket for each guest, and further cards of its
//! fabric for VMs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::Child;
use crate::{Rig, cargo, paths};

/// How long the daemon may take until its sockets are there, and to stop.
const LIMIT: Duration = Duration::from_secs(30);
const TAIL: usize = 40;

/// A daemon. Dropping it kills the process.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    guests: Vec<PathBuf>,
    fabric: Vec<PathBuf>,
    _folder: TempDir,
}

impl Daemon {
    /// Starts a daemon on the model, for guests of these names that are processes, with `cards` further cards on
    /// its fabric; returns when all sockets are there.
    ///
    /// # Errors
    /// The program can't be built, or ends early. The message has its output.
    pub fn start(rig: &Rig, guests: &[&str], cards: usize) -> Result<Self> {
        Self::on(rig, "model", guests, cards)
    }

    /// Starts a daemon as [`Daemon::start`] does, on what `--device` names; only a model has further cards.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub fn on(rig: &Rig, device: &str, guests: &[&str], cards: usize) -> Result<Self> {
        let program = cargo::program("paraverbsd", "paraverbsd")?;
        let folder = tempfile::Builder::new().prefix("rig-").tempdir().context("create a folder")?;
        let socket = |name: &str| folder.path().join(name);
        let mut command = Command::new(program);
        command.args(["--device", device, "--kind", "process"]);
        let fabric: Vec<PathBuf> = (0..cards).map(|index| socket(&format!("fabric{index}"))).collect();
        for path in &fabric {
            command.arg("--fabric-socket").arg(path);
        }
        let sockets: Vec<PathBuf> = guests.iter().map(|name| socket(&format!("{name}.sock"))).collect();
        for (name, path) in guests.iter().zip(&sockets) {
            command.arg("--guest").arg(format!("{name}={}", path.display()));
        }
        let logs = paths::logs(rig.folder());
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let log = logs.join(format!("{}.log", paths::unused("daemon")));
        let mut process = Child::spawn("paraverbsd", &command, &log)?;
        process.wait_for_files(fabric.iter().chain(&sockets), LIMIT)?;
        Ok(Self { process, guests: sockets, fabric, _folder: folder })
    }

    /// The socket of guest number `index`, from 0.
    ///
    /// # Panics
    /// There are not so many.
    pub fn guest_socket(&self, index: usize) -> &Path {
        &self.guests[index]
    }

    /// The vfio-user socket of the further card number `index`, from 0.
    ///
    /// # Panics
    /// There are not so many.
    pub fn fabric_socket(&self, index: usize) -> &Path {
        &self.fabric[index]
    }

    /// The daemon's output so far.
    pub fn log(&self) -> String {
        self.process.tail(usize::MAX)
    }

    /// Stops the daemon in order.
    ///
    /// # Errors
    /// It doesn't end in time, or not with success.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(LIMIT)?;
        if !status.success() {
            bail!("paraverbsd ended with {status}: {}", self.process.tail(TAIL));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.process.log().display();
            eprintln!("rig: the daemon's log ({log}) ends:\n{}", self.process.tail(TAIL));
        }
    }
}
