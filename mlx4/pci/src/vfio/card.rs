//! An opened card: its descriptors, configuration space and regions.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioOps, VfioRegionInfoCap};

use super::bar::Bar;
use super::host::Host;
use super::mmio::Area;
use super::{OpenError, PciAddress, ioctl};
use crate::RegisterError;

/// What a range of configuration space is called in errors.
const CONFIG: &str = "configuration space";
/// Offset of the command register, and its bits for memory decoding and bus mastering.
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;

/// A device of VFIO's and its container. It is closed, which resets it, when the last part that needs it is
/// gone: BARs and mappings hold it.
pub(super) struct Card {
    pub(super) address: PciAddress,
    pub(super) host: Host,
    /// Number of the IOMMU group.
    pub(super) group: u32,
    device: Arc<VfioDevice>,
    container: Arc<VfioContainer>,
    /// Offset of configuration space in the device's file, and its size, in bytes.
    config: (u64, u64),
}

impl Card {
    pub(super) fn open(address: PciAddress, host: Host) -> Result<Self, OpenError> {
        let group = host.check()?;
        let explain = |error| explain(address, &host, group, error);
        let container = Arc::new(VfioContainer::new(None).map_err(explain)?);
        let ops: Arc<dyn VfioOps> = Arc::<VfioContainer>::clone(&container);
        let device = Arc::new(VfioDevice::new(&host.folder(), ops, false).map_err(explain)?);
        let config = ioctl::region_info(ioctl::device_fd(&device), VFIO_PCI_CONFIG_REGION_INDEX)
            .map_err(|source| OpenError::Kernel { address, what: "find its configuration space", source })?;
        Ok(Self { address, host, group, device, container, config: (config.offset, config.size) })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        ioctl::device_fd(&self.device)
    }

    pub(super) fn container_fd(&self) -> BorrowedFd<'_> {
        ioctl::container_fd(&self.container)
    }

    /// Number of MSI-X vectors.
    pub(super) fn vectors(&self) -> Result<u16, OpenError> {
        // vfio-ioctls leaves out what it can't read.
        let irq = self.device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX);
        let irq = irq.ok_or_else(|| self.failed("find its interrupts", io::ErrorKind::NotFound.into()))?;
        Ok(u16::try_from(irq.count).unwrap_or(u16::MAX))
    }

    /// Size of each BAR in bytes; 0 for one that isn't there.
    pub(super) fn bar_bytes(&self) -> Result<[u64; 6], OpenError> {
        let mut sizes = [0; 6];
        for (bar, size) in (VFIO_PCI_BAR0_REGION_INDEX..).zip(&mut sizes) {
            let info = ioctl::region_info(self.fd(), bar);
            *size = info.map_err(|source| self.failed("find its BARs", source))?.size;
        }
        Ok(sizes)
    }

    /// A step that the kernel refused.
    pub(super) fn failed(&self, what: &'static str, source: io::Error) -> OpenError {
        OpenError::Kernel { address: self.address, what, source }
    }

    /// Maps a BAR, as much of it as the kernel lets a program map.
    pub(super) fn map_bar(self: &Arc<Self>, bar: u8, name: &'static str) -> Result<Bar, OpenError> {
        let address = self.address;
        let failed = |source| self.failed("map a BAR", source);
        let info = ioctl::region_info(self.fd(), bar.into()).map_err(failed)?;
        if info.size == 0 || info.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Err(OpenError::NoBar { address, bar });
        }
        // vfio-ioctls leaves a region out that it can't read, and takes the next for it.
        if self.device.get_region_offset(bar.into()) != info.offset {
            return Err(failed(io::Error::other("its regions can't be read")));
        }
        let sparse = self.device.get_region_caps(bar.into()).into_iter().find_map(|cap| match cap {
            VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas),
            _ => None,
        });
        let ranges = sparse.map_or_else(
            || vec![(0, info.size)],
            |areas| areas.iter().map(|area| (area.offset, area.size)).collect(),
        );
        let areas = ranges
            .into_iter()
            .map(|(start, len)| Area::map(self.fd(), info.offset, start, len))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        Ok(Bar::new(name, info.size, areas, Arc::<Self>::clone(self)))
    }

    pub(super) fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        let len = data.len() as u64;
        let place = self.config_place(offset, len)?;
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(self.fd(), rest, place + done as u64) {
                Ok(0) => return Err(config_error(offset, len, io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => done += read,
                Err(error) => return Err(config_error(offset, len, error.into())),
            }
        }
        Ok(())
    }

    fn config_write(&self, offset: u64, data: &[u8]) -> Result<(), RegisterError> {
        let len = data.len() as u64;
        let place = self.config_place(offset, len)?;
        match rustix::io::pwrite(self.fd(), data, place) {
            Ok(written) if written == data.len() => Ok(()),
            Ok(_) => Err(config_error(offset, len, io::ErrorKind::WriteZero.into())),
            Err(error) => Err(config_error(offset, len, error.into())),
        }
    }

    /// Where a range of configuration space is in the device's file.
    fn config_place(&self, offset: u64, len: u64) -> Result<u64, RegisterError> {
        let (start, size) = self.config;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(RegisterError::Outside { what: CONFIG, offset, len, size });
        }
        Ok(start + offset)
    }

    /// Reads two bytes of configuration space.
    pub(super) fn config16(&self, offset: u64) -> Result<u16, RegisterError> {
        let mut bytes = [0; 2];
        self.config_read(offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Turns memory decoding on, and bus mastering on or off. The kernel restores BARs that a reset behind its
    /// back has wiped when it sees memory decoding turned on.
    pub(super) fn set_command(&self, bus_master: bool) -> Result<(), RegisterError> {
        let rest = self.config16(COMMAND)? & !COMMAND_MASTER;
        let master = if bus_master { COMMAND_MASTER } else { 0 };
        self.config_write(COMMAND, &(rest | COMMAND_MEMORY | master).to_le_bytes())
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // vfio-ioctls looks the group up in sysfs when it closes a device, and panics if it's gone.
        if std::fs::read_link(self.host.folder().join("iommu_group")).is_err() {
            log::warn!("{} has left the bus; its VFIO descriptors stay open", self.address);
            std::mem::forget(Arc::clone(&self.device));
        }
    }
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Card({})", self.address)
    }
}

fn config_error(offset: u64, len: u64, source: io::Error) -> RegisterError {
    RegisterError::Io { what: CONFIG, offset, len, source }
}

/// What an error of VFIO's means for whoever wants to use a card.
fn explain(address: PciAddress, host: &Host, group: u32, error: VfioError) -> OpenError {
    let open = |path: String, source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoModule { path },
        Some(libc::EACCES | libc::EPERM) => OpenError::Permission { path },
        Some(libc::EBUSY) => OpenError::InUse { path, holders: host.holders(group) },
        _ => OpenError::Kernel { address, what: "open its VFIO files", source },
    };
    match error {
        VfioError::OpenContainer(source) => open("/dev/vfio/vfio".into(), source),
        VfioError::OpenGroup(source, id) => open(format!("/dev/vfio/{id}"), source),
        VfioError::GroupViable => host.not_viable(group),
        VfioError::VfioExtension => OpenError::NoIommu { address },
        VfioError::ContainerSetIOMMU(error) => match error.errno() {
            libc::EPERM => OpenError::NoRemapping { address },
            libc::ENODEV => OpenError::NoIommu { address },
            _ => OpenError::Vfio { address, source: VfioError::ContainerSetIOMMU(error) },
        },
        source => OpenError::Vfio { address, source },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vmm_sys_util::errno;

    use super::super::Holder;
    use super::*;

    fn explained(error: VfioError) -> String {
        let address = "vfio:0000:01:00.0".parse().unwrap();
        let host = Host::new(Path::new("/nowhere"), address);
        explain(address, &host, 7, error).to_string()
    }

    fn os(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn errors_of_opening_say_what_to_do() {
        let error = explained(VfioError::OpenContainer(os(libc::ENOENT)));
        assert_eq!(error, "/dev/vfio/vfio does not exist; run as root: modprobe vfio-pci");
        let error = explained(VfioError::OpenGroup(os(libc::EACCES), "7".into()));
        assert!(error.starts_with("no permission to open /dev/vfio/7; run as root"), "{error}");
        let error = explained(VfioError::OpenGroup(os(libc::EBUSY), "7".into()));
        assert!(error.starts_with("/dev/vfio/7 is in use; stop the program"), "{error}");
        let holder = Holder { pid: 5, name: "other".into(), does: "has /dev/vfio/7 open".into() };
        let error = OpenError::InUse { path: "/dev/vfio/7".into(), holders: vec![holder] }.to_string();
        assert_eq!(error, "/dev/vfio/7 is in use: other (process 5) has /dev/vfio/7 open; end that first");
    }

    #[test]
    fn errors_of_the_iommu_say_what_to_do() {
        let error = explained(VfioError::ContainerSetIOMMU(errno::Error::new(libc::EPERM)));
        assert!(error.contains("allow_unsafe_interrupts=1"), "{error}");
        let error = explained(VfioError::ContainerSetIOMMU(errno::Error::new(libc::ENODEV)));
        assert!(error.contains("enable VT-d or AMD-Vi"), "{error}");
        let error = explained(VfioError::GroupViable);
        assert!(error.starts_with("IOMMU group 7 of 0000:01:00.0 is not viable"), "{error}");
    }
}
