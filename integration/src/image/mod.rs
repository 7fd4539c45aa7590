//! The guest's initial file system: kernel modules, stock RDMA programs, and the agent.
//!
//! Built from the unpacked trees into one uncompressed cpio archive (under emulation, unpacking costs
//! more than loading), and built again only when something that goes into it has changed.

mod cpio;
mod modules;
mod userland;

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::fetch::Tree;
use cpio::Archive;

/// Raise this when images are put together in another way.
const LAYOUT: u32 = 2;
/// The guest's first program.
const INIT: &str = include_str!("init.sh");
/// The guest's users; tcpdump wants one of its own.
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\ntcpdump:x:100:100::/:/bin/false\n";
/// Where the agent is in the guest.
const AGENT: &str = "usr/sbin/rig-agent";

/// The programs of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Programs {
    /// Those that most guests need.
    #[default]
    Base,
    /// Python with rdma-core's module and its tests besides.
    Python,
}

/// What a VM boots.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
}

impl Image {
    /// The image made of a kernel's tree, programs of a guest's tree and the agent's program, in `folder`.
    ///
    /// # Errors
    /// A tree lacks what the guest needs, or the image can't be written.
    pub fn obtain(
        kernel: &Tree,
        guest: &Tree,
        programs: Programs,
        agent: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let release = modules::release(kernel)?;
        let vmlinuz = vmlinuz(kernel, &release)?;
        let agent_bytes = fs::read(agent).with_context(|| format!("read {}", agent.display()))?;
        let mut key = DefaultHasher::new();
        (LAYOUT, INIT, modules::ROOTS, modules::ASKED_FOR).hash(&mut key);
        (kernel.manifest(), guest.manifest(), &agent_bytes).hash(&mut key);
        let kind = format!("initrd-{release}-{programs:?}-").to_lowercase();
        let initrd = folder.join(format!("{kind}{:016x}.cpio", key.finish()));
        if !initrd.is_file() {
            eprintln!("rig: building the guest's file system ({programs:?}, Linux {release})");
            remove_older(folder, &kind)?;
            let bytes = build(kernel, guest, programs, &release, agent, &agent_bytes)
                .context("build the guest's file system")?;
            let part = initrd.with_extension("part");
            fs::write(&part, bytes).with_context(|| format!("write {}", part.display()))?;
            fs::rename(&part, &initrd).context("put the image into its place")?;
        }
        Ok(Self { kernel: vmlinuz, initrd })
    }
}

/// The kernel's image: newer packages have it beside the modules.
fn vmlinuz(kernel: &Tree, release: &str) -> Result<PathBuf> {
    [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")]
        .iter()
        .map(|name| kernel.path(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{} has no image of the kernel {release}", kernel.root().display()))
}

/// Removes the images of the same kind with other keys. A VM that booted from one has read it already.
fn remove_older(folder: &Path, kind: &str) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(kind) {
            let path = entry.path();
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn build(
    kernel: &Tree,
    guest: &Tree,
    programs: Programs,
    release: &str,
    agent: &Path,
    agent_bytes: &[u8],
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for link in ["bin", "sbin", "lib", "lib64"] {
        archive.folder(&format!("usr/{link}"));
        archive.link(link, &format!("usr/{link}"));
    }
    for folder in ["dev", "proc", "sys", "run", "root", "etc"] {
        archive.folder(folder);
    }
    archive.folder_with_mode("tmp", 0o1777);
    archive.console();
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/passwd", 0o644, PASSWD);
    archive.file("etc/group", 0o644, b"root:x:0:\ntcpdump:x:100:\n");
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    modules::add(&mut archive, kernel, guest, release)?;
    userland::add(&mut archive, guest)?;
    if programs == Programs::Python {
        userland::add_python(&mut archive, guest)?;
    }
    userland::add_program(&mut archive, guest, agent, AGENT, agent_bytes)?;
    Ok(archive.finish())
}
