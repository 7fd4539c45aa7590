//! A card as the kernel shows it in files, and who uses it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mlx4_pci::{Holder, PciAddress, holders};

use super::bind::{Bus, Driver};

/// What cards of the family are called.
pub(crate) const FAMILY: &str = "ConnectX, ConnectX-2 or ConnectX-3 with InfiniBand";
/// The flag of a network interface that is up.
const IFF_UP: u32 = 1;
/// The folders of a device in which its character devices are.
const CLASSES: [&str; 2] = ["infiniband_verbs", "infiniband_mad"];

/// A card of a host whose `sys`, `proc` and `dev` are in a certain folder.
#[derive(Debug)]
pub(crate) struct Sysfs {
    root: PathBuf,
    pub(crate) address: PciAddress,
}

/// Someone who uses a card.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum User {
    /// A network interface that is up.
    Interface(String),
    /// A process.
    Process(Holder),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "network interface {name} is up (ip link set {name} down)"),
            Self::Process(holder) => holder.fmt(f),
        }
    }
}

impl Sysfs {
    pub(crate) fn new(root: impl Into<PathBuf>, address: PciAddress) -> Self {
        Self { root: root.into(), address }
    }

    /// A file of the host.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The content of a file of the host, without spaces around it.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    fn folder(&self) -> PathBuf {
        self.path("sys/bus/pci/devices").join(self.address.to_string())
    }

    /// Vendor and device, if there is such a function.
    pub(crate) fn identity(&self) -> Option<(u16, u16)> {
        let number = |name: &str| {
            let text = fs::read_to_string(self.folder().join(name)).ok()?;
            u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
        };
        Some((number("vendor")?, number("device")?))
    }

    /// Whether it is a card of the family.
    pub(crate) fn is_card(&self) -> bool {
        self.identity().is_some_and(|(vendor, device)| mlx4::Hca::knows(vendor, device))
    }

    /// The number of the IOMMU group.
    pub(crate) fn group(&self) -> Option<u32> {
        link_name(&self.folder().join("iommu_group"))?.parse().ok()
    }

    /// The name of the IOMMU group's kind, where it has one.
    pub(crate) fn group_name(&self) -> Option<String> {
        Some(fs::read_to_string(self.folder().join("iommu_group/name")).ok()?.trim().to_owned())
    }

    /// The other devices of the IOMMU group that have drivers, with these.
    pub(crate) fn companions(&self) -> Vec<(String, String)> {
        let own = self.address.to_string();
        let mut found = names(&self.folder().join("iommu_group/devices"))
            .into_iter()
            .filter(|name| *name != own)
            .filter_map(|name| {
                let driver = link_name(&self.folder().with_file_name(&name).join("driver"))?;
                Some((name, driver))
            })
            .collect::<Vec<_>>();
        found.sort();
        found
    }

    /// Who uses the card, through any driver.
    pub(crate) fn users(&self) -> Vec<User> {
        let mut users = Vec::new();
        for name in names(&self.folder().join("net")) {
            let flags = fs::read_to_string(self.folder().join("net").join(&name).join("flags"));
            let flags =
                flags.ok().and_then(|text| u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
            if flags.is_some_and(|flags| flags & IFF_UP != 0) {
                users.push(User::Interface(name));
            }
        }
        let group = self.group();
        let for_programs = self.driver().as_deref() == Some(Driver::Vfio.name());
        let mut files: Vec<_> = CLASSES
            .iter()
            .flat_map(|class| names(&self.folder().join(class)))
            .map(|name| format!("/dev/infiniband/{name}"))
            .collect();
        match group {
            Some(group) if for_programs => {
                users.extend(holders(&self.root, group).into_iter().map(User::Process));
            }
            group => files.extend(group.map(|group| format!("/dev/vfio/{group}"))),
        }
        users.extend(self.openers(&files));
        users.sort();
        users
    }

    /// The processes that have one of these files open.
    fn openers(&self, files: &[String]) -> Vec<User> {
        let proc = self.path("proc");
        let pids = names(&proc).into_iter().filter_map(|name| name.parse::<u32>().ok());
        let open = |pid: u32| {
            let descriptors = proc.join(pid.to_string()).join("fd");
            let targets = names(&descriptors).into_iter().filter_map(|fd| {
                // Processes end while they are looked at.
                Some(fs::read_link(descriptors.join(fd)).ok()?.to_str()?.to_owned())
            });
            let mut targets: Vec<_> = targets.filter(|target| files.contains(target)).collect();
            targets.sort();
            targets.dedup();
            let name = self.text(&format!("proc/{pid}/comm")).unwrap_or_else(|| "a process".into());
            targets.into_iter().map(move |file| {
                User::Process(Holder { pid, name: name.clone(), does: format!("has {file} open") })
            })
        };
        pids.flat_map(open).collect()
    }
}

impl Bus for Sysfs {
    fn driver(&self) -> Option<String> {
        link_name(&self.folder().join("driver"))
    }

    fn has_driver(&self, name: &str) -> bool {
        self.path("sys/bus/pci/drivers").join(name).is_dir()
    }

    fn driver_override(&self) -> io::Result<String> {
        let text = fs::read_to_string(self.folder().join("driver_override"))?;
        let text = text.trim();
        // The kernel's way to print a pointer that is none.
        Ok(if text == "(null)" { String::new() } else { text.to_owned() })
    }

    fn set_driver_override(&self, name: &str) -> io::Result<()> {
        fs::write(self.folder().join("driver_override"), format!("{name}\n"))
    }

    fn unbind(&self) -> io::Result<()> {
        fs::write(self.folder().join("driver/unbind"), self.address.to_string())
    }

    fn probe(&self) -> io::Result<()> {
        fs::write(self.path("sys/bus/pci/drivers_probe"), self.address.to_string())
    }
}

/// The names in a folder; none if it isn't there.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The last part of what a link points to.
fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::stage::{CARD, Stage};
    use super::*;

    #[test]
    fn users_are_interfaces_that_are_up_and_processes_with_a_file_of_the_card_open() {
        let stage = Stage::card("mlx4_core");
        let folder = format!("sys/bus/pci/devices/{CARD}");
        let stage = stage
            .file(&format!("{folder}/net/ib0/flags"), "0x1003\n")
            .file(&format!("{folder}/net/ib1/flags"), "0x1002\n")
            .file(&format!("{folder}/infiniband_verbs/uverbs0/dev"), "231:192\n")
            .file(&format!("{folder}/infiniband_mad/umad0/dev"), "231:0\n")
            .file("proc/12/comm", "opensm\n")
            .link("proc/12/fd/3", "/dev/infiniband/umad0")
            .link("proc/12/fd/4", "/dev/infiniband/umad0")
            .file("proc/13/comm", "other\n")
            .link("proc/13/fd/3", "/dev/infiniband/uverbs1")
            .file("proc/14/comm", "paraverbsd\n")
            .link("proc/14/fd/7", "/dev/vfio/12");
        let users: Vec<_> = stage.sysfs().users().iter().map(ToString::to_string).collect();
        assert_eq!(
            users,
            [
                "network interface ib0 is up (ip link set ib0 down)",
                "opensm (process 12) has /dev/infiniband/umad0 open",
                "paraverbsd (process 14) has /dev/vfio/12 open",
            ]
        );
    }

    #[test]
    fn override_that_the_kernel_has_not_is_none() {
        let stage = Stage::card("mlx4_core");
        let file = format!("sys/bus/pci/devices/{CARD}/driver_override");
        let stage = stage.file(&file, "(null)\n");
        assert_eq!(stage.sysfs().driver_override().unwrap(), "");
        stage.sysfs().set_driver_override("vfio-pci").unwrap();
        assert_eq!(stage.sysfs().driver_override().unwrap(), "vfio-pci");
    }
}
