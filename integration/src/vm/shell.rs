//! VMs for a person: a shell on the console, and no agent.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use vmm_config::{Machine, Serial};

use super::{Logs, VmConfig, machine, qemu};
use crate::Rig;
use crate::process::Child;

/// A VM in the background whose console is a Unix socket, with a shell. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Shell {
    _qemu: Child,
    _folder: TempDir,
    socket: PathBuf,
}

impl Shell {
    /// Starts the VM; it boots by itself.
    ///
    /// # Errors
    /// QEMU can't be started.
    pub fn start(rig: &Rig, config: &VmConfig) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rig-").tempdir().context("create a folder")?;
        let socket = folder.path().join("console");
        let machine = with_shell(rig, config, Serial::Socket(socket.clone()))?;
        let logs = Logs::new(rig, &config.name)?;
        let qemu = Child::spawn(&config.name, &qemu(rig, &machine), &logs.qemu)?;
        Ok(Self { _qemu: qemu, _folder: folder, socket })
    }

    /// Runs a VM whose console is this process's terminal, until the guest stops.
    ///
    /// # Errors
    /// QEMU can't be started, or fails.
    pub fn run_here(rig: &Rig, config: &VmConfig) -> Result<()> {
        let machine = with_shell(rig, config, Serial::Stdio)?;
        let status = qemu(rig, &machine).status().context("start QEMU")?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }

    /// The socket of the console.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

fn with_shell(rig: &Rig, config: &VmConfig, serial: Serial) -> Result<Machine> {
    let config = config.clone().kernel_args("rig.shell");
    machine(rig, &config, config.devices.clone(), serial)
}
