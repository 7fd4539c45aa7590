//! The kernel modules of the image: the ones that guests load by name, and all that these depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::fetch::Tree;
use crate::process;

/// Unpacking one module, or making the index of all.
const LIMIT: Duration = Duration::from_secs(120);

/// The modules that guests load by name.
pub(super) const ROOTS: &[&str] = &[
    "brd",
    "ib_ipoib",
    "ib_umad",
    "ib_uverbs",
    "mlx4_core",
    "mlx4_en",
    "mlx4_ib",
    "nfsd",
    "nfsv4",
    "nvme_rdma",
    "nvmet_rdma",
    "rdma_rxe",
    "rdma_ucm",
    "rpcrdma",
    "vfio_iommu_type1",
    "vfio_pci",
    "virtio_net",
];

/// Modules that others ask for by an alias, in kernels that have them: rdma_rxe's checksum.
pub(super) const ASKED_FOR: &[&str] = &["crc32_generic"];

/// The release of the one kernel in a tree.
pub(super) fn release(kernel: &Tree) -> Result<String> {
    let folder = kernel.path("usr/lib/modules");
    let mut names = fs::read_dir(&folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
        .unwrap_or_else(|_| Vec::new());
    match (names.pop(), names.pop()) {
        (Some(name), None) => Ok(name.to_string_lossy().into_owned()),
        _ => bail!("{} doesn't hold the modules of one kernel", folder.display()),
    }
}

/// Puts the modules into the archive, unpacked, with the index that modprobe reads.
pub(super) fn add(archive: &mut Archive, kernel: &Tree, guest: &Tree, release: &str) -> Result<()> {
    let source = kernel.path(&format!("usr/lib/modules/{release}"));
    let available = available(&source)?;
    let builtin = fs::read_to_string(source.join("modules.builtin")).context("read modules.builtin")?;
    let builtin: BTreeSet<String> = builtin.lines().filter_map(|line| name(Path::new(line))).collect();
    // modprobe wants to see a folder like the installed one.
    let stage = tempfile::tempdir()?;
    let relative = format!("usr/lib/modules/{release}");
    let staged = stage.path().join(&relative);
    fs::create_dir_all(&staged)?;
    std::os::unix::fs::symlink("usr/lib", stage.path().join("lib"))?;
    for index in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(source.join(index), staged.join(index)).with_context(|| format!("copy {index}"))?;
    }

    let named = |names: &[&str], needed| -> Vec<(String, bool)> {
        names.iter().map(|&name| (name.to_owned(), needed)).collect()
    };
    let mut wanted = [named(ROOTS, true), named(ASKED_FOR, false)].concat();
    let mut taken = BTreeSet::new();
    while let Some((module, needed)) = wanted.pop() {
        if builtin.contains(&module) || !taken.insert(module.clone()) {
            continue;
        }
        let Some(path) = available.get(&module) else {
            if needed {
                bail!("the kernel {release} has no module {module}");
            }
            continue;
        };
        let bytes = unpacked(path, guest)?;
        wanted.extend(dependencies(&bytes));
        fs::write(staged.join(format!("{module}.ko")), bytes)?;
    }

    let mut depmod = guest.command("usr/bin/kmod", "depmod");
    depmod.arg("-b").arg(stage.path()).arg(release);
    process::run(&depmod, LIMIT).context("index the modules")?;
    for entry in fs::read_dir(&staged)? {
        let entry = entry?;
        let path = format!("{relative}/{}", entry.file_name().to_string_lossy());
        archive.file(&path, 0o644, &fs::read(entry.path())?);
    }
    Ok(())
}

/// Every module of a kernel by its name.
fn available(source: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![source.join("kernel")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = name(&path) {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

/// A module's name by that of its file, `foo-bar.ko.xz` or `foo-bar.ko`.
fn name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let (stem, _) = name.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

fn unpacked(path: &Path, guest: &Tree) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    // The guest's busybox is static, so it runs here too.
    let mut xz = Command::new(guest.path("usr/bin/busybox"));
    xz.args(["xz", "-dc"]).arg(path);
    process::run(&xz, LIMIT).with_context(|| format!("unpack {}", path.display()))
}

/// The modules that a module asks for in its information section, and whether it can't do without.
fn dependencies(module: &[u8]) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for entry in module.split(|&byte| byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else {
            continue;
        };
        if let Some(list) = entry.strip_prefix("depends=") {
            found.extend(list.split(',').filter(|name| !name.is_empty()).map(|name| (normal(name), true)));
        } else if let Some(list) = entry.strip_prefix("softdep=") {
            let names = list.split_whitespace().filter(|word| !word.ends_with(':'));
            found.extend(names.map(|name| (normal(name), false)));
        }
    }
    found
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_module_has_underscores() {
        assert_eq!(name(Path::new("kernel/a/vfio-pci.ko.xz")).as_deref(), Some("vfio_pci"));
        assert_eq!(name(Path::new("mlx4_core.ko")).as_deref(), Some("mlx4_core"));
        assert_eq!(name(Path::new("modules.order")), None);
    }

    #[test]
    fn dependencies_are_read_from_the_information_section() {
        let module =
            b"\x7fELF\0license=GPL\0depends=ib-core,mlx4_core\0softdep=pre: crc32c post: x-y\0depends=\0";
        assert_eq!(
            dependencies(module),
            [
                ("ib_core".to_owned(), true),
                ("mlx4_core".to_owned(), true),
                ("crc32c".to_owned(), false),
                ("x_y".to_owned(), false),
            ]
        );
    }
}
