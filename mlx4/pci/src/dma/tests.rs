//! Spaces, buffers and addresses, on an IOMMU that only keeps a list.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use super::iova::IovaAllocator;
use super::*;

const PAGE: u64 = 4096;

/// What is mapped, and whether unmapping works.
#[derive(Debug, Default)]
struct List {
    mapped: Mutex<BTreeMap<u64, (u64, DmaAccess)>>,
    stuck: Mutex<bool>,
    full: Mutex<bool>,
}

impl List {
    fn mapped(&self) -> Vec<(u64, u64)> {
        self.mapped.lock().unwrap().iter().map(|(iova, (len, _))| (*iova, *len)).collect()
    }
}

#[derive(Debug)]
struct Listed(Arc<List>);

impl Iommu for Listed {
    fn map(&self, iova: u64, memory: &HostMemory, access: DmaAccess) -> Result<(), DmaError> {
        if *self.0.full.lock().unwrap() {
            return Err(DmaError::NoMapping { maximum: 0 });
        }
        let old = self.0.mapped.lock().unwrap().insert(iova, (memory.len() as u64, access));
        assert_eq!(old, None, "{iova:#x} is mapped twice");
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), DmaError> {
        if *self.0.stuck.lock().unwrap() {
            return Err(DmaError::Unmap { iova, len, source: io::ErrorKind::Other.into() });
        }
        let old = self.0.mapped.lock().unwrap().remove(&iova);
        assert_eq!(old.map(|(len, _)| len), Some(len), "{iova:#x} is not mapped so");
        Ok(())
    }

    fn limits(&self) -> Result<Limits, DmaError> {
        Ok(Limits { left: 9, maximum: 10 })
    }
}

fn geometry() -> Geometry {
    Geometry { ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff_ffff], granule: PAGE }
}

fn space() -> (Arc<List>, DmaSpace) {
    let list = Arc::new(List::default());
    (Arc::clone(&list), DmaSpace::new(geometry(), Box::new(Listed(list))))
}

#[test]
fn allocated_buffer_is_zero_rounded_up_and_aligned() {
    let (list, space) = space();
    let buffer = space.allocate(5000, 1 << 18).unwrap();
    assert_eq!((buffer.len(), buffer.iova() % (1 << 18), buffer.access()), (8192, 0, DmaAccess::ReadWrite));
    let mut bytes = vec![1; 8192];
    buffer.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert_eq!(list.mapped(), [(buffer.iova(), 8192)]);
}

#[test]
fn released_buffer_is_unmapped_at_once() {
    let (list, space) = space();
    let buffer = space.allocate(1, 1).unwrap();
    assert_ne!(buffer.iova(), 0);
    buffer.release().unwrap();
    assert_eq!((list.mapped(), space.quarantined()), (vec![], 0));
}

#[test]
fn dropped_buffer_whose_address_nobody_asked_for_is_unmapped() {
    let (list, space) = space();
    drop(space.allocate(1, 1).unwrap());
    assert_eq!((list.mapped(), space.quarantined()), (vec![], 0));
}

#[test]
fn dropped_buffer_that_the_device_knows_waits_for_the_reset() {
    let (list, space) = space();
    let buffer = space.allocate(4096, 1).unwrap();
    let iova = buffer.iova();
    drop(buffer);
    assert_eq!((list.mapped(), space.quarantined()), (vec![(iova, PAGE)], PAGE));
    assert!(matches!(
        space.map_at(iova, HostMemory::allocate(4096).unwrap(), DmaAccess::Read),
        Err(DmaError::Overlaps { .. })
    ));
    space.was_reset().unwrap();
    assert_eq!((list.mapped(), space.quarantined()), (vec![], 0));
}

#[test]
fn buffer_that_outlives_a_reset_is_known_only_if_asked_again() {
    let (list, space) = space();
    let (known, forgotten) = (space.allocate(1, 1).unwrap(), space.allocate(1, 1).unwrap());
    let (first, second) = (known.iova(), forgotten.iova());
    space.was_reset().unwrap();
    assert_eq!(list.mapped(), [(first, PAGE), (second, PAGE)]);
    known.iova();
    drop((known, forgotten));
    assert_eq!((list.mapped(), space.quarantined()), (vec![(first, PAGE)], PAGE));
}

#[test]
fn mapping_that_the_host_keeps_is_tried_again_at_the_reset() {
    let (list, space) = space();
    let buffer = space.allocate(1, 1).unwrap();
    *list.stuck.lock().unwrap() = true;
    assert!(matches!(buffer.release(), Err(DmaError::Unmap { .. })));
    assert_eq!(space.quarantined(), PAGE);
    assert!(space.was_reset().is_err());
    *list.stuck.lock().unwrap() = false;
    space.was_reset().unwrap();
    assert_eq!((list.mapped(), space.quarantined()), (vec![], 0));
}

#[test]
fn address_of_a_refused_mapping_is_free_again() {
    let (list, space) = space();
    let memory = || HostMemory::allocate(4096).unwrap();
    *list.full.lock().unwrap() = true;
    let result = space.map_at(0x20_0000, memory(), DmaAccess::Read);
    assert!(matches!(result, Err(DmaError::NoMapping { .. })));
    *list.full.lock().unwrap() = false;
    let buffer = space.map_at(0x20_0000, memory(), DmaAccess::Read).unwrap();
    assert_eq!((buffer.iova(), buffer.access()), (0x20_0000, DmaAccess::Read));
}

#[test]
fn memory_is_mapped_only_in_whole_granules() {
    let (_, space) = space();
    let memory = HostMemory::allocate(8192).unwrap();
    let odd = memory.part(8, 4096).unwrap();
    assert!(matches!(space.map(odd, 1, DmaAccess::Read), Err(DmaError::Unaligned { .. })));
    let odd = memory.part(0, 4095).unwrap();
    assert!(matches!(space.map(odd, 1, DmaAccess::Read), Err(DmaError::Unaligned { .. })));
    let part = memory.part(4096, 4096).unwrap();
    assert!(matches!(
        space.map_at(0x20_0800, part.clone(), DmaAccess::Read),
        Err(DmaError::Unaligned { .. })
    ));
    assert!(space.map(part, 1, DmaAccess::Read).is_ok());
    for (len, align) in [(0, 1), (1, 0), (1, 3), (usize::MAX, 1)] {
        assert!(matches!(space.allocate(len, align), Err(DmaError::Size { .. })), "{len} {align}");
    }
}

#[test]
fn addresses_are_apart_and_avoid_what_is_reserved() {
    let mut iovas =
        IovaAllocator::new(Geometry { ranges: vec![0..=0x17_ffff, 0x20_0000..=0x2f_ffff], granule: PAGE });
    let mut taken: Vec<u64> = Vec::new();
    while let Ok(iova) = iovas.take_any(0x2_0000, 0x1_0000) {
        assert!(iova.is_multiple_of(0x1_0000) && iova >= 0x10_0000);
        assert!(iova + 0x1_ffff <= 0x17_ffff || iova >= 0x20_0000);
        assert!(taken.iter().all(|other| iova.abs_diff(*other) > 0x2_0000), "{iova:#x} touches {taken:#x?}");
        taken.push(iova);
    }
    // Three times 192 KiB fit into the first range from 1 MiB on, five into the second.
    assert_eq!(taken.len(), 3 + 5);
    iovas.give_back(taken[4]);
    assert_eq!(iovas.take_any(0x2_0000, 0x1_0000).unwrap(), taken[4]);
}

#[test]
fn address_given_back_is_used_again_last() {
    let mut iovas = IovaAllocator::new(geometry());
    let first = iovas.take_any(PAGE, PAGE).unwrap();
    iovas.give_back(first);
    assert!(iovas.take_any(PAGE, PAGE).unwrap() > first);
}

#[test]
fn addresses_outside_of_what_may_be_chosen_are_for_those_who_name_them() {
    let (list, space) = space();
    space.choose_within(vec![0x10_0000..=0x10_3fff, 0xfef0_0000..=0xfef0_0fff]);
    let buffers: Vec<_> = (0..3).map(|_| space.allocate(1, 1).unwrap()).collect();
    assert_eq!(list.mapped(), [(0x10_0000, PAGE), (0x10_2000, PAGE), (0xfef0_0000, PAGE)]);
    assert!(matches!(space.allocate(1, 1), Err(DmaError::NoAddress { .. })));
    let memory = HostMemory::allocate(4096).unwrap();
    let named = space.map_at(0x20_0000, memory, DmaAccess::ReadWrite).unwrap();
    assert_eq!(list.mapped().len(), 4);
    drop((named, buffers));
    assert_eq!(list.mapped(), []);
}

#[test]
fn certain_address_must_lie_in_one_free_range() {
    let mut iovas = IovaAllocator::new(geometry());
    iovas.take(0xfedf_f000, PAGE).unwrap();
    for (iova, len) in [
        (0xfedf_e000, 2 * PAGE + PAGE),
        (0xfee0_0000, PAGE),
        (0xfeef_f000, 2 * PAGE),
        (0x1_0000_0000_0000, PAGE),
        (u64::MAX - 0xfff, PAGE),
        (PAGE, 0),
        (PAGE, u64::MAX - 0xfff),
    ] {
        assert!(matches!(iovas.take(iova, len), Err(DmaError::Reserved { .. })), "{iova:#x}+{len:#x}");
    }
    let Err(DmaError::Overlaps { other, .. }) = iovas.take(0xfedf_e000, 2 * PAGE) else {
        panic!("mapped over another range")
    };
    assert_eq!(other, 0xfedf_f000);
    // Ranges of the caller's choice may touch.
    iovas.take(0xfedf_e000, PAGE).unwrap();
}

#[test]
fn copies_at_any_offset_and_length_are_exact() {
    let memory = HostMemory::allocate(4096).unwrap();
    let pattern = (0..64).collect::<Vec<u8>>();
    for offset in 0..16 {
        for len in 0..48 {
            memory.fill(0, 128, 0xee).unwrap();
            memory.write(offset, &pattern[..len]).unwrap();
            let mut all = [0; 128];
            memory.read(0, &mut all).unwrap();
            assert_eq!(all[offset..offset + len], pattern[..len]);
            assert!(all[..offset].iter().chain(&all[offset + len..]).all(|byte| *byte == 0xee));
            let mut back = vec![0; len];
            memory.read(offset, &mut back).unwrap();
            assert_eq!(back, pattern[..len]);
        }
    }
}

#[test]
fn words_are_big_endian_and_seen_through_the_file() {
    let memory = HostMemory::allocate(4096).unwrap();
    memory.store_be32(4, 0x0102_0304).unwrap();
    memory.store_be64(8, 0x1112_1314_1516_1718).unwrap();
    memory.store_u8(1, 0xaa).unwrap();
    let file = File::from(memory.fd().try_clone_to_owned().unwrap());
    let mut bytes = [0; 16];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[..8], [0, 0xaa, 0, 0, 1, 2, 3, 4]);
    assert_eq!(bytes[8..], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    assert_eq!(memory.load_be32(8).unwrap(), 0x1112_1314);
    assert_eq!((memory.load_be64(0).unwrap(), memory.load_u8(4).unwrap()), (0x00aa_0000_0102_0304, 1));
    assert!(file.set_len(0).is_err(), "the memory could be taken away");
}

#[test]
fn access_outside_or_unaligned_is_refused() {
    let memory = HostMemory::allocate(4096).unwrap().part(16, 32).unwrap();
    assert_eq!(memory.offset(), 16);
    assert!(memory.read(0, &mut [0; 32]).is_ok() && memory.write(32, &[]).is_ok());
    for (offset, len) in [(0, 33), (32, 1), (33, 0), (usize::MAX, 2)] {
        let mut bytes = vec![0; len];
        assert!(matches!(memory.read(offset, &mut bytes), Err(MemoryError::Outside { .. })));
        assert!(matches!(memory.write(offset, &bytes), Err(MemoryError::Outside { .. })));
        assert!(matches!(memory.fill(offset, len, 0), Err(MemoryError::Outside { .. })));
        assert!(memory.part(offset, len).is_err());
    }
    assert!(matches!(memory.load_be32(2), Err(MemoryError::Unaligned { .. })));
    assert!(matches!(memory.store_be64(4, 0), Err(MemoryError::Unaligned { .. })));
    assert!(matches!(memory.load_be64(32), Err(MemoryError::Outside { .. })));
    assert!(matches!(memory.load_u8(32), Err(MemoryError::Outside { .. })));
    assert!(matches!(memory.part(4, 8), Err(MemoryError::Unaligned { .. })));
}

#[test]
fn slice_of_a_slice_counts_from_its_own_beginning() {
    let (_, space) = space();
    let buffer = space.allocate(4096, 1).unwrap();
    let slice = buffer.slice(0x100, 0x100).unwrap().slice(0x40, 0x20).unwrap();
    assert_eq!((slice.iova(), slice.len()), (buffer.iova() + 0x140, 0x20));
    slice.write_obj(4, &[1u8, 2, 3, 4]).unwrap();
    assert_eq!(buffer.load_be32(0x144).unwrap(), 0x0102_0304);
    assert_eq!(slice.read_obj::<[u8; 4]>(4).unwrap(), [1, 2, 3, 4]);
    slice.store_be64(0x18, 7).unwrap();
    assert_eq!(slice.load_be64(0x18).unwrap(), 7);
    for offset in [0x1c, 0x20, usize::MAX - 3] {
        assert!(slice.load_be64(offset).is_err(), "{offset:#x}");
    }
    assert!(slice.slice(0x10, 0x11).is_err() && buffer.slice(0xfff, 2).is_err());
}
