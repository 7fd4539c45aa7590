//! What sysfs says about a device, before VFIO is asked.

use std::fs;
use std::path::{Path, PathBuf};

use super::holder::holders_if;
use super::{Holder, OpenError, PciAddress};

/// Drivers that leave a device to VFIO's users, besides `*vfio_pci` and `*vfio-pci`: the kernel lets a group
/// be used while its other devices are bound to these.
const HARMLESS: [&str; 3] = ["pci-stub", "pcieport", "shpchp"];

/// The device that stands for no IOMMU at all.
const NO_IOMMU: &str = "vfio-noiommu";

/// A device as sysfs shows it.
#[derive(Debug)]
pub(super) struct Host {
    /// Where `sys` and `dev` are.
    root: PathBuf,
    address: PciAddress,
}

impl Host {
    pub(super) fn new(root: &Path, address: PciAddress) -> Self {
        Self { root: root.to_owned(), address }
    }

    /// The device's folder.
    pub(super) fn folder(&self) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(self.address.to_string())
    }

    /// Checks what can be known before VFIO is asked, and gives the number of the device's IOMMU group.
    pub(super) fn check(&self) -> Result<u32, OpenError> {
        let address = self.address;
        let folder = self.folder();
        if !folder.exists() {
            return Err(OpenError::NoDevice { address });
        }
        let group = link_name(&folder.join("iommu_group")).and_then(|name| name.parse().ok());
        let group: u32 = group.ok_or(OpenError::NoIommu { address })?;
        let name = fs::read_to_string(folder.join("iommu_group/name")).unwrap_or_default();
        if name.trim() == NO_IOMMU {
            return Err(OpenError::NoIommu { address });
        }
        let driver = link_name(&folder.join("driver"));
        if !driver.as_deref().is_some_and(is_vfio) {
            return Err(OpenError::NotBound { address, driver });
        }
        for file in ["vfio".to_owned(), group.to_string()] {
            let path = self.root.join("dev/vfio").join(file);
            if !path.exists() {
                return Err(OpenError::NoModule { path: path.display().to_string() });
            }
        }
        Ok(group)
    }

    /// Why a group isn't viable: its other devices that the host has drivers for.
    pub(super) fn not_viable(&self, group: u32) -> OpenError {
        let members = fs::read_dir(self.folder().join("iommu_group/devices"));
        let names = members.into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut others = names
            .filter_map(|name| {
                let driver = link_name(&self.folder().with_file_name(&name).join("driver"))?;
                let harmless = is_vfio(&driver) || HARMLESS.contains(&driver.as_str());
                (!harmless).then(|| format!("{} (bound to {driver})", name.to_string_lossy()))
            })
            .collect::<Vec<_>>();
        others.sort();
        let others = if others.is_empty() { "a device in use".into() } else { others.join(", ") };
        OpenError::NotViable { address: self.address, group, others }
    }

    /// The NUMA node that the device is near to, if the kernel knows.
    pub(super) fn numa_node(&self) -> Option<u32> {
        fs::read_to_string(self.folder().join("numa_node")).ok()?.trim().parse().ok()
    }

    /// Who keeps an IOMMU group in use that is busy.
    pub(super) fn holders(&self, group: u32) -> Vec<Holder> {
        holders_if(&self.root, group, || true)
    }

    /// The file of an IOMMU group.
    pub(super) fn group_file(&self, group: u32) -> PathBuf {
        self.root.join("dev/vfio").join(group.to_string())
    }
}

/// The last part of what a link points to.
fn link_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// Whether a driver is one of VFIO's for PCI.
fn is_vfio(driver: &str) -> bool {
    driver.ends_with("vfio-pci") || driver.ends_with("vfio_pci")
}
