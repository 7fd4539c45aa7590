//! The programs of the image: those of the packages that were asked for by name, the shared libraries
//! that they need, and busybox's many names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::fetch::Tree;
use crate::process;

/// Asking the loader what a program needs.
const LIMIT: Duration = Duration::from_secs(60);
/// Links in a row before they are taken for a circle.
const MAX_LINKS: usize = 16;
/// The loader, by the name that programs have for it.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
/// How the loader's check of a file ends if that isn't dynamically linked.
const STATIC: i32 = 1;
/// Python by the name without its version.
const PYTHON: &str = "usr/bin/python3";
/// Where the package has the tests of rdma-core's Python module, partly packed, and where they are in the guest.
const PYVERBS_TESTS: (&str, &str) = ("usr/share/doc/rdma-core/tests", "usr/share/pyverbs/tests");
/// How the names of files start that are taken; documentation, start scripts, plug-ins stay out.
const TAKEN: &[&str] = &["usr/bin/", "usr/sbin/", "usr/lib/x86_64-linux-gnu/lib", "etc/libibverbs.d/"];
/// The interpreters of scripts that the guest has.
const SHELLS: &[&[u8]] = &[b"#!/bin/sh", b"#!/bin/bash"];

/// Puts the guest tree's programs into the archive.
pub(super) fn add(archive: &mut Archive, guest: &Tree) -> Result<()> {
    for file in guest.owned() {
        let Some(name) = file.to_str().filter(|name| TAKEN.iter().any(|start| name.starts_with(start)))
        else {
            continue;
        };
        let path = guest.path(name);
        if path.is_symlink() {
            archive.link(name, &fs::read_link(&path)?.to_string_lossy());
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if is_elf(&bytes) {
            add_program(archive, guest, &path, name, &bytes)?;
        } else if !bytes.starts_with(b"#!") || SHELLS.iter().any(|shell| bytes.starts_with(shell)) {
            archive.file(name, fs::metadata(&path)?.permissions().mode() & 0o777, &bytes);
        }
    }
    // Not busybox: its shell takes its own programs before those of the same name in PATH.
    archive.link("usr/bin/sh", "dash");
    add_busybox(archive, guest)
}

/// Puts a program (or library) at `file` on the host into the archive as `name`, with what it needs.
pub(super) fn add_program(
    archive: &mut Archive,
    guest: &Tree,
    file: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<()> {
    for (soname, library) in libraries(guest, file)? {
        let place = format!("usr/lib/x86_64-linux-gnu/{soname}");
        if !archive.contains(&place) {
            archive.file(&place, 0o755, &fs::read(resolve(guest.root(), &library)?)?);
        }
    }
    if !archive.contains(LOADER) {
        archive.file(LOADER, 0o755, &fs::read(resolve(guest.root(), Path::new(LOADER))?)?);
    }
    archive.file(name, 0o755, bytes);
    Ok(())
}

/// Puts Python, its library, rdma-core's module for it and that module's tests into the archive.
pub(super) fn add_python(archive: &mut Archive, guest: &Tree) -> Result<()> {
    let versioned = fs::read_link(guest.path(PYTHON)).with_context(|| format!("read the link {PYTHON}"))?;
    let versioned = versioned.to_string_lossy();
    archive.link(PYTHON, &versioned);
    let mut places = vec![(format!("usr/bin/{versioned}"), format!("usr/bin/{versioned}"))];
    for folder in [format!("usr/lib/{versioned}"), "usr/lib/python3".to_owned()] {
        places.extend(files_below(guest, &folder)?.into_iter().map(|name| (name.clone(), name)));
    }
    for name in files_below(guest, PYVERBS_TESTS.0)? {
        let place = name.replacen(PYVERBS_TESTS.0, PYVERBS_TESTS.1, 1);
        places.push((name, place));
    }
    for (name, place) in places {
        let path = guest.path(&name);
        if let Some(place) = place.strip_suffix(".gz") {
            archive.file(place, 0o644, &gunzipped(&path, guest)?);
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if is_elf(&bytes) {
            add_program(archive, guest, &path, &place, &bytes)?;
        } else {
            archive.file(&place, fs::metadata(&path)?.permissions().mode() & 0o777, &bytes);
        }
    }
    Ok(())
}

/// The files below a folder of the tree, relative to the tree; links are left out.
fn files_below(guest: &Tree, folder: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let path = guest.path(&folder);
        for entry in fs::read_dir(&path).with_context(|| format!("read {}", path.display()))? {
            let entry = entry?;
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                found.push(name);
            }
        }
    }
    Ok(found)
}

fn gunzipped(path: &Path, guest: &Tree) -> Result<Vec<u8>> {
    let mut gunzip = Command::new(guest.path("usr/bin/busybox"));
    gunzip.args(["gunzip", "-c"]).arg(path);
    process::run(&gunzip, LIMIT).with_context(|| format!("unpack {}", path.display()))
}

fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// The shared libraries that an ELF file needs, directly or not: their names, and their paths relative
/// to the tree.
fn libraries(guest: &Tree, file: &Path) -> Result<Vec<(String, PathBuf)>> {
    let loader = resolve(guest.root(), Path::new(LOADER))?;
    let verified = Command::new(&loader).arg("--verify").arg(file).status().context("start the loader")?;
    if verified.code() == Some(STATIC) {
        return Ok(Vec::new());
    }
    let mut list = Command::new(loader);
    list.arg("--library-path").arg(guest.path("usr/lib/x86_64-linux-gnu")).arg("--list").arg(file);
    let text = process::run(&list, LIMIT)
        .with_context(|| format!("find the libraries of {}", file.display()))
        .map(String::from_utf8)??;
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((soname, place)) = line.trim().split_once(" => ") else {
            continue;
        };
        if soname.starts_with('/') {
            continue; // the loader itself
        }
        let place = place.split(" (").next().unwrap_or_default();
        let Ok(relative) = Path::new(place).strip_prefix(guest.root()) else {
            bail!("{} needs {soname}, which the guest's packages don't have ({place})", file.display());
        };
        found.push((soname.to_owned(), relative.to_owned()));
    }
    Ok(found)
}

/// The file on the host that `path` in the tree means, with links followed inside the tree.
fn resolve(root: &Path, path: &Path) -> Result<PathBuf> {
    let mut inside = PathBuf::new();
    let mut links = 0;
    let mut rest: Vec<_> = parts(path);
    while let Some(part) = rest.pop() {
        if part == ".." {
            inside.pop();
            continue;
        }
        inside.push(&part);
        let host = root.join(&inside);
        if host.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                bail!("{} leads through more than {MAX_LINKS} links", path.display());
            }
            let target = fs::read_link(&host)?;
            inside = if target.is_absolute() {
                PathBuf::new()
            } else {
                inside.parent().unwrap_or(Path::new("")).to_owned()
            };
            rest.extend(parts(&target));
        }
    }
    Ok(root.join(inside))
}

/// The parts of a path, last one first.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    let normal = path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut parts: Vec<_> = normal.collect();
    parts.reverse();
    parts
}

/// Puts busybox's names into the archive, where there is no program of that name yet.
fn add_busybox(archive: &mut Archive, guest: &Tree) -> Result<()> {
    let mut list = Command::new(guest.path("usr/bin/busybox"));
    list.arg("--list");
    for name in String::from_utf8(process::run(&list, LIMIT)?)?.lines() {
        if ["usr/bin", "usr/sbin"].iter().all(|folder| !archive.contains(&format!("{folder}/{name}"))) {
            archive.link(&format!("usr/bin/{name}"), "busybox");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_follows_links_inside_the_tree() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("usr/lib/x")).unwrap();
        fs::write(root.join("usr/lib/x/real"), "").unwrap();
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
        std::os::unix::fs::symlink("/lib/x/real", root.join("usr/absolute")).unwrap();
        std::os::unix::fs::symlink("../usr/lib/../lib/x/real", root.join("usr/relative")).unwrap();
        let real = root.join("usr/lib/x/real");
        for path in ["usr/absolute", "usr/relative", "lib/x/real", "/lib/../lib/x/real"] {
            assert_eq!(resolve(root, Path::new(path)).unwrap(), real, "{path}");
        }
    }

    #[test]
    fn resolve_of_a_circle_of_links_fails() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("b", folder.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("b")).unwrap();
        assert!(resolve(folder.path(), Path::new("a")).is_err());
    }
}
