//! The device's side: access to memory through one state of the table.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::host::prefetch;
use super::space::Snapshot;
use super::table::Mapping;
use super::{Access, DmaFault, FaultCause};

/// Bytes of what is loaded or stored at once.
const WORD: usize = size_of::<u32>();

/// The bus-address space as it was at one time. While it lives, what it shows stays mapped, and
/// [`DmaSpace::unmap`](super::DmaSpace::unmap) waits.
#[derive(Clone)]
pub struct DmaView {
    snapshot: Arc<Snapshot>,
}

impl DmaView {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot }
    }

    /// Hands the memory of a range to `piece`, one call for each mapping that it touches, in order of
    /// address. Pieces before a refused address have been handed out when the fault is returned.
    pub fn for_each<'a>(
        &'a self,
        iova: u64,
        len: u64,
        access: Access,
        mut piece: impl FnMut(VolatileSlice<'a>),
    ) -> Result<(), DmaFault> {
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            let slice = self.find(at, left, access)?.slice(at, left);
            let here = slice.len() as u64;
            piece(slice);
            left -= here;
            at = match at.checked_add(here) {
                Some(next) => next,
                None if left == 0 => break,
                None => return Err(self.fault(u64::MAX, left, access, FaultCause::Unmapped)),
            };
        }
        Ok(())
    }

    /// The memory of a range that lies in one mapping. A range in several adjacent ones is a fault of cause
    /// [`FaultCause::NotContiguous`], which isn't counted: go through it by [`DmaView::for_each`].
    pub fn slice(&self, iova: u64, len: usize, access: Access) -> Result<VolatileSlice<'_>, DmaFault> {
        let slice = self.prefix(iova, len as u64, access)?;
        if slice.len() != len {
            return Err(DmaFault { iova, len: len as u64, access, cause: FaultCause::NotContiguous });
        }
        Ok(slice)
    }

    /// The first piece of a range: as much of it as lies in the mapping of its first byte.
    #[inline]
    pub fn prefix(&self, iova: u64, len: u64, access: Access) -> Result<VolatileSlice<'_>, DmaFault> {
        match self.hinted(iova, access) {
            Some(map) if len != 0 => Ok(map.slice(iova, len)),
            _ => self.prefix_by_search(iova, len, access),
        }
    }

    #[cold]
    fn prefix_by_search(&self, iova: u64, len: u64, access: Access) -> Result<VolatileSlice<'_>, DmaFault> {
        if len == 0 {
            return Ok(VolatileSlice::from(&mut [][..]));
        }
        Ok(self.find(iova, len, access)?.slice(iova, len))
    }

    /// Says that memory will be read soon. It does nothing where there is none, and where nothing was read lately.
    pub fn prefetch(&self, iova: u64) {
        if let Some(map) = self.hinted(iova, Access::Read) {
            prefetch(&map.slice(iova, 1));
        }
    }

    /// Copies memory to `data`, whose beginning is overwritten even if a later part is refused.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let mut rest = data;
        self.for_each(iova, rest.len() as u64, Access::Read, |piece| {
            let done = piece.copy_to(rest);
            rest = std::mem::take(&mut rest).split_at_mut(done).1;
        })
    }

    /// Copies `data` to memory, its beginning even if a later part is refused.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let mut rest = data;
        self.for_each(iova, rest.len() as u64, Access::Write, |piece| {
            piece.copy_from(rest);
            rest = rest.split_at(piece.len()).1;
        })
    }

    /// Copies a structure out of memory.
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, iova: u64) -> Result<T, DmaFault> {
        let mut object = T::new_zeroed();
        self.read(iova, object.as_mut_bytes())?;
        Ok(object)
    }

    /// Copies a structure into memory.
    pub fn write_obj<T: IntoBytes + Immutable + ?Sized>(
        &self,
        iova: u64,
        object: &T,
    ) -> Result<(), DmaFault> {
        self.write(iova, object.as_bytes())
    }

    /// Loads four bytes at once, in the order they have in memory. The address is aligned; `order` is Relaxed,
    /// Acquire or SeqCst.
    pub fn load_u32(&self, iova: u64, order: Ordering) -> Result<u32, DmaFault> {
        let word = self.word(iova, Access::Read)?;
        word.load(0, order).map_err(|_| self.misaligned(iova, Access::Read))
    }

    /// Stores four bytes at once, as they lie in `value`. The address is aligned; `order` is Relaxed, Release
    /// or SeqCst.
    pub fn store_u32(&self, iova: u64, value: u32, order: Ordering) -> Result<(), DmaFault> {
        let word = self.word(iova, Access::Write)?;
        word.store(value, 0, order).map_err(|_| self.misaligned(iova, Access::Write))
    }

    /// Memory for one atomic access; mappings are whole pages, so an aligned word never lies in two.
    fn word(&self, iova: u64, access: Access) -> Result<VolatileSlice<'_>, DmaFault> {
        if !iova.is_multiple_of(WORD as u64) {
            return Err(self.misaligned(iova, access));
        }
        self.slice(iova, WORD, access)
    }

    fn find(&self, iova: u64, len: u64, access: Access) -> Result<&Mapping, DmaFault> {
        let found = self.snapshot.table.find(iova);
        let refused = || self.fault(iova, len, access, self.refusal(iova, found));
        found.filter(|map| self.allows(map, access)).ok_or_else(refused)
    }

    /// The mapping for an access, if it is allowed and found without a search.
    #[inline]
    fn hinted(&self, iova: u64, access: Access) -> Option<&Mapping> {
        self.snapshot.table.hinted(iova).filter(|map| self.allows(map, access))
    }

    #[inline]
    fn allows(&self, map: &Mapping, access: Access) -> bool {
        let allowed = map.writable || access == Access::Read;
        self.snapshot.enabled && !map.region.state().lost() && allowed
    }

    /// Why what was found at an address can't be accessed.
    #[cold]
    fn refusal(&self, iova: u64, found: Option<&Mapping>) -> FaultCause {
        match found {
            _ if !self.snapshot.enabled => FaultCause::Disabled,
            None => FaultCause::Unmapped,
            Some(map) if map.region.state().lost() => {
                if map.region.state().tell() {
                    log::warn!("memory behind bus address {iova:#x} was taken away by its owner");
                }
                FaultCause::Lost
            }
            Some(_) => FaultCause::ReadOnly,
        }
    }

    fn misaligned(&self, iova: u64, access: Access) -> DmaFault {
        self.fault(iova, WORD as u64, access, FaultCause::Misaligned)
    }

    /// Counts a refused access.
    #[cold]
    fn fault(&self, iova: u64, len: u64, access: Access, cause: FaultCause) -> DmaFault {
        let refusals = &self.snapshot.refusals;
        let counter = if cause == FaultCause::Disabled { &refusals.held_back } else { &refusals.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        let fault = DmaFault { iova, len, access, cause };
        log::trace!("{fault}");
        fault
    }
}

impl fmt::Debug for DmaView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Snapshot { table, enabled, .. } = &*self.snapshot;
        f.debug_struct("DmaView").field("mappings", &table.len()).field("enabled", enabled).finish()
    }
}
