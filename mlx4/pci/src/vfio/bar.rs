//! A BAR of a card: its mapped areas, and access that is checked.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::mmio::Area;
use crate::{Doorbell, DoorbellPlace, RegisterError, barrier};

/// The parts of a BAR that are mapped, in any order, and what must outlive them.
pub(super) struct Bar {
    name: &'static str,
    size: u64,
    // Areas go before the device that they belong to.
    areas: Vec<Area>,
    _device: Arc<dyn Any + Send + Sync>,
}

impl Bar {
    pub(super) fn new(
        name: &'static str,
        size: u64,
        areas: Vec<Area>,
        device: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { name, size, areas, _device: device }
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn read32(&self, offset: u64) -> Result<u32, RegisterError> {
        self.access(offset, 4, |area| area.read32(offset))
    }

    pub(super) fn write32(&self, offset: u64, value: u32) -> Result<(), RegisterError> {
        barrier::mmio_order();
        self.access(offset, 4, |area| area.write32(offset, value))
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), RegisterError> {
        barrier::mmio_order();
        self.access(offset, 8, |area| area.write64(offset, value))
    }

    /// Checks that a register can be accessed.
    fn check(&self, offset: u64, len: u64) -> Result<(), RegisterError> {
        if !offset.is_multiple_of(len) {
            return Err(RegisterError::Unaligned { offset, align: len });
        }
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(RegisterError::Outside { what: self.name, offset, len, size: self.size });
        }
        Ok(())
    }

    /// Accesses a register in the area that it lies in.
    fn access<T>(&self, offset: u64, len: u64, go: impl Fn(&Area) -> Option<T>) -> Result<T, RegisterError> {
        self.check(offset, len)?;
        self.areas.iter().find_map(go).ok_or(RegisterError::NotMapped { what: self.name, offset })
    }

    /// A doorbell in this BAR.
    pub(super) fn doorbell(self: &Arc<Self>, place: DoorbellPlace) -> Result<MappedDoorbell, RegisterError> {
        let len = if place.wide { 8 } else { 4 };
        self.check(place.offset, len)?;
        let mapped = self.areas.iter().any(|area| area.covers(place.offset, len));
        if !mapped {
            return Err(RegisterError::NotMapped { what: self.name, offset: place.offset });
        }
        Ok(MappedDoorbell { bar: Arc::clone(self), place })
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:#x} bytes)", self.name, self.size)
    }
}

/// A doorbell that is rung by one store.
#[derive(Debug)]
pub(super) struct MappedDoorbell {
    bar: Arc<Bar>,
    place: DoorbellPlace,
}

impl Doorbell for MappedDoorbell {
    fn ring(&self, value: u64) {
        let DoorbellPlace { offset, wide } = self.place;
        let result = if wide {
            self.bar.write64(offset, value)
        } else {
            // The upper half is not part of the register.
            let [_, _, _, _, a, b, c, d] = value.to_be_bytes();
            self.bar.write32(offset, u32::from_be_bytes([a, b, c, d]))
        };
        // The place was checked when the doorbell was made.
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A file stands for a BAR of 16 KiB whose second page can't be mapped.
    fn bar() -> (File, Arc<Bar>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let map = |start, len| Area::map(file.as_fd(), 0, start, len).unwrap();
        let areas = vec![map(0, 0x1000), map(0x2000, 0x2000)];
        (file, Arc::new(Bar::new("BAR2", 0x4000, areas, Arc::new(()))))
    }

    #[test]
    fn registers_of_every_area_are_reached() {
        let (file, bar) = bar();
        for offset in [0, 0xffc, 0x2000, 0x3ffc] {
            bar.write32(offset, 0xfeed_0000 | u32::try_from(offset).unwrap()).unwrap();
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, offset).unwrap();
            assert_eq!(u32::from_be_bytes(bytes), bar.read32(offset).unwrap());
            assert_eq!(bytes[..2], [0xfe, 0xed]);
        }
    }

    #[test]
    fn access_that_cannot_be_is_refused_with_its_reason() {
        let (_file, bar) = bar();
        let message = |offset| bar.read32(offset).unwrap_err().to_string();
        assert_eq!(message(0x4000), "4 bytes at 0x4000 are outside BAR2 of 0x4000 bytes");
        assert_eq!(message(6), "register offset 0x6 is not a multiple of 4");
        assert!(message(0x1000).starts_with("0x1000 lies in a part of BAR2"));
    }

    #[test]
    fn doorbell_stores_its_width_big_endian() {
        let (file, bar) = bar();
        let place = |offset, wide| DoorbellPlace { offset, wide };
        bar.doorbell(place(0x2014, false)).unwrap().ring(0xdead_beef_0102_0304);
        bar.doorbell(place(0x2020, true)).unwrap().ring(0x1112_1314_1516_1718);
        let mut bytes = [0; 0x28];
        file.read_exact_at(&mut bytes, 0x2000).unwrap();
        assert_eq!(bytes[0x10..0x1c], [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(bytes[0x20..], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    }

    #[test]
    fn doorbell_that_is_not_mapped_is_refused() {
        let (_file, bar) = bar();
        for (offset, wide) in [(0x1014, false), (0x1020, true), (0x4014, false), (0x2014, true)] {
            assert!(bar.doorbell(DoorbellPlace { offset, wide }).is_err(), "{offset:#x}");
        }
    }
}
