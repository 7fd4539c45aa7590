//! Doorbell areas in memory of the device's own, which the guest has mapped: one region for each guest, so that no
//! page of it is ever another's.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use virtio_rdma::doorbell::{AREA_ALIGN, MAX_SLOTS, area_bytes, header};
use vm_memory::{FileOffset, MmapRegion};
use zerocopy::IntoBytes;

use crate::mapping::Mapping;

/// Most areas of a region. A guest that may have more UARs has those in its own memory.
const MAX_AREAS: u32 = 1024;

/// How the guest gets to the region: the transport's part.
pub(crate) trait Exposure: std::fmt::Debug + Send + Sync {
    /// Whether the guest's VMM knows of regions; settled before a driver sees the device.
    fn is_known(&self) -> bool;

    /// Whether the guest has the region mapped.
    fn is_mapped(&self) -> bool;

    /// Has the region mapped into the guest. Waits for that, though not for ever; no lock may be held.
    fn map(&self);
}

/// The memory of a region: a memfd that nobody can shorten.
#[derive(Debug)]
pub(crate) struct RegionMemory {
    file: File,
    bytes: u64,
    stride: u32,
    areas: u32,
    mapping: Arc<Mapping>,
}

impl RegionMemory {
    /// Room for `uars` areas of `slots` slots. Its size is a power of two, as that of a BAR has to be.
    pub(crate) fn new(uars: u32, slots: u32) -> io::Result<Self> {
        let area = area_bytes(slots.min(MAX_SLOTS)).ok_or(io::ErrorKind::InvalidInput)?;
        #[expect(clippy::cast_possible_truncation, reason = "4096")]
        let stride = area.next_multiple_of(AREA_ALIGN as u32);
        let areas = uars.min(MAX_AREAS);
        let bytes = (u64::from(stride) * u64::from(areas)).next_power_of_two();
        let file =
            File::from(memfd_create("paraverbs-doorbells", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), length);
        let mapping = Mapping::new(Arc::new(region.map_err(io::Error::other)?), &file)?;
        Ok(Self { file, bytes, stride, areas, mapping: Arc::new(mapping) })
    }

    /// The memfd, all of which is the region.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The areas of a guest's region.
#[derive(Debug)]
pub(crate) struct Direct {
    memory: Arc<RegionMemory>,
    exposure: Arc<dyn Exposure>,
    taken: Mutex<Vec<bool>>,
}

/// An area of a region, which is taken.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) mapping: Arc<Mapping>,
    /// Where in the region it starts, in bytes.
    pub(crate) offset: u32,
}

impl Direct {
    pub(crate) fn new(memory: Arc<RegionMemory>, exposure: Arc<dyn Exposure>) -> Arc<Self> {
        let taken = Mutex::new((0..memory.areas).map(|_| false).collect());
        Arc::new(Self { memory, exposure, taken })
    }

    pub(crate) fn exposure(&self) -> &dyn Exposure {
        &*self.exposure
    }

    fn taken(&self) -> MutexGuard<'_, Vec<bool>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an area that is free and writes the header of one of `slots` slots; none if the guest hasn't mapped the
    /// region, or all are taken.
    pub(crate) fn take(&self, slots: u32) -> Option<Place> {
        if !self.exposure.is_mapped() || area_bytes(slots)? > self.memory.stride {
            return None;
        }
        let mut taken = self.taken();
        let area = taken.iter().position(|taken| !taken)?;
        let offset = self.memory.stride.checked_mul(u32::try_from(area).ok()?)?;
        // What the last one left there goes with it: the header has the summary words.
        if !self.memory.mapping.write(offset.into(), header(slots).as_bytes()) {
            return None;
        }
        *taken.get_mut(area)? = true;
        Some(Place { mapping: Arc::clone(&self.memory.mapping), offset })
    }

    /// An area is read no more.
    pub(crate) fn give_back(&self, offset: u32) {
        let area = usize::try_from(offset / self.memory.stride).unwrap_or(usize::MAX);
        if let Some(taken) = self.taken().get_mut(area) {
            *taken = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Mapped(bool);

    impl Exposure for Mapped {
        fn is_known(&self) -> bool {
            true
        }

        fn is_mapped(&self) -> bool {
            self.0
        }

        fn map(&self) {}
    }

    #[test]
    fn region_is_a_power_of_two_that_can_not_change_its_size() {
        let memory = RegionMemory::new(64, 4096).unwrap();
        assert_eq!(memory.bytes(), 4 << 20);
        assert!(memory.file().set_len(0).is_err());
        assert!(memory.file().set_len(8 << 20).is_err());
        assert_eq!(RegionMemory::new(u32::MAX, 4096).unwrap().bytes(), 64 << 20);
        assert!(RegionMemory::new(1, 0).is_err());
    }

    #[test]
    fn areas_are_apart_and_come_back_with_a_new_header() {
        let direct = Direct::new(Arc::new(RegionMemory::new(2, 130).unwrap()), Arc::new(Mapped(true)));
        let [first, second] = [130, 130].map(|slots| direct.take(slots).unwrap());
        assert_eq!((first.offset, second.offset), (0, 0x2000));
        assert!(direct.take(1).is_none());
        let mapping = Arc::clone(&first.mapping);
        assert!(mapping.write(0x2000, &[0xff; 4096]));
        direct.give_back(second.offset);
        assert_eq!(direct.take(7).unwrap().offset, 0x2000);
        let mut bytes = [1; 4096];
        assert!(mapping.read(0x2000, &mut bytes));
        assert_eq!(bytes, header(7).as_bytes());
        direct.give_back(0);
        assert!(direct.take(2000).is_none(), "more slots than an area has room for");
    }

    #[test]
    fn region_that_is_not_mapped_has_no_areas() {
        let direct = Direct::new(Arc::new(RegionMemory::new(2, 130).unwrap()), Arc::new(Mapped(false)));
        assert!(direct.take(1).is_none());
    }
}
