//! The card's addresses, translated by the host's IOMMU.

use std::io;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::card::Card;
use super::info::IommuInfo;
use super::ioctl;
use crate::{DmaAccess, DmaError, DmaSpace, HostMemory, Iommu, Limits};

/// Mappings that a container takes by default, for kernels that don't tell how many are left.
const DEFAULT_MAXIMUM: u64 = 65_535;

/// The space of a card that nothing has been mapped for yet.
pub(super) fn space(card: &Arc<Card>) -> io::Result<DmaSpace> {
    let info = IommuInfo::parse(&ioctl::iommu_info(card.container_fd())?);
    let maximum = info.left.unwrap_or(DEFAULT_MAXIMUM);
    Ok(DmaSpace::new(info.geometry, Box::new(VfioIommu { card: Arc::clone(card), maximum })))
}

#[derive(Debug)]
struct VfioIommu {
    card: Arc<Card>,
    maximum: u64,
}

impl Iommu for VfioIommu {
    fn map(&self, iova: u64, memory: &HostMemory, access: DmaAccess) -> Result<(), DmaError> {
        let result = ioctl::map_dma(self.card.container_fd(), iova, memory, access);
        result.map_err(|error| map_error(iova, memory.len() as u64, error, self.maximum, memlock()))
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), DmaError> {
        let failed = |source| DmaError::Unmap { iova, len, source };
        let unmapped = ioctl::unmap_dma(self.card.container_fd(), iova, len).map_err(failed)?;
        if unmapped == len {
            return Ok(());
        }
        Err(failed(io::Error::other(format!("{unmapped:#x} bytes of it were mapped"))))
    }

    fn limits(&self) -> Result<Limits, DmaError> {
        let info = ioctl::iommu_info(self.card.container_fd()).map_err(DmaError::Limits)?;
        let left = IommuInfo::parse(&info).left;
        let unknown = DmaError::Limits(io::ErrorKind::Unsupported.into());
        Ok(Limits { left: left.ok_or(unknown)?, maximum: self.maximum })
    }
}

/// Bytes that this process may lock; None if there is no limit.
fn memlock() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// What the kernel's refusal to map means.
fn map_error(iova: u64, len: u64, error: io::Error, maximum: u64, memlock: Option<u64>) -> DmaError {
    match (error.raw_os_error(), memlock) {
        (Some(libc::ENOMEM), Some(limit)) => DmaError::Memlock { len, limit },
        (Some(libc::ENOSPC), _) => DmaError::NoMapping { maximum },
        _ => DmaError::Map { iova, len, source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: i32, memlock: Option<u64>) -> String {
        map_error(0x10_0000, 0x4000, io::Error::from_raw_os_error(code), 65_535, memlock).to_string()
    }

    #[test]
    fn refusal_by_a_limit_names_the_limit_and_how_to_raise_it() {
        let error = refused(libc::ENOMEM, Some(0x80_0000));
        assert!(error.contains("8388608") && error.contains("LimitMEMLOCK=infinity"), "{error}");
        let error = refused(libc::ENOSPC, None);
        assert!(error.contains("65535") && error.contains("dma_entry_limit"), "{error}");
    }

    #[test]
    fn other_refusal_is_told_as_it_is() {
        assert_eq!(refused(libc::ENOMEM, None), "can't map 0x4000 bytes at 0x100000");
        assert_eq!(refused(libc::EEXIST, Some(1)), "can't map 0x4000 bytes at 0x100000");
    }
}
