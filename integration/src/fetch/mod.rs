//! Trees of unpacked Debian packages, fetched from the archive that this machine uses.
//!
//! apt resolves, downloads and checks signatures and hashes, on configuration and state of its own: the
//! host's packages are neither asked nor touched. A tree's manifest records what it was made of; a tree
//! whose manifest still answers the [`Request`] is used as it is, without the network.

mod apt;
mod mirror;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;
use apt::Apt;

/// Raise this when trees are unpacked in another way.
const LAYOUT: u32 = 1;
/// The dynamic loader. It is a real file below here; its usual name may be a link to an absolute path,
/// which on the host would lead out of the tree.
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// Unpacking one package: the kernel's has a hundred megabytes.
const UNPACK_LIMIT: Duration = Duration::from_secs(300);

/// Which packages make up a tree.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The tree's name.
    pub name: &'static str,
    /// The suites that packages may come from.
    pub suites: &'static [&'static str],
    /// The suite that is preferred to the others, if any.
    pub prefer: Option<&'static str>,
    /// The packages.
    pub packages: Packages,
}

/// What is unpacked.
#[derive(Clone, Copy, Debug)]
pub enum Packages {
    /// These, and all that they depend on.
    WithDependencies(&'static [&'static str]),
    /// Of the packages that `of` depends on, the ones whose names start with one of `prefixes`, alone.
    Dependencies {
        /// A package that stands for the newest of a series.
        of: &'static str,
        /// The start of the name of a dependency of `of` that has the wanted ones, if it isn't `of` itself.
        through: Option<&'static str>,
        /// The starts of the names wanted; each has one package.
        prefixes: &'static [&'static str],
    },
    /// These, without what they depend on.
    Alone(&'static [&'static str]),
}

/// QEMU with vfio-user, and its firmware.
pub const QEMU: Request = Request {
    name: "qemu",
    suites: &["trixie", "trixie-updates", "trixie-backports"],
    prefer: Some("trixie-backports"),
    packages: Packages::WithDependencies(&["qemu-system-x86", "seabios"]),
};

/// Debian 13's own kernel of the generic flavour with all its modules.
pub const KERNEL: Request = Request {
    name: "kernel",
    suites: &["trixie", "trixie-updates"],
    prefer: None,
    packages: Packages::Dependencies { of: "linux-image-amd64", through: None, prefixes: &["linux-image-"] },
};

/// The newest kernel that Debian 13 can have, with all its modules.
pub const NEWEST_KERNEL: Request = Request {
    name: "kernel-newest",
    suites: &["trixie-backports"],
    prefer: None,
    packages: Packages::Dependencies {
        of: "linux-image-amd64",
        through: Some("linux-image-"),
        prefixes: &["linux-base-", "linux-binary-", "linux-modules-"],
    },
};

/// The guest's programs, all of one release.
pub const GUEST: Request = Request {
    name: "guest",
    suites: &["bookworm", "bookworm-updates"],
    prefer: None,
    packages: Packages::WithDependencies(&[
        "bash",
        "busybox-static",
        "dash",
        "ibverbs-providers",
        "ibverbs-utils",
        "infiniband-diags",
        "iperf3",
        "iproute2",
        "iputils-ping",
        "kmod",
        "nfs-common",
        "nfs-kernel-server",
        "opensm",
        "perftest",
        "python3-pyverbs",
        "qperf",
        "rdmacm-utils",
        "strace",
        "tcpdump",
    ]),
};

/// What programs are compiled with that shall run in the guest, beside its own libraries.
pub const HEADERS: Request = Request {
    name: "headers",
    suites: GUEST.suites,
    prefer: GUEST.prefer,
    packages: Packages::Alone(&["libibverbs-dev"]),
};

/// A tree of unpacked packages.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
    manifest: String,
    owned: Vec<PathBuf>,
}

impl Tree {
    /// The tree's root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a file of the tree on the host.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// What the tree is made of: the request, then a line with name, version, architecture and SHA-256
    /// for each package.
    pub fn manifest(&self) -> &str {
        &self.manifest
    }

    /// The files and links, relative to the root, of the packages that were asked for by name.
    pub fn owned(&self) -> &[PathBuf] {
        &self.owned
    }

    /// A command that runs the tree's `program` on the host as `name`, by the tree's own loader and
    /// libraries.
    pub fn command(&self, program: &str, name: &str) -> Command {
        let mut command = Command::new(self.path(LOADER));
        command.arg("--library-path").arg(self.path("usr/lib/x86_64-linux-gnu"));
        command.arg("--argv0").arg(name).arg(self.path(program));
        command
    }

    /// The tree in `folder` that `request` asks for, fetched if it isn't there.
    ///
    /// # Errors
    /// apt or dpkg is missing, the archive doesn't answer or lacks a package, or a signature or hash is
    /// wrong.
    pub fn obtain(request: &Request, folder: &Path) -> Result<Self> {
        if let Some(tree) = Self::existing(request, folder)? {
            return Ok(tree);
        }
        eprintln!("rig: fetching {} from Debian's archive", request.name);
        Self::fetch(request, folder).with_context(|| format!("fetch the {} tree", request.name))?;
        Self::existing(request, folder)?.context("the tree just fetched is not there")
    }

    fn existing(request: &Request, folder: &Path) -> Result<Option<Self>> {
        let root = folder.join(request.name);
        let Ok(manifest) = fs::read_to_string(manifest_path(&root)) else {
            return Ok(None);
        };
        if manifest.lines().next() != Some(headline(request).as_str()) || !root.is_dir() {
            return Ok(None);
        }
        let owned = fs::read_to_string(owned_path(&root)).context("read the list of a tree's files")?;
        Ok(Some(Self { root, manifest, owned: owned.lines().map(PathBuf::from).collect() }))
    }

    fn fetch(request: &Request, folder: &Path) -> Result<()> {
        let root = folder.join(request.name);
        let part = folder.join(format!("{}.part", request.name));
        // The manifest goes first and comes last, so a tree with a manifest is whole.
        for stale in [manifest_path(&root), owned_path(&root)] {
            if stale.exists() {
                fs::remove_file(&stale).context("remove a stale manifest")?;
            }
        }
        for stale in [&root, &part] {
            if stale.exists() {
                fs::remove_dir_all(stale).with_context(|| format!("remove {}", stale.display()))?;
            }
        }
        make_root(&part)?;
        let state = tempfile::Builder::new().prefix("apt-").tempdir_in(folder)?;
        let apt = Apt::new(state.path(), request.suites, request.prefer)?;
        apt.update()?;
        let (archives, asked) = match request.packages {
            Packages::WithDependencies(names) => {
                (apt.download_with_dependencies(names)?, names.iter().map(|&n| n.to_owned()).collect())
            }
            Packages::Dependencies { of, through, prefixes } => {
                let of = through.map_or_else(|| Ok(of.to_owned()), |prefix| apt.dependency(of, prefix))?;
                let names: Vec<String> =
                    prefixes.iter().map(|prefix| apt.dependency(&of, prefix)).collect::<Result<_>>()?;
                (apt.download_alone(&names)?, names)
            }
            Packages::Alone(names) => {
                let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
                (apt.download_alone(&names)?, names)
            }
        };
        let mut lines = BTreeMap::new();
        let mut owned = Vec::new();
        for archive in &archives {
            let package = describe(archive)?;
            let files = unpack(archive, &part)?;
            if asked.contains(&package.name) {
                owned.extend(files);
            }
            lines.insert(package.name.clone(), package.line());
        }
        fs::rename(&part, &root).context("put the tree into its place")?;
        owned.sort();
        fs::write(owned_path(&root), owned.join("\n"))?;
        let mut manifest = headline(request);
        for line in lines.values() {
            manifest.push('\n');
            manifest.push_str(line);
        }
        manifest.push('\n');
        fs::write(manifest_path(&root), manifest).context("write the manifest")
    }
}

/// The first line of a manifest: what the tree was asked to be.
fn headline(request: &Request) -> String {
    let packages = match request.packages {
        Packages::WithDependencies(names) => names.join(" "),
        Packages::Dependencies { of, through, prefixes } => {
            let through = through.map(|prefix| format!("{prefix}* of ")).unwrap_or_default();
            format!("{}* of {through}{of}", prefixes.join("*, "))
        }
        Packages::Alone(names) => format!("only {}", names.join(" ")),
    };
    let prefer = request.prefer.unwrap_or("-");
    format!("layout {LAYOUT}; suites {}; prefer {prefer}; {packages}", request.suites.join(" "))
}

fn manifest_path(root: &Path) -> PathBuf {
    root.with_extension("manifest")
}

fn owned_path(root: &Path) -> PathBuf {
    root.with_extension("files")
}

/// An empty tree with the links that let packages say `/lib` for `/usr/lib`.
fn make_root(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    Ok(())
}

struct Package {
    name: String,
    version: String,
    architecture: String,
    sha256: String,
}

impl Package {
    fn line(&self) -> String {
        format!("{} {} {} {}", self.name, self.version, self.architecture, self.sha256)
    }
}

fn describe(archive: &Path) -> Result<Package> {
    let mut fields = Command::new(process::find("dpkg-deb", "dpkg")?);
    fields.args(["--show", "--showformat", "${Package} ${Version} ${Architecture}"]).arg(archive);
    let fields = String::from_utf8(process::run(&fields, UNPACK_LIMIT)?)?;
    let [name, version, architecture] = fields.split(' ').collect::<Vec<_>>()[..] else {
        bail!("{} has no name, version and architecture: {fields:?}", archive.display());
    };
    let mut sum = Command::new("sha256sum");
    sum.arg(archive);
    let sum = String::from_utf8(process::run(&sum, UNPACK_LIMIT)?)?;
    let sha256 = sum.split(' ').next().unwrap_or_default().to_owned();
    Ok(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: architecture.to_owned(),
        sha256,
    })
}

/// Unpacks a package's files into `root`, and gives their paths relative to it.
fn unpack(archive: &Path, root: &Path) -> Result<Vec<String>> {
    // dpkg-deb's own extraction would replace the links of `make_root` by folders.
    let mut files = Command::new(process::find("dpkg-deb", "dpkg")?)
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb")?;
    let stdout = files.stdout.take().context("dpkg-deb has no output")?;
    let tar = Command::new(process::find("tar", "tar")?)
        .args(["--extract", "--verbose", "--keep-directory-symlink", "--no-same-owner", "--directory"])
        .arg(root)
        .stdin(stdout)
        .output()
        .context("run tar")?;
    let status = files.wait().context("wait for dpkg-deb")?;
    if !status.success() || !tar.status.success() {
        bail!("unpack {}: {}", archive.display(), String::from_utf8_lossy(&tar.stderr).trim());
    }
    let names = String::from_utf8(tar.stdout).context("a package has a file name that is not UTF-8")?;
    Ok(names
        .lines()
        .filter(|name| !name.ends_with('/'))
        .map(|name| merged(name.trim_start_matches("./")))
        .collect())
}

/// The place of a package's file in a tree whose `/lib` is a link to `/usr/lib`.
fn merged(name: &str) -> String {
    let first = name.split('/').next().unwrap_or_default();
    if matches!(first, "bin" | "sbin" | "lib" | "lib64") { format!("usr/{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Request = Request {
        name: "small",
        suites: &["bookworm"],
        prefer: None,
        packages: Packages::WithDependencies(&["a", "b"]),
    };

    fn write_tree(folder: &Path, headline: &str) {
        fs::create_dir(folder.join("small")).unwrap();
        fs::write(folder.join("small.files"), "usr/bin/a").unwrap();
        fs::write(folder.join("small.manifest"), format!("{headline}\na 1 amd64 00\n")).unwrap();
    }

    #[test]
    fn existing_tree_of_the_same_request_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        write_tree(folder.path(), "layout 1; suites bookworm; prefer -; a b");
        let tree = Tree::existing(&SMALL, folder.path()).unwrap().unwrap();
        assert_eq!(tree.owned(), [PathBuf::from("usr/bin/a")]);
        assert!(tree.manifest().contains("a 1 amd64"));
    }

    #[test]
    fn existing_tree_of_another_request_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        write_tree(folder.path(), "layout 1; suites bookworm; prefer -; a b c");
        assert!(Tree::existing(&SMALL, folder.path()).unwrap().is_none());
    }

    #[test]
    fn merged_moves_what_is_below_the_linked_folders() {
        assert_eq!(merged("lib/x.so"), "usr/lib/x.so");
        assert_eq!(merged("sbin/modprobe"), "usr/sbin/modprobe");
        assert_eq!(merged("usr/lib/x.so"), "usr/lib/x.so");
        assert_eq!(merged("etc/lib/x"), "etc/lib/x");
    }
}
