//! The entries of a completion queue in their memory.

use mlx4_wire::cqe::{CQE_BYTES, CQE_FILL, Cqe, CqeOwner};
use zerocopy::{FromZeros, IntoBytes};

use crate::RingMemory;
use crate::geometry::CqGeometry;
use crate::record::{Place, PlaceError};

const CQE: usize = CQE_BYTES as usize;
/// Offset of the word with the owner byte, which the HCA writes last.
const LAST_WORD: usize = CQE - 4;

/// A ring of entries.
pub(super) struct Ring<M> {
    place: Place<M>,
    geometry: CqGeometry,
}

impl<M: RingMemory> Ring<M> {
    pub(super) fn new(place: Place<M>, geometry: CqGeometry) -> Result<Self, PlaceError> {
        place.check(geometry.bytes() as usize, geometry.entry_bytes() as usize)?;
        Ok(Self { place, geometry })
    }

    /// Marks every entry as not valid.
    pub(super) fn fill(&self) {
        let fill = [CQE_FILL; CQE];
        for piece in 0..self.geometry.bytes() as usize / CQE {
            self.place.memory.write(self.place.offset + piece * CQE, &fill);
        }
    }

    /// Where the 32 bytes of an entry are that are described: at the end of its place.
    fn offset(&self, index: u32) -> usize {
        let bytes = self.geometry.entry_bytes() as usize;
        let slot = (index & (self.geometry.entries() - 1)) as usize;
        self.place.offset + slot * bytes + (bytes - CQE)
    }

    /// The entry at an index, if it is this side's.
    pub(super) fn entry(&self, index: u32) -> Option<Cqe> {
        let offset = self.offset(index);
        let last = self.place.memory.observe(offset + LAST_WORD);
        let pass = index & self.geometry.entries() != 0;
        if CqeOwner::from_bits(last[3]).owner() != pass {
            return None;
        }
        let mut cqe = Cqe::new_zeroed();
        self.place.memory.read(offset, &mut cqe.as_mut_bytes()[..LAST_WORD]);
        cqe.as_mut_bytes()[LAST_WORD..].copy_from_slice(&last);
        Some(cqe)
    }

    /// Puts an entry at an index, as this side's.
    pub(super) fn replace(&self, index: u32, mut cqe: Cqe) {
        cqe.set_owner(index & self.geometry.entries() != 0);
        self.place.memory.write(self.offset(index), cqe.as_bytes());
    }

    /// The index behind the last entry from `start` on that is this side's, or before the first that `stop`
    /// tells; not more than a round away.
    pub(super) fn end(&self, start: u32, mut stop: impl FnMut(&Cqe) -> bool) -> u32 {
        let mut at = start;
        while at.wrapping_sub(start) < self.geometry.entries() {
            match self.entry(at) {
                Some(cqe) if !stop(&cqe) => at = at.wrapping_add(1),
                _ => break,
            }
        }
        at
    }
}

impl<M> Ring<M> {
    pub(super) fn geometry(&self) -> &CqGeometry {
        &self.geometry
    }

    pub(super) fn into_place(self) -> Place<M> {
        self.place
    }
}
