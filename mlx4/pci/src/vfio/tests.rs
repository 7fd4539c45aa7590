//! Opening cards that can't be opened, on a host made of files.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const CARD: &str = "0000:01:00.0";

/// A folder with `sys` and `dev` of a host that has devices in IOMMU group 12.
struct FakeHost {
    root: TempDir,
}

impl FakeHost {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/bus/pci/devices")).unwrap();
        Self { root }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path)
    }

    /// Adds a device without group and driver.
    fn device(self, address: &str) -> Self {
        fs::create_dir(self.path("sys/bus/pci/devices").join(address)).unwrap();
        self
    }

    /// Puts a device into group 12, of which `name` is the name.
    fn group(self, address: &str, name: Option<&str>) -> Self {
        let group = self.path("sys/kernel/iommu_groups/12");
        fs::create_dir_all(group.join("devices").join(address)).unwrap();
        if let Some(name) = name {
            fs::write(group.join("name"), format!("{name}\n")).unwrap();
        }
        symlink(group, self.path("sys/bus/pci/devices").join(address).join("iommu_group")).unwrap();
        self
    }

    fn driver(self, address: &str, driver: &str) -> Self {
        let folder = self.path("sys/bus/pci/drivers").join(driver);
        fs::create_dir_all(&folder).unwrap();
        symlink(folder, self.path("sys/bus/pci/devices").join(address).join("driver")).unwrap();
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn host(&self) -> Host {
        Host::new(self.root.path(), format!("vfio:{CARD}").parse().unwrap())
    }

    /// What opening the card says.
    fn error(&self) -> String {
        VfioPci::open_under(self.root.path(), &format!("vfio:{CARD}")).unwrap_err().to_string()
    }
}

#[test]
fn open_of_no_device_says_how_to_list_them() {
    let error = FakeHost::new().device("0000:02:00.0").error();
    assert_eq!(error, "no PCI device 0000:01:00.0; `lspci -D -d 15b3:` lists the cards of this host");
}

#[test]
fn open_of_other_path_shows_an_example() {
    let host = FakeHost::new();
    let error = VfioPci::open_under(host.root.path(), "/dev/vfio/12").unwrap_err().to_string();
    assert!(error.contains("vfio:0000:01:00.0"), "{error}");
}

#[test]
fn open_without_iommu_says_how_to_enable_it() {
    let error = FakeHost::new().device(CARD).driver(CARD, "vfio-pci").error();
    assert!(error.contains("no IOMMU group") && error.contains("intel_iommu=on"), "{error}");
}

#[test]
fn open_in_no_iommu_mode_is_refused() {
    let host = FakeHost::new().device(CARD).group(CARD, Some("vfio-noiommu")).driver(CARD, "vfio-pci");
    let error = host.error();
    assert!(error.contains("no IOMMU group"), "{error}");
}

#[test]
fn open_of_device_of_another_driver_gives_the_commands_to_bind_it() {
    let error = FakeHost::new().device(CARD).group(CARD, None).driver(CARD, "mlx4_core").error();
    let wanted = "0000:01:00.0 is bound to mlx4_core, not to vfio-pci; run as root: modprobe vfio-pci; \
                  echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override; \
                  echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind; \
                  echo 0000:01:00.0 > /sys/bus/pci/drivers_probe";
    assert_eq!(error, wanted);
}

#[test]
fn open_of_device_without_driver_unbinds_nothing() {
    let error = FakeHost::new().device(CARD).group(CARD, None).error();
    assert!(error.starts_with("0000:01:00.0 is bound to no driver, not to vfio-pci"), "{error}");
    assert!(!error.contains("unbind"), "{error}");
}

#[test]
fn open_without_vfio_files_says_which_module() {
    let host = FakeHost::new().device(CARD).group(CARD, None).driver(CARD, "vfio-pci");
    let error = host.error();
    assert!(error.ends_with("dev/vfio/vfio does not exist; run as root: modprobe vfio-pci"), "{error}");
    let error = host.file("dev/vfio/vfio", "").error();
    assert!(error.ends_with("dev/vfio/12 does not exist; run as root: modprobe vfio-pci"), "{error}");
}

#[test]
fn check_of_usable_device_gives_its_group() {
    let host = FakeHost::new().device(CARD).group(CARD, None).driver(CARD, "vfio-pci");
    let host = host.file("dev/vfio/vfio", "").file("dev/vfio/12", "");
    assert_eq!(host.host().check().unwrap(), 12);
    assert_eq!(host.host().group_file(12), host.path("dev/vfio/12"));
}

#[test]
fn group_that_is_not_viable_names_the_devices_in_the_way() {
    let host = FakeHost::new();
    let host = ["0000:00:01.0", CARD, "0000:01:00.1", "0000:01:00.2", "0000:01:00.3"]
        .into_iter()
        .fold(host, |host, address| host.device(address).group(address, None));
    let host = host.driver("0000:00:01.0", "pcieport").driver(CARD, "vfio-pci");
    let host = host.driver("0000:01:00.3", "nvme").driver("0000:01:00.1", "e1000e");
    let error = host.host().not_viable(12).to_string();
    let wanted = "IOMMU group 12 of 0000:01:00.0 is not viable, since it also has 0000:01:00.1 (bound to \
                  e1000e), 0000:01:00.3 (bound to nvme); bind all of it to vfio-pci, or move the card to a \
                  slot with a group of its own";
    assert_eq!(error, wanted);
}

#[test]
fn numa_node_is_that_of_sysfs_if_it_is_one() {
    let host = FakeHost::new().device(CARD);
    assert_eq!(host.host().numa_node(), None);
    let node = format!("sys/bus/pci/devices/{CARD}/numa_node");
    assert_eq!(host.file(&node, "-1\n").host().numa_node(), None);
    let host = FakeHost::new().device(CARD).file(&node, "1\n");
    assert_eq!(host.host().numa_node(), Some(1));
}
