//! Guest memory that is mapped for the HCA, and which bus addresses are the guests'.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use log::Level;
use mlx4_pci::{DmaAccess, DmaBuffer, DmaSpace};
use paraverbs_tenant::hca::{DmaInfo, HcaError, Iova};
use paraverbs_tenant::{GuestPiece, LogLimit};

use crate::error::mapping;
use crate::host_memory::host_memory;

/// Bus addresses that the driver keeps for itself: at most so many bytes, and at most this part of all.
const OWN_BYTES: u64 = 64 << 30;
const OWN_PART: u64 = 8;
/// Pieces are whole pages.
const PAGE: u64 = 4096;

/// A file by what keeps a mapping of it alive. Not by its inode: of hugetlbfs a guest can make files until one has
/// the number of another guest's.
type FileKey = usize;

#[derive(Debug, Default)]
struct State {
    maps: BTreeMap<u64, DmaBuffer>,
    /// Pieces that the host didn't unmap, with their length in bytes: the seam does so at the next reset.
    stuck: BTreeMap<u64, u64>,
    /// One descriptor for all pieces of a region.
    files: BTreeMap<FileKey, Weak<File>>,
}

impl State {
    /// Whether nothing of the range is mapped.
    fn is_free(&self, start: u64, length: u64) -> bool {
        let end = start.saturating_add(length);
        let mapped = |(at, bytes): (&u64, u64)| at.saturating_add(bytes) > start;
        let before = self.maps.range(..end).next_back().map(|(at, buffer)| (at, buffer.len() as u64));
        let stuck = self.stuck.range(..end).next_back().map(|(at, bytes)| (at, *bytes));
        !before.is_some_and(mapped) && !stuck.is_some_and(mapped)
    }

    /// Forgets the descriptors of files that no piece has.
    fn forget_files(&mut self) {
        self.files.retain(|_, file| file.strong_count() != 0);
    }
}

/// Guest memory that is mapped for one HCA.
#[derive(Debug)]
pub(crate) struct Mappings {
    space: DmaSpace,
    guests: Vec<Range<u64>>,
    state: Mutex<State>,
    log: LogLimit,
}

impl Mappings {
    /// Divides a device's bus addresses between its driver and guests. Before the driver takes any.
    pub(crate) fn new(space: &DmaSpace) -> Self {
        let (own, guests) = divided(&space.geometry().ranges);
        space.choose_within(own);
        Self { space: space.clone(), guests, state: Mutex::default(), log: LogLimit::new() }
    }

    pub(crate) fn info(&self) -> DmaInfo {
        let mappings = self.space.limits().map_or(u64::MAX, |limits| limits.left);
        DmaInfo { ranges: self.guests.clone(), mappings }
    }

    /// Maps a piece at an address of a guest's window.
    pub(crate) fn map(&self, iova: Iova, piece: &GuestPiece<'_>) -> Result<(), HcaError> {
        let end = iova.0.checked_add(piece.length).ok_or(HcaError::Refused)?;
        if !self.guests.iter().any(|range| range.start <= iova.0 && end <= range.end) {
            return Err(HcaError::Refused);
        }
        let file = self.file(piece)?;
        let memory = host_memory(piece, file).ok_or(HcaError::Refused)?;
        let access = if piece.writable { DmaAccess::ReadWrite } else { DmaAccess::Read };
        let mapped = self.space.map_at(iova.0, memory, access);
        let mut state = self.state();
        match mapped {
            Ok(buffer) => {
                state.maps.insert(iova.0, buffer);
                Ok(())
            }
            Err(error) => {
                state.forget_files();
                log::log!(self.log.level(Level::Warn), "guest memory can't be mapped: {error}");
                Err(mapping(&error))
            }
        }
    }

    /// Undoes a [`Mappings::map`]; what isn't mapped at all needs no undoing.
    pub(crate) fn unmap(&self, iova: Iova, length: u64) -> Result<(), HcaError> {
        let buffer = {
            let mut state = self.state();
            if state.stuck.get(&iova.0) == Some(&length) {
                return self.unstick(&mut state, iova.0);
            }
            match state.maps.get(&iova.0) {
                Some(buffer) if buffer.len() as u64 == length => {}
                _ if state.is_free(iova.0, length) => return Ok(()),
                _ => return Err(HcaError::Refused),
            }
            state.maps.remove(&iova.0).ok_or(HcaError::Refused)?
        };
        let result = buffer.release();
        let mut state = self.state();
        state.forget_files();
        result.map_err(|error| {
            log::log!(self.log.level(Level::Warn), "guest memory can't be unmapped: {error}");
            state.stuck.insert(iova.0, length);
            HcaError::Failed
        })
    }

    /// The seam has kept a piece: it is gone when the seam keeps nothing any more.
    fn unstick(&self, state: &mut State, iova: u64) -> Result<(), HcaError> {
        if self.space.quarantined() != 0 {
            return Err(HcaError::Failed);
        }
        state.stuck.remove(&iova);
        Ok(())
    }

    /// A descriptor of a piece's file.
    fn file(&self, piece: &GuestPiece<'_>) -> Result<Arc<File>, HcaError> {
        // As long as a piece has the descriptor it has this, too, so nothing else is at its address.
        let key = Arc::as_ptr(piece.keep).addr();
        let mut state = self.state();
        if let Some(same) = state.files.get(&key).and_then(Weak::upgrade) {
            return Ok(same);
        }
        let descriptor = piece.fd.try_clone_to_owned().map_err(|_| HcaError::NoResources)?;
        let file = Arc::new(File::from(descriptor));
        state.files.insert(key, Arc::downgrade(&file));
        Ok(file)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one call on one collection.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lowest addresses for the driver, the others for guests.
fn divided(ranges: &[RangeInclusive<u64>]) -> (Vec<RangeInclusive<u64>>, Vec<Range<u64>>) {
    let bytes = |range: &RangeInclusive<u64>| (range.end() - range.start()).saturating_add(1);
    let all = ranges.iter().map(bytes).fold(0, u64::saturating_add);
    let mut left = OWN_BYTES.min(all / OWN_PART) & !(PAGE - 1);
    let (mut own, mut guests) = (Vec::new(), Vec::new());
    for range in ranges {
        let taken = left.min(bytes(range));
        left -= taken;
        if taken != 0 {
            own.push(*range.start()..=range.start() + (taken - 1));
        }
        // The very last byte of all addresses is nobody's: a range's end would be 2^64.
        let (start, end) = (range.start().saturating_add(taken), range.end().saturating_add(1));
        if start < end {
            guests.push(start..end & !(PAGE - 1));
        }
    }
    (own, guests)
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use mlx4_pci::{DmaError, Geometry, HostMemory, Iommu, Limits};

    use super::*;

    /// An IOMMU that takes nothing back while it is stuck.
    #[derive(Debug, Default)]
    struct Sticky {
        stuck: AtomicBool,
    }

    #[derive(Debug)]
    struct Handle(Arc<Sticky>);

    impl Iommu for Handle {
        fn map(&self, _: u64, _: &HostMemory, _: DmaAccess) -> Result<(), DmaError> {
            Ok(())
        }

        fn unmap(&self, iova: u64, len: u64) -> Result<(), DmaError> {
            match self.0.stuck.load(Ordering::SeqCst) {
                true => Err(DmaError::Unmap { iova, len, source: io::ErrorKind::Other.into() }),
                false => Ok(()),
            }
        }

        fn limits(&self) -> Result<Limits, DmaError> {
            Ok(Limits { left: 1, maximum: 1 })
        }
    }

    const WINDOW: u64 = 1 << 40;

    fn map(mappings: &Mappings, memory: &Arc<HostMemory>, start: usize) -> Result<(), HcaError> {
        let keep: Arc<dyn Any + Send + Sync> = Arc::clone(memory) as _;
        let piece = GuestPiece {
            fd: memory.fd(),
            offset: start as u64,
            length: PAGE,
            host_address: memory.address().as_ptr().expose_provenance() + start,
            writable: true,
            keep: &keep,
        };
        mappings.map(Iova(WINDOW + start as u64), &piece)
    }

    #[test]
    fn piece_that_the_host_keeps_is_gone_after_the_reset() {
        let iommu = Arc::new(Sticky::default());
        let geometry = Geometry { ranges: vec![0..=(1 << 48) - 1], granule: PAGE };
        let space = DmaSpace::new(geometry, Box::new(Handle(Arc::clone(&iommu))));
        let mappings = Mappings::new(&space);
        let memory = Arc::new(HostMemory::allocate(0x2000).unwrap());
        map(&mappings, &memory, 0).unwrap();
        map(&mappings, &memory, 0x1000).unwrap();
        assert_eq!(mappings.state().files.len(), 1, "one descriptor for both");
        mappings.unmap(Iova(WINDOW + 0x1000), PAGE).unwrap();
        iommu.stuck.store(true, Ordering::SeqCst);
        assert_eq!(mappings.unmap(Iova(WINDOW), PAGE), Err(HcaError::Failed));
        assert_eq!(mappings.unmap(Iova(WINDOW), PAGE), Err(HcaError::Failed));
        assert_eq!(map(&mappings, &memory, 0), Err(HcaError::Refused), "it is mapped still");
        iommu.stuck.store(false, Ordering::SeqCst);
        space.was_reset().unwrap();
        mappings.unmap(Iova(WINDOW), PAGE).unwrap();
        map(&mappings, &memory, 0).unwrap();
        mappings.unmap(Iova(WINDOW), PAGE).unwrap();
        assert!(mappings.state().files.is_empty());
    }

    #[test]
    fn only_what_is_not_mapped_at_all_needs_no_unmapping() {
        let iommu = Arc::new(Sticky::default());
        let geometry = Geometry { ranges: vec![0..=(1 << 48) - 1], granule: PAGE };
        let mappings = Mappings::new(&DmaSpace::new(geometry, Box::new(Handle(Arc::clone(&iommu)))));
        let memory = Arc::new(HostMemory::allocate(0x2000).unwrap());
        let unmap = |start: u64, length: u64| mappings.unmap(Iova(WINDOW + start), length);
        assert_eq!(unmap(0, 2 * PAGE), Ok(()));
        map(&mappings, &memory, 0x1000).unwrap();
        assert_eq!((unmap(0, PAGE), unmap(2 * PAGE, PAGE)), (Ok(()), Ok(())));
        for (start, length) in [(0, 2 * PAGE), (PAGE, 2 * PAGE), (PAGE, PAGE / 2), (0, 4 * PAGE)] {
            assert_eq!(unmap(start, length), Err(HcaError::Refused), "{start:#x} {length:#x}");
        }
        iommu.stuck.store(true, Ordering::SeqCst);
        assert_eq!(unmap(PAGE, PAGE), Err(HcaError::Failed));
        assert_eq!(unmap(0, 2 * PAGE), Err(HcaError::Refused), "it is mapped still");
    }

    #[test]
    fn pieces_that_are_refused_leave_no_descriptor() {
        let geometry = Geometry { ranges: vec![0..=(1 << 48) - 1], granule: PAGE };
        let mappings = Mappings::new(&DmaSpace::new(geometry, Box::new(Handle(Arc::default()))));
        let memory = Arc::new(HostMemory::allocate(0x2000).unwrap());
        map(&mappings, &memory, 0).unwrap();
        for _ in 0..10 {
            let other = Arc::new(HostMemory::allocate(0x2000).unwrap());
            assert_eq!(map(&mappings, &other, 0), Err(HcaError::Refused));
        }
        assert_eq!(mappings.state().files.len(), 1);
    }

    #[test]
    fn mappings_left_are_those_that_the_host_tells() {
        let geometry = Geometry { ranges: vec![0..=(1 << 48) - 1], granule: PAGE };
        let mappings = Mappings::new(&DmaSpace::new(geometry, Box::new(Handle(Arc::default()))));
        assert_eq!(mappings.info().mappings, 1);
    }

    type Bounds = Vec<(u64, u64)>;

    /// First address and end of each range.
    fn bounds(ranges: &[RangeInclusive<u64>]) -> (Bounds, Bounds) {
        let (own, guests) = divided(ranges);
        let own = own.iter().map(|range| (*range.start(), range.end() + 1)).collect();
        (own, guests.iter().map(|range| (range.start, range.end)).collect())
    }

    #[test]
    fn driver_has_the_lowest_addresses_and_guests_the_others() {
        // An IOMMU of 48 bits, with the interrupt range cut out.
        let (own, guests) = bounds(&[0..=0xfedf_ffff, 0xfef0_0000..=(1 << 48) - 1]);
        let end = OWN_BYTES + 0x10_0000;
        assert_eq!(own, [(0, 0xfee0_0000), (0xfef0_0000, end)]);
        assert_eq!(guests, [(end, 1 << 48)]);
    }

    #[test]
    fn small_and_whole_spaces_are_divided_too() {
        let (own, guests) = bounds(&[0x1000..=0xffff_ffff]);
        assert_eq!((own, guests), (vec![(0x1000, 0x2000_0000)], vec![(0x2000_0000, 1 << 32)]));
        assert_eq!(bounds(&[]), (vec![], vec![]));
        assert_eq!(bounds(&[0..=u64::MAX]).1, [(OWN_BYTES, u64::MAX - 0xfff)]);
    }
}
