//! The calls to VFIO that `vfio-ioctls` lacks, or whose errors it hides, on its file descriptors.
//!
//! Unsafe code: ioctl, which reads and writes what its last argument points to. Every argument here is a
//! structure of the kernel's, or an array of words laid out like one, whose size stands in its first word.
#![expect(unsafe_code, reason = "ioctl")]

use std::ffi::{c_int, c_ulong};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_TYPE,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_region_info,
};
use vfio_ioctls::{VfioContainer, VfioDevice};
use zerocopy::IntoBytes;

use super::PciAddress;
use crate::{DmaAccess, HostMemory};

const DEVICE_GET_REGION_INFO: c_ulong = request(8);
const DEVICE_SET_IRQS: c_ulong = request(10);
const DEVICE_RESET: c_ulong = request(11);
const DEVICE_GET_PCI_HOT_RESET_INFO: c_ulong = request(12);
const DEVICE_PCI_HOT_RESET: c_ulong = request(13);
const IOMMU_GET_INFO: c_ulong = request(12);
const IOMMU_MAP_DMA: c_ulong = request(13);
const IOMMU_UNMAP_DMA: c_ulong = request(14);

/// Words of the headers of structures with a variable end.
const IOMMU_INFO_WORDS: usize = 3;
const HOT_RESET_INFO_WORDS: usize = 3;

/// Most bytes of a variable structure that are believed: no host has that many ranges, or devices on a bus.
const BELIEVABLE: usize = 1 << 20;

/// Number of a VFIO request, `_IO(VFIO_TYPE, VFIO_BASE + nr)`.
const fn request(nr: u32) -> c_ulong {
    (VFIO_TYPE as c_ulong) << 8 | (VFIO_BASE + nr) as c_ulong
}

/// Descriptor of a device, as long as it's open.
pub(super) fn device_fd(device: &VfioDevice) -> BorrowedFd<'_> {
    // SAFETY: the device owns the descriptor and stays open while it is borrowed.
    unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }
}

/// Descriptor of a container, as long as it's open.
pub(super) fn container_fd(container: &VfioContainer) -> BorrowedFd<'_> {
    // SAFETY: the container owns the descriptor and stays open while it is borrowed.
    unsafe { BorrowedFd::borrow_raw(container.as_raw_fd()) }
}

/// A region of a device: BAR or configuration space.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_region_info> {
    let mut info = vfio_region_info { argsz: bytes_of::<vfio_region_info>(), index, ..Default::default() };
    // SAFETY: the argument is a whole structure of the request's kind.
    unsafe { call(device, DEVICE_GET_REGION_INFO, &raw mut info) }?;
    Ok(info)
}

/// What the IOMMU can do, with all capabilities.
pub(super) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut words = vec![0u64; IOMMU_INFO_WORDS];
    loop {
        let room = size_of_val(&words[..]);
        let argsz = u32::try_from(room).map_err(io::Error::other)?;
        words.as_mut_bytes()[..4].copy_from_slice(&argsz.to_ne_bytes());
        // SAFETY: the argument is as long as its first word says, and aligned to 8.
        unsafe { call(container, IOMMU_GET_INFO, words.as_mut_ptr()) }?;
        let mut needed = [0; 4];
        needed.copy_from_slice(&words.as_bytes()[..4]);
        let needed = usize::try_from(u32::from_ne_bytes(needed)).map_err(io::Error::other)?;
        if needed <= room {
            return Ok(words.as_bytes().to_vec());
        }
        if needed > BELIEVABLE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        words = vec![0; needed.div_ceil(8)];
    }
}

/// Maps memory for the container's devices. The kernel pins it, so that it can't become other memory.
pub(super) fn map_dma(
    container: BorrowedFd<'_>,
    iova: u64,
    memory: &HostMemory,
    access: DmaAccess,
) -> io::Result<()> {
    let write = if access == DmaAccess::ReadWrite { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
    let mut map = vfio_iommu_type1_dma_map {
        argsz: bytes_of::<vfio_iommu_type1_dma_map>(),
        flags: VFIO_DMA_MAP_FLAG_READ | write,
        vaddr: memory.address().addr().get() as u64,
        iova,
        size: memory.len() as u64,
    };
    // SAFETY: the argument is a whole structure of the request's kind. What the device will do to the memory
    // is what its `HostMemory` allows others to do.
    unsafe { call(container, IOMMU_MAP_DMA, &raw mut map) }.map(|_| ())
}

/// Unmaps a range, and tells how many bytes of it had been mapped.
pub(super) fn unmap_dma(container: BorrowedFd<'_>, iova: u64, size: u64) -> io::Result<u64> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: bytes_of::<vfio_iommu_type1_dma_unmap>(),
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the argument is a whole structure of the request's kind.
    unsafe { call(container, IOMMU_UNMAP_DMA, &raw mut unmap) }?;
    Ok(unmap.size)
}

/// Resets a device by what the kernel has for it.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { call(device, DEVICE_RESET, std::ptr::null_mut::<u32>()) }.map(|_| ())
}

/// The devices that a reset of the bus would reset.
pub(super) fn hot_reset_devices(device: BorrowedFd<'_>) -> io::Result<Vec<PciAddress>> {
    let mut words = vec![0u32; HOT_RESET_INFO_WORDS];
    loop {
        words[0] = u32::try_from(size_of_val(&words[..])).map_err(io::Error::other)?;
        // SAFETY: the argument is as long as its first word says.
        let result = unsafe { call(device, DEVICE_GET_PCI_HOT_RESET_INFO, words.as_mut_ptr()) };
        let count = usize::try_from(words[2]).map_err(io::Error::other)?;
        let needed = HOT_RESET_INFO_WORDS + 2 * count;
        match result {
            Ok(_) => {
                let devices = words.get(HOT_RESET_INFO_WORDS..needed).ok_or(io::ErrorKind::InvalidData)?;
                return Ok(devices.chunks_exact(2).map(|device| dependent(device[1])).collect());
            }
            Err(error) if error.raw_os_error() != Some(libc::ENOSPC) => return Err(error),
            Err(_) if needed <= words.len() || needed > BELIEVABLE / 4 => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Err(_) => words = vec![0; needed],
        }
    }
}

/// Second word of `vfio_pci_dependent_device`: segment, bus, device and function.
fn dependent(word: u32) -> PciAddress {
    let [a, b, bus, devfn] = word.to_ne_bytes();
    PciAddress::new(u16::from_ne_bytes([a, b]).into(), bus, devfn)
}

/// Resets the bus of a device, all of whose devices are in this group.
pub(super) fn hot_reset(device: BorrowedFd<'_>, group: RawFd) -> io::Result<()> {
    let group = u32::try_from(group).map_err(io::Error::other)?;
    let mut words = [16, 0, 1, group];
    // SAFETY: the argument is as long as its first word says; its fourth word is the one descriptor that the
    // third announces.
    unsafe { call(device, DEVICE_PCI_HOT_RESET, words.as_mut_ptr()) }.map(|_| ())
}

/// Connects the MSI-X vectors from 0 to eventfds, all at once; with none, disconnects all.
pub(super) fn set_msix(device: BorrowedFd<'_>, fds: &[RawFd]) -> io::Result<()> {
    let data = if fds.is_empty() { VFIO_IRQ_SET_DATA_NONE } else { VFIO_IRQ_SET_DATA_EVENTFD };
    let count = u32::try_from(fds.len()).map_err(io::Error::other)?;
    let mut words = vec![0, data | VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_PCI_MSIX_IRQ_INDEX, 0, count];
    for fd in fds {
        words.push(u32::try_from(*fd).map_err(io::Error::other)?);
    }
    words[0] = u32::try_from(size_of_val(&words[..])).map_err(io::Error::other)?;
    // SAFETY: the argument is as long as its first word says, and has as many descriptors as its fifth.
    match unsafe { call(device, DEVICE_SET_IRQS, words.as_mut_ptr()) }? {
        0 => Ok(()),
        // Nothing was connected then.
        available => Err(io::Error::other(format!("the host has {available} vectors left"))),
    }
}

fn bytes_of<T>() -> u32 {
    // Structures of the kernel's have a few dozen bytes.
    u32::try_from(size_of::<T>()).unwrap_or(0)
}

/// # Safety
///
/// `argument` points to a structure of the request's kind, writable, as long as the structure says itself.
unsafe fn call<T>(fd: BorrowedFd<'_>, request: c_ulong, argument: *mut T) -> io::Result<c_int> {
    // SAFETY: the caller vouches for the argument; the descriptor is open.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_kernel() {
        assert_eq!(DEVICE_GET_REGION_INFO, 0x3b6c);
        assert_eq!(IOMMU_MAP_DMA, 0x3b71);
    }

    #[test]
    fn dependent_device_has_segment_bus_device_and_function() {
        let mut word = [0; 4];
        word[..2].copy_from_slice(&1u16.to_ne_bytes());
        word[2..].copy_from_slice(&[0x65, 0x1f << 3 | 2]);
        assert_eq!(dependent(u32::from_ne_bytes(word)).to_string(), "0001:65:1f.2");
    }
}
