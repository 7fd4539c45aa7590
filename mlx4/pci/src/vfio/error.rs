//! Why a card can't be opened, and what to do about it.

use std::io;

use vfio_ioctls::VfioError;

use super::{Holder, PciAddress};

/// Why a card can't be opened. Each message is one line: what, which, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a path of this kind.
    #[error(
        "{path:?} is no path of a VFIO device; write it as vfio:0000:01:00.0 (`lspci -D` lists addresses)"
    )]
    Path {
        /// The path.
        path: String,
    },
    /// The barriers don't reach devices.
    #[error("cards can be used on x86-64 hosts only; use the model on this one")]
    Processor,
    /// The bus has no such function.
    #[error("no PCI device {address}; `lspci -D -d 15b3:` lists the cards of this host")]
    NoDevice {
        /// Where it should be.
        address: PciAddress,
    },
    /// Nothing translates the device's addresses.
    #[error(
        "{address} is in no IOMMU group; enable VT-d or AMD-Vi in the firmware setup, and on Intel boot with \
         intel_iommu=on"
    )]
    NoIommu {
        /// The device.
        address: PciAddress,
    },
    /// Another driver has the device, or none.
    #[error(
        "{address} is bound to {}, not to vfio-pci; run as root: {}",
        .driver.as_deref().unwrap_or("no driver"),
        bind(.address, .driver)
    )]
    NotBound {
        /// The device.
        address: PciAddress,
        /// Its driver.
        driver: Option<String>,
    },
    /// Other devices that can't be told apart from this one have drivers of the host.
    #[error(
        "IOMMU group {group} of {address} is not viable, since it also has {others}; bind all of it to \
         vfio-pci, or move the card to a slot with a group of its own"
    )]
    NotViable {
        /// The device.
        address: PciAddress,
        /// Number of the group.
        group: u32,
        /// The other devices and their drivers.
        others: String,
    },
    /// VFIO isn't there.
    #[error("{path} does not exist; run as root: modprobe vfio-pci")]
    NoModule {
        /// The device file.
        path: String,
    },
    /// The user may not.
    #[error("no permission to open {path}; run as root, or give it to the user: chown USER {path}")]
    Permission {
        /// The device file.
        path: String,
    },
    /// Another program has it.
    #[error("{path} is in use{}", in_use(.path, .holders))]
    InUse {
        /// The device file.
        path: String,
        /// Who has the card, as far as that shows.
        holders: Vec<Holder>,
    },
    /// The platform can't keep a device from forging interrupts.
    #[error(
        "{address} has no interrupt remapping; enable it in the firmware setup, or, if you trust the card, \
         load vfio_iommu_type1 with allow_unsafe_interrupts=1"
    )]
    NoRemapping {
        /// The device.
        address: PciAddress,
    },
    /// The device has no registers or doorbells that a program may map.
    #[error("BAR{bar} of {address} can't be mapped; is it an mlx4 card, with memory decoding on?")]
    NoBar {
        /// The device.
        address: PciAddress,
        /// Number of the BAR.
        bar: u8,
    },
    /// The kernel refuses one of the steps.
    #[error("{address}: can't {what}; the kernel's log (dmesg) may say why")]
    Kernel {
        /// The device.
        address: PciAddress,
        /// The step.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// VFIO refuses one of the steps.
    #[error("{address}: VFIO refuses the device; the kernel's log (dmesg) may say why")]
    Vfio {
        /// The device.
        address: PciAddress,
        /// The step, and what the kernel said.
        #[source]
        source: VfioError,
    },
}

/// Who has the card, and what to do.
fn in_use(path: &str, holders: &[Holder]) -> String {
    if holders.is_empty() {
        return format!("; stop the program that has the card (as root `fuser -v {path}` names it)");
    }
    let holders: Vec<_> = holders.iter().map(ToString::to_string).collect();
    format!(": {}; end that first", holders.join("; "))
}

/// The commands that bind a device to vfio-pci on any Linux.
fn bind(address: &PciAddress, driver: &Option<String>) -> String {
    let unbind = driver.as_ref().map(|_| format!("echo {address} > {}/driver/unbind; ", in_sysfs(address)));
    format!(
        "modprobe vfio-pci; echo vfio-pci > {}/driver_override; {}echo {address} > /sys/bus/pci/drivers_probe",
        in_sysfs(address),
        unbind.unwrap_or_default(),
    )
}

fn in_sysfs(address: &PciAddress) -> String {
    format!("/sys/bus/pci/devices/{address}")
}
