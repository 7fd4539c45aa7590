//! Who keeps a card from being opened: processes that have its group open, or the file of one of the group's devices
//! (which users of iommufd open instead), or a page of its BARs mapped.
//!
//! A mapping keeps the card open when every descriptor is closed. If it was opened through its group, the kernel
//! doesn't say which card it is of, so such processes are named only where the group is busy though nobody has it
//! open, and not if they have another group open.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;

/// How `/proc` shows a device of VFIO's, open or mapped.
const DEVICE: &str = "anon_inode:[vfio-device]";
/// Where BAR n begins in a device's file: at n times two to the power of this many.
const BAR_SHIFT: u32 = 40;
/// The BAR of doorbells.
const DOORBELLS: u64 = 2;

/// A process that uses a card.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name, 15 bytes at most.
    pub name: String,
    /// What it does: "has /dev/vfio/12 open".
    pub does: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {}) {}", self.name, self.pid, self.does)
    }
}

/// The processes that keep an IOMMU group in use, on a host whose `proc` is in a folder. Of other users' processes
/// only root sees what they do. The group is opened for a moment if that alone can tell whether it is in use.
pub fn holders(root: &Path, group: u32) -> Vec<Holder> {
    let busy = || {
        let opened = File::open(root.join(format!("dev/vfio/{group}")));
        opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    };
    holders_if(root, group, busy)
}

/// The same, where others know whether the group is busy.
pub(super) fn holders_if(root: &Path, group: u32, busy: impl FnOnce() -> bool) -> Vec<Holder> {
    let files = device_files(root, group);
    let pids = names(&root.join("proc")).into_iter().filter_map(|name| name.parse().ok());
    let mut all: Vec<(u32, Use)> = pids
        .filter_map(|pid| Some((pid, Use::of(&root.join(format!("proc/{pid}")), group, &files)?)))
        .collect();
    let known = all.iter().any(|(_, found)| found.is_certain());
    if known || (!all.is_empty() && !busy()) {
        all.retain(|(_, found)| found.is_certain());
    }
    let holder = |(pid, found): (u32, Use)| {
        let name = fs::read_to_string(root.join(format!("proc/{pid}/comm"))).unwrap_or_default();
        let name = if name.is_empty() { "a process".into() } else { name.trim_end().to_owned() };
        Holder { pid, name, does: found.told(group) }
    };
    let mut holders: Vec<Holder> = all.into_iter().map(holder).collect();
    holders.sort();
    holders
}

/// The files of a group's devices that a kernel with iommufd offers.
fn device_files(root: &Path, group: u32) -> Vec<String> {
    let devices = root.join(format!("sys/kernel/iommu_groups/{group}/devices"));
    let files = names(&devices).into_iter().flat_map(|device| names(&devices.join(device).join("vfio-dev")));
    files.map(|name| format!("/dev/vfio/devices/{name}")).collect()
}

/// What a process does with VFIO.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Use {
    /// It has the group open.
    Group,
    /// It has the file of one of the group's devices open, or pages of it mapped.
    File { name: String, is_open: bool },
    /// It has a device open, but no group.
    Device,
    /// It has pages of these BARs mapped, and nothing open.
    Pages(Vec<u64>),
}

impl Use {
    /// Of the process whose folder this is; with the files of the group's devices.
    fn of(folder: &Path, group: u32, files: &[String]) -> Option<Self> {
        let fds = folder.join("fd");
        // Descriptors are closed, and processes end, while they are looked at.
        let open: Vec<_> =
            names(&fds).into_iter().filter_map(|fd| fs::read_link(fds.join(fd)).ok()).collect();
        let maps = fs::read_to_string(folder.join("maps")).unwrap_or_default();
        let opened = |name: &&String| open.iter().any(|file| file.as_os_str() == name.as_str());
        let mapped = |name: &&String| maps.lines().any(|line| line.split_whitespace().nth(5) == Some(name));
        if let Some(name) = files.iter().find(opened) {
            return Some(Self::File { name: name.clone(), is_open: true });
        }
        if let Some(name) = files.iter().find(mapped) {
            return Some(Self::File { name: name.clone(), is_open: false });
        }
        let groups =
            open.iter().filter_map(|file| file.strip_prefix("/dev/vfio").ok()?.to_str()?.parse().ok());
        let groups: Vec<u32> = groups.collect();
        if !groups.is_empty() {
            return groups.contains(&group).then_some(Self::Group);
        }
        if open.iter().any(|file| file.as_os_str() == DEVICE) {
            return Some(Self::Device);
        }
        let mut bars: Vec<u64> = maps.lines().filter_map(bar).collect();
        bars.sort_unstable();
        bars.dedup();
        (!bars.is_empty()).then_some(Self::Pages(bars))
    }

    /// It is this group, and none other, that is in use by that.
    fn is_certain(&self) -> bool {
        matches!(self, Self::Group | Self::File { .. })
    }

    fn told(&self, group: u32) -> String {
        match self {
            Self::Group => format!("has /dev/vfio/{group} open"),
            Self::File { name, is_open: true } => format!("has {name} open"),
            Self::File { name, is_open: false } => format!("has pages of {name} mapped"),
            Self::Device => "has a VFIO device open".into(),
            Self::Pages(bars) => {
                let bars = bars.iter().map(|bar| match *bar {
                    DOORBELLS => "doorbell pages (BAR2)".to_owned(),
                    bar => format!("pages of BAR{bar}"),
                });
                format!("has {} of a VFIO device mapped", bars.collect::<Vec<_>>().join(" and "))
            }
        }
    }
}

/// The BAR that a line of a process's `maps` is of, if it is one of a VFIO device's.
fn bar(line: &str) -> Option<u64> {
    let offset = line.strip_suffix(DEVICE)?.split_whitespace().nth(2)?;
    Some(u64::from_str_radix(offset, 16).ok()? >> BAR_SHIFT)
}

/// The names in a folder; none if it isn't there, or may not be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// Processes with what they have open, and their maps.
    fn proc(processes: &[(u32, &[&str], &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (pid, open, maps) in processes {
            let folder = root.path().join(format!("proc/{pid}"));
            fs::create_dir_all(folder.join("fd")).unwrap();
            for (fd, target) in open.iter().enumerate() {
                symlink(target, folder.join("fd").join(fd.to_string())).unwrap();
            }
            fs::write(folder.join("comm"), format!("program{pid}\n")).unwrap();
            fs::write(folder.join("maps"), maps).unwrap();
        }
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        root
    }

    fn told(processes: &[(u32, &[&str], &str)]) -> Vec<String> {
        holders_if(proc(processes).path(), 12, || true).iter().map(ToString::to_string).collect()
    }

    const DOORBELL: &str = "7f00-7f10 rw-p 00000000 00:00 0 [heap]\n\
        7fb2c0000000-7fb2c0001000 rw-s 20000000000 00:0e 1057 anon_inode:[vfio-device]\n";

    #[test]
    fn process_with_the_group_open_is_named_and_no_other() {
        let group: &[&str] = &["/dev/null", "/dev/vfio/vfio", "/dev/vfio/12", DEVICE];
        let found =
            told(&[(7, group, DOORBELL), (9, &["/dev/vfio/13", DEVICE], DOORBELL), (11, &[], DOORBELL)]);
        assert_eq!(found, ["program7 (process 7) has /dev/vfio/12 open"]);
        // A group that can be opened is in nobody's use.
        let root = proc(&[(11, &[], DOORBELL)]);
        fs::create_dir_all(root.path().join("dev/vfio")).unwrap();
        fs::write(root.path().join("dev/vfio/12"), "").unwrap();
        assert_eq!(holders(root.path(), 12), []);
        fs::remove_file(root.path().join("dev/vfio/12")).unwrap();
        assert_eq!(holders(root.path(), 12), [], "one that isn't there is in nobody's use either");
        assert_eq!(told(&[(9, &["/dev/vfio/13", DEVICE], DOORBELL), (10, &["/dev/vfio/vfio"], "")]), [""; 0]);
    }

    #[test]
    fn process_with_the_file_of_a_device_of_the_group_open_or_mapped_is_named() {
        let mapped = "7fb2c0000000-7fb2c0001000 rw-s 20000000000 00:05 1057 /dev/vfio/devices/vfio3\n";
        let root = proc(&[
            (7, &["/dev/iommu", "/dev/vfio/devices/vfio3"], ""),
            (8, &["/dev/iommu", "/dev/vfio/devices/vfio33"], ""),
            (9, &[], mapped),
            (11, &[], DOORBELL),
        ]);
        let device = root.path().join("sys/kernel/iommu_groups/12/devices/0000:01:00.0/vfio-dev/vfio3");
        fs::create_dir_all(device).unwrap();
        let found: Vec<_> = holders_if(root.path(), 12, || true).iter().map(ToString::to_string).collect();
        let wanted = [
            "program7 (process 7) has /dev/vfio/devices/vfio3 open",
            "program9 (process 9) has pages of /dev/vfio/devices/vfio3 mapped",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn process_that_only_has_pages_mapped_is_named_with_them() {
        let registers = "7f00-7f10 rw-s 00001000 00:0e 1057 anon_inode:[vfio-device]\n";
        let both = format!("{registers}{DOORBELL}{DOORBELL}");
        let found = told(&[(20, &[], DOORBELL), (21, &[], &both), (22, &[DEVICE], ""), (23, &[], "")]);
        let wanted = [
            "program20 (process 20) has doorbell pages (BAR2) of a VFIO device mapped",
            "program21 (process 21) has pages of BAR0 and doorbell pages (BAR2) of a VFIO device mapped",
            "program22 (process 22) has a VFIO device open",
        ];
        assert_eq!(found, wanted);
    }
}
