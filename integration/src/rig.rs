//! What every VM needs, made ready once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::fetch::{self, Tree};
use crate::image::{Image, Programs};
use crate::{Vm, VmConfig, cargo, paths, peer};

/// The kernel that a VM boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 13's own (6.12).
    #[default]
    Stable,
    /// The newest of Debian 13's backports (7.x).
    Newest,
}

/// QEMU, a kernel and a guest's file system, ready to boot.
#[derive(Clone, Debug)]
pub struct Rig {
    folder: PathBuf,
    qemu: Tree,
    kernel: Tree,
    newest: Tree,
    guest: Tree,
    agent: PathBuf,
    verbs_peer: PathBuf,
}

impl Rig {
    /// Fetches and builds what isn't there yet. Several processes may do so at once: one works, the
    /// others wait.
    ///
    /// # Errors
    /// Something is missing on this machine, or in the archive; the message says what.
    pub fn prepare() -> Result<Self> {
        let folder = paths::rig();
        let trees = folder.join("trees");
        fs::create_dir_all(&trees).with_context(|| format!("create {}", trees.display()))?;
        let folder = folder.canonicalize()?;
        let trees = folder.join("trees");
        let agent = cargo::agent()?;
        let _lock = lock(&folder)?;
        let qemu = Tree::obtain(&fetch::QEMU, &trees)?;
        let kernel = Tree::obtain(&fetch::KERNEL, &trees)?;
        let newest = Tree::obtain(&fetch::NEWEST_KERNEL, &trees)?;
        let guest = Tree::obtain(&fetch::GUEST, &trees)?;
        let headers = Tree::obtain(&fetch::HEADERS, &trees)?;
        let verbs_peer = peer::compile(&guest, &headers, &folder)?;
        Ok(Self { folder, qemu, kernel, newest, guest, agent, verbs_peer })
    }

    /// Boots a VM; returns when its agent answers.
    ///
    /// # Errors
    /// QEMU ends early, or the guest doesn't come up in time. The message has the end of its console.
    pub fn boot(&self, config: VmConfig) -> Result<Vm> {
        Vm::boot(self, config)
    }

    /// The folder of everything that was fetched, built and logged.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// QEMU's tree.
    pub fn qemu(&self) -> &Tree {
        &self.qemu
    }

    /// What VMs boot: one of the kernels with one of the sets of programs. It is built if it isn't there yet.
    ///
    /// # Errors
    /// A tree lacks what the guest needs, or the image can't be written.
    pub fn image(&self, kernel: Kernel, programs: Programs) -> Result<Image> {
        let _lock = lock(&self.folder)?;
        let kernel = match kernel {
            Kernel::Stable => &self.kernel,
            Kernel::Newest => &self.newest,
        };
        Image::obtain(kernel, &self.guest, programs, &self.agent, &self.folder)
    }

    /// The program that [`StockPeer`](crate::StockPeer) runs in a guest.
    pub fn verbs_peer(&self) -> &Path {
        &self.verbs_peer
    }
}

/// Held by the process that fetches or builds; the others wait.
fn lock(folder: &Path) -> Result<File> {
    let lock = File::create(folder.join("lock")).context("open the rig's lock")?;
    lock.lock().context("wait for the rig's lock")?;
    Ok(lock)
}
