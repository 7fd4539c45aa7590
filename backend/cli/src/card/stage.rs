//! A host made of files, for tests.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::sysfs::Sysfs;

/// The card's address.
pub(super) const CARD: &str = "0000:01:00.0";

/// A folder with `sys`, `proc` and `dev`.
pub(super) struct Stage {
    root: TempDir,
}

impl Stage {
    /// A host with nothing.
    pub(super) fn empty() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    /// A host with a card that is bound to a driver, in no IOMMU group.
    pub(super) fn without_iommu(driver: &str) -> Self {
        let folder = format!("sys/bus/pci/devices/{CARD}");
        Self::empty()
            .file(&format!("{folder}/vendor"), "0x15b3\n")
            .file(&format!("{folder}/device"), "0x1003\n")
            .bound(CARD, driver)
    }

    /// A host with a card in IOMMU group 12 that is bound to a driver.
    pub(super) fn card(driver: &str) -> Self {
        Self::without_iommu(driver)
            .file(&format!("sys/kernel/iommu_groups/12/devices/{CARD}/x"), "")
            .link(&format!("sys/bus/pci/devices/{CARD}/iommu_group"), "../../../../kernel/iommu_groups/12")
    }

    /// Binds a device, which need not be there, to a driver.
    pub(super) fn bound(self, address: &str, driver: &str) -> Self {
        self.file(&format!("sys/bus/pci/drivers/{driver}/bind"), "")
            .link(&format!("sys/bus/pci/devices/{address}/driver"), &format!("../../drivers/{driver}"))
    }

    pub(super) fn file(self, path: &str, content: &str) -> Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    pub(super) fn sysfs(&self) -> Sysfs {
        Sysfs::new(self.root.path(), format!("vfio:{CARD}").parse().unwrap())
    }
}
