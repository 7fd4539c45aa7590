//! Mapping with hostile parameters, access, and unmapping under the feet of readers.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;

const PAGE: u64 = PAGE_SIZE;
/// An address that is neither small nor one of this process.
const BASE: u64 = 0x40_0000_0000;

fn file(pages: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE).unwrap();
    file
}

fn enabled() -> DmaSpace {
    let space = DmaSpace::new();
    space.set_enabled(true);
    space
}

/// How many mappings of a file this process has.
fn mappings_of(file: &File) -> usize {
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
}

fn cause<T: std::fmt::Debug>(result: Result<T, DmaFault>) -> FaultCause {
    result.unwrap_err().cause
}

#[test]
fn map_fd_with_impossible_range_is_refused() {
    let space = enabled();
    let memory = file(4);
    let map = |iova, len, offset| space.map_fd(iova, len, &memory, offset, true);
    assert!(matches!(map(BASE, 0, 0), Err(DmaError::Empty { iova: BASE })));
    for (iova, len, offset) in [(BASE + 1, PAGE, 0), (BASE, PAGE - 1, 0), (BASE, PAGE, 8)] {
        assert!(matches!(map(iova, len, offset), Err(DmaError::Unaligned { .. })), "{iova:#x} {len:#x}");
    }
    assert!(matches!(map(u64::MAX - PAGE + 1, 2 * PAGE, 0), Err(DmaError::Wraps { .. })));
    assert!(matches!(map(BASE, 5 * PAGE, 0), Err(DmaError::OutsideMemory { size, .. }) if size == 4 * PAGE));
    assert!(matches!(map(BASE, PAGE, 4 * PAGE), Err(DmaError::OutsideMemory { .. })));
    assert!(matches!(map(BASE, 2 * PAGE, u64::MAX - PAGE + 1), Err(DmaError::OutsideMemory { .. })));
    let folder = File::open("/").unwrap();
    assert!(matches!(space.map_fd(BASE, PAGE, &folder, 0, false), Err(DmaError::NotAFile)));
    assert_eq!(space.mappings(), 0);
    assert_eq!(mappings_of(&memory), 0);
}

#[test]
fn files_take_a_bounded_part_of_the_address_space() {
    let space = enabled();
    let tib = |count: u64| file((count << 40) / PAGE);
    let map = |page, file: &File| space.map_fd(BASE + page * PAGE, PAGE, file, 0, true);
    let (one, three, more) = (tib(1), tib(3), file(1));
    assert!(matches!(map(0, &tib(5)), Err(DmaError::TooLarge { mapped: 0, .. })));
    map(0, &one).unwrap();
    map(1, &three).unwrap();
    assert!(matches!(map(2, &more), Err(DmaError::TooLarge { size: PAGE, mapped: MAX_FILE_BYTES })));
    map(2, &one).unwrap();
    // What is unmapped makes room again.
    space.unmap(BASE + PAGE, PAGE).unwrap();
    map(1, &more).unwrap();
}

#[test]
fn map_fd_of_read_only_descriptor_for_writing_is_refused() {
    let space = enabled();
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(PAGE).unwrap();
    let reader = File::open(path.path()).unwrap();
    assert!(matches!(space.map_fd(BASE, PAGE, &reader, 0, true), Err(DmaError::Mmap { .. })));
    space.map_fd(BASE, PAGE, &reader, 0, false).unwrap();
    assert_eq!(space.snapshot().load_u32(BASE, Ordering::Relaxed), Ok(0));
}

#[test]
fn map_over_another_mapping_is_refused_and_named() {
    let space = enabled();
    let memory = file(8);
    space.map_fd(BASE + 2 * PAGE, 2 * PAGE, &memory, 0, true).unwrap();
    for (first, pages) in [(0, 3), (1, 2), (2, 2), (2, 1), (3, 1), (3, 4), (0, 8)] {
        let error = space.map_fd(BASE + first * PAGE, pages * PAGE, &memory, 0, true).unwrap_err();
        assert!(
            matches!(error, DmaError::Overlaps { other_iova, other_len, .. }
                if other_iova == BASE + 2 * PAGE && other_len == 2 * PAGE),
            "{error}"
        );
    }
    space.map_fd(BASE, 2 * PAGE, &memory, 0, true).unwrap();
    space.map_fd(BASE + 4 * PAGE, PAGE, &memory, 0, true).unwrap();
    assert_eq!((space.mappings(), space.mapped_bytes()), (3, 5 * PAGE));
}

#[test]
fn last_page_of_the_address_space_can_be_mapped() {
    let space = enabled();
    let last = u64::MAX - PAGE + 1;
    space.map_fd(last, PAGE, file(1), 0, true).unwrap();
    let view = space.snapshot();
    view.write(u64::MAX - 3, &[1, 2, 3, 4]).unwrap();
    assert_eq!(cause(view.write(u64::MAX - 3, &[0; 5])), FaultCause::Unmapped);
    drop(view);
    assert_eq!(space.unmap(last, PAGE).unwrap(), PAGE);
}

#[test]
fn access_over_adjacent_mappings_goes_piece_by_piece() {
    let space = enabled();
    let memory = file(3);
    // In memory the second page comes first.
    space.map_fd(BASE, PAGE, &memory, PAGE, true).unwrap();
    space.map_fd(BASE + PAGE, PAGE, &memory, 0, true).unwrap();
    let view = space.snapshot();
    let edge = BASE + PAGE - 2;
    view.write(edge, &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 4];
    view.read(edge, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    assert_eq!(view.read_obj::<[u8; 2]>(BASE + PAGE), Ok([3, 4]));
    let mut lengths = Vec::new();
    view.for_each(edge, 4, Access::Read, |piece| lengths.push(piece.len())).unwrap();
    assert_eq!(lengths, [2, 2]);
    assert_eq!(cause(view.slice(edge, 4, Access::Read)), FaultCause::NotContiguous);
    assert_eq!(view.slice(edge, 2, Access::Read).unwrap().len(), 2);
    assert_eq!(view.prefix(edge, 4, Access::Read).unwrap().len(), 2);
    assert_eq!(view.prefix(BASE + PAGE, 4, Access::Read).unwrap().len(), 4);
    assert_eq!(space.refused(), 0);
}

#[test]
fn refused_accesses_name_their_cause_and_are_counted() {
    let space = enabled();
    let memory = file(2);
    space.map_fd(BASE, PAGE, &memory, 0, true).unwrap();
    space.map_fd(BASE + PAGE, PAGE, &memory, PAGE, false).unwrap();
    let view = space.snapshot();
    assert_eq!(cause(view.read(0, &mut [0])), FaultCause::Unmapped);
    assert_eq!(cause(view.store_u32(BASE + PAGE, 1, Ordering::Relaxed)), FaultCause::ReadOnly);
    assert_eq!(cause(view.load_u32(BASE + 2, Ordering::Relaxed)), FaultCause::Misaligned);
    assert_eq!(space.refused(), 3);
    // The part before the refused page is written, and the fault says where the rest began.
    let fault = view.write(BASE + PAGE - 1, &[7, 8]).unwrap_err();
    let wanted = DmaFault { iova: BASE + PAGE, len: 1, access: Access::Write, cause: FaultCause::ReadOnly };
    assert_eq!(fault, wanted);
    assert_eq!(view.read_obj::<u8>(BASE + PAGE - 1), Ok(7));
    drop(view);
    space.set_enabled(false);
    assert_eq!(cause(space.snapshot().read_obj::<u8>(BASE)), FaultCause::Disabled);
    assert_eq!((space.refused(), space.held_back()), (4, 1));
}

#[test]
fn words_are_stored_as_they_are() {
    let space = enabled();
    space.map_fd(BASE, PAGE, file(1), 0, true).unwrap();
    let view = space.snapshot();
    view.store_u32(BASE, 0x0102_0304_u32.to_be(), Ordering::Release).unwrap();
    assert_eq!(view.read_obj::<[u8; 4]>(BASE), Ok([1, 2, 3, 4]));
    view.write(BASE + 2, &[0xaa, 0xbb]).unwrap();
    assert_eq!(view.load_u32(BASE, Ordering::Acquire).map(u32::from_be), Ok(0x0102_aabb));
}

#[test]
fn file_is_mapped_once_and_unmapped_with_its_last_mapping() {
    let space = enabled();
    let memory = file(16);
    for page in 0..16 {
        let writable = page % 2 == 0;
        let copy = memory.try_clone().unwrap();
        space.map_fd(BASE + 2 * page * PAGE, PAGE, copy, page * PAGE, writable).unwrap();
    }
    assert_eq!(mappings_of(&memory), 1);
    assert_eq!(space.unmap(BASE, 16 * PAGE).unwrap(), 8 * PAGE);
    assert_eq!(mappings_of(&memory), 1);
    space.unmap_all();
    assert_eq!((space.mappings(), mappings_of(&memory)), (0, 0));
}

#[test]
fn file_that_grew_or_shrank_is_measured_again() {
    let space = enabled();
    let memory = file(2);
    space.map_fd(BASE, PAGE, &memory, 0, true).unwrap();
    memory.set_len(8 * PAGE).unwrap();
    space.map_fd(BASE + PAGE, PAGE, &memory, 7 * PAGE, true).unwrap();
    space.snapshot().write(BASE + PAGE, b"end").unwrap();
    memory.set_len(4 * PAGE).unwrap();
    let refused = space.map_fd(BASE + 2 * PAGE, PAGE, &memory, 7 * PAGE, true);
    assert!(matches!(refused, Err(DmaError::OutsideMemory { size, .. }) if size == 4 * PAGE));
}

#[test]
fn memory_cut_short_by_its_owner_is_lost_and_nothing_else() {
    let space = enabled();
    let (cut, whole) = (file(4), file(4));
    space.map_fd(BASE, 4 * PAGE, &cut, 0, true).unwrap();
    space.map_fd(BASE + 8 * PAGE, 4 * PAGE, &whole, 0, true).unwrap();
    let view = space.snapshot();
    view.write(BASE, &[7; 4096]).unwrap();
    view.write(BASE + 8 * PAGE, &[8; 4096]).unwrap();
    cut.set_len(PAGE).unwrap();
    // The access that meets the hole reads zeroes; what comes after is refused, everywhere in the file.
    assert_eq!(view.load_u32(BASE + 2 * PAGE, Ordering::Relaxed), Ok(0));
    assert_eq!(cause(view.load_u32(BASE + 2 * PAGE, Ordering::Relaxed)), FaultCause::Lost);
    assert_eq!(cause(view.write(BASE, &[1])), FaultCause::Lost);
    assert_eq!(view.read_obj::<u8>(BASE + 8 * PAGE), Ok(8));
    drop(view);
    // What is left of the file can be mapped anew.
    space.unmap(BASE, 4 * PAGE).unwrap();
    space.map_fd(BASE, PAGE, &cut, 0, true).unwrap();
    assert_eq!(space.snapshot().read_obj::<u8>(BASE), Ok(7));
}

#[test]
fn write_into_memory_cut_short_ends_too() {
    let space = enabled();
    let memory = file(64);
    space.map_fd(BASE, 64 * PAGE, &memory, 0, true).unwrap();
    let view = space.snapshot();
    memory.set_len(0).unwrap();
    // One access in each thread, so that several may meet the hole at once.
    thread::scope(|scope| {
        for thread in 0..4 {
            let view = &view;
            scope.spawn(move || {
                let result = view.write(BASE + thread * 16 * PAGE, &[1; 65536]);
                assert!(result.is_ok() || cause(result) == FaultCause::Lost);
            });
        }
    });
    assert_eq!(cause(view.write(BASE, &[1])), FaultCause::Lost);
}

#[test]
fn unmap_that_splits_a_mapping_is_refused() {
    let space = enabled();
    space.map_fd(BASE, 4 * PAGE, file(4), 0, true).unwrap();
    for (first, pages) in [(0, 2), (1, 1), (2, 4)] {
        let error = space.unmap(BASE + first * PAGE, pages * PAGE).unwrap_err();
        assert!(matches!(error, DmaError::Splits { other_iova: BASE, .. }), "{error}");
    }
    assert_eq!(space.unmap(BASE + 8 * PAGE, PAGE).unwrap(), 0);
    assert_eq!(space.unmap(0, !(PAGE - 1)).unwrap(), 4 * PAGE);
}

#[test]
fn host_region_is_accessed_in_place_and_kept() {
    let space = enabled();
    let memory = file(2);
    // A region of this process, made here by the same means that a file is mapped.
    let region = HostRegion::map_file(std::os::fd::AsFd::as_fd(&memory), 8192, true).unwrap();
    space.map_host(BASE, region.clone(), true).unwrap();
    space.snapshot().write(BASE + PAGE, b"here").unwrap();
    let mut bytes = [0; 4];
    region.slice(4096, 4).copy_to(&mut bytes);
    assert_eq!(&bytes, b"here");
    drop(region);
    assert_eq!(space.snapshot().read_obj::<[u8; 4]>(BASE + PAGE), Ok(*b"here"));
    space.unmap_all();
    assert_eq!(mappings_of(&memory), 0);
}

#[test]
fn unmap_returns_only_after_the_views_that_show_the_mapping() {
    let space = Arc::new(enabled());
    space.map_fd(BASE, PAGE, file(1), 0, true).unwrap();
    let oldest = space.snapshot();
    let (done, finished) = mpsc::channel();
    let unmapper = Arc::clone(&space);
    thread::spawn(move || done.send(unmapper.unmap(BASE, PAGE).unwrap()).unwrap());
    assert!(finished.recv_timeout(Duration::from_millis(50)).is_err());
    oldest.write(BASE, b"still here").unwrap();
    drop(oldest);
    assert_eq!(finished.recv_timeout(Duration::from_secs(10)), Ok(PAGE));
}

#[test]
fn map_returns_only_when_every_view_shows_the_mapping() {
    let space = Arc::new(enabled());
    let oldest = space.snapshot();
    let (done, finished) = mpsc::channel();
    let mapper = Arc::clone(&space);
    thread::spawn(move || done.send(mapper.map_fd(BASE, PAGE, file(1), 0, true).is_ok()).unwrap());
    while space.mappings() == 0 {
        thread::yield_now();
    }
    // Work that comes now sees it, though the call has not returned.
    space.snapshot().write(BASE, b"there").unwrap();
    assert!(finished.recv_timeout(Duration::from_millis(50)).is_err());
    assert_eq!(cause(oldest.write(BASE, b"not yet")), FaultCause::Unmapped);
    drop(oldest);
    assert_eq!(finished.recv_timeout(Duration::from_secs(10)), Ok(true));
}

#[test]
fn quiesce_waits_for_every_view_and_changes_nothing() {
    let space = enabled();
    space.map_fd(BASE, PAGE, file(1), 0, true).unwrap();
    let view = space.snapshot();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            space.quiesce();
            done.store(true, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!done.load(Ordering::SeqCst));
        drop(view);
    });
    assert!(done.into_inner());
    assert_eq!(space.snapshot().read_obj::<u8>(BASE), Ok(0));
}

#[test]
fn no_access_succeeds_after_unmap_or_disable_returned() {
    let space = enabled();
    let memory = file(1);
    // Odd while the page can't be accessed.
    let phase = AtomicU64::new(1);
    let (met, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let before = phase.load(Ordering::SeqCst);
                    let result = space.snapshot().load_u32(BASE, Ordering::Relaxed);
                    let gone = before % 2 == 1 && phase.load(Ordering::SeqCst) == before;
                    assert!(!(gone && result.is_ok()), "read after unmap");
                    met.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                }
            });
        }
        let started = Instant::now();
        for round in 0.. {
            phase.fetch_add(1, Ordering::SeqCst);
            space.map_fd(BASE, PAGE, &memory, 0, true).unwrap();
            thread::yield_now();
            if round % 2 == 0 {
                space.unmap(BASE, PAGE).unwrap();
            } else {
                space.set_enabled(false);
            }
            phase.fetch_add(1, Ordering::SeqCst);
            thread::yield_now();
            space.unmap_all();
            space.set_enabled(true);
            // Long enough for readers to come between, however few processors there are.
            let elapsed = started.elapsed();
            if elapsed > Duration::from_millis(300) && met.load(Ordering::Relaxed) > 100
                || elapsed > Duration::from_secs(20)
            {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(met.into_inner() > 100, "the readers hardly met a mapping");
}

#[test]
fn as_many_single_pages_as_vfio_allows_can_be_mapped() {
    let space = enabled();
    let memory = file(2);
    let limit = MAX_MAPPINGS as u64;
    for page in 0..limit {
        space.map_fd(BASE + page * PAGE, PAGE, &memory, (page % 2) * PAGE, true).unwrap();
    }
    assert!(matches!(space.map_fd(0, PAGE, &memory, 0, true), Err(DmaError::TooMany)));
    assert_eq!(mappings_of(&memory), 1);
    let mut data = vec![0; 1 << 20];
    space.snapshot().read(BASE + 17, &mut data).unwrap();
    assert_eq!(space.unmap(BASE, limit * PAGE).unwrap(), limit * PAGE);
    assert_eq!(mappings_of(&memory), 0);
}
