//! Which files may contain unsafe code.
//!
//! The workspace's lints deny it everywhere; a file that lifts that must be in the list.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The files with unsafe code, by their paths from the root.
const FILES: &[&str] = &[
    "backend/cli/src/bench/player/memory.rs",
    "backend/guard/src/lib.rs",
    "backend/hca/src/host_memory.rs",
    "backend/rdma/src/mapping.rs",
    "guest-shim/verbs/src/event_fd.rs",
    "guest-shim/verbs/src/memory.rs",
    "integration/src/bin/rig-guest/doorbell.rs",
    "integration/tests/busy_path/allocator.rs",
    "mlx4/model/src/mem/host.rs",
    "mlx4/model/src/seam/iommu.rs",
    "mlx4/pci/src/dma/memory.rs",
    "mlx4/pci/src/vfio/ioctl.rs",
    "mlx4/pci/src/vfio/mmio.rs",
];

/// How the lint is lifted.
const LIFTED: &[&str] = &["allow(unsafe_code", "expect(unsafe_code", "warn(unsafe_code"];

pub(crate) fn run() -> Result<()> {
    let root = crate::root();
    let mut found = Vec::new();
    collect(&root, &root, &mut found)?;
    found.sort();
    let listed = |file: &String| FILES.contains(&file.as_str());
    let new: Vec<_> = found.iter().filter(|file| !listed(file)).map(|file| format!("  {file}")).collect();
    let gone: Vec<_> = FILES
        .iter()
        .filter(|file| !found.iter().any(|f| f == *file))
        .map(|file| format!("  {file}"))
        .collect();
    if !new.is_empty() {
        bail!("files that allow unsafe code and are not in xtask/src/unsafe_code.rs:\n{}", new.join("\n"));
    }
    if !gone.is_empty() {
        bail!("files in xtask/src/unsafe_code.rs that do not allow unsafe code:\n{}", gone.join("\n"));
    }
    println!("unsafe: in {} files, all in the list", found.len());
    Ok(())
}

/// Adds the Rust files below `folder` that lift the lint.
fn collect(root: &Path, folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !path.join("CACHEDIR.TAG").exists() {
                collect(root, &path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            if lifts(&text) {
                found.push(path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned());
            }
        }
    }
    Ok(())
}

/// Whether an attribute in a file lifts the lint.
fn lifts(text: &str) -> bool {
    text.lines().map(str::trim_start).any(|line| {
        (line.starts_with("#[") || line.starts_with("#![")) && LIFTED.iter().any(|lift| line.contains(lift))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_that_lifts_the_lint_is_seen() {
        assert!(lifts("//! A file.\n#![allow(unsafe_code)]\n"));
        assert!(lifts("mod a {\n    #[expect(unsafe_code, reason = \"mmap\")]\n    fn f() {}\n}"));
        assert!(lifts("#[cfg_attr(test, allow(unsafe_code))]"));
    }

    #[test]
    fn other_lines_are_not_taken_for_it() {
        assert!(!lifts(
            "#![forbid(unsafe_code)]\n// #![allow(unsafe_code)]\nlet s = \"allow(unsafe_code)\";"
        ));
    }
}
