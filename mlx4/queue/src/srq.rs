//! The shared receive queue: a chain of free slots, since requests of several QPs complete in any order.
//!
//! The HCA follows the links that stand in the slots; this side keeps a copy of its own, so that it never
//! has to believe the memory.

use mlx4_wire::U16;
use mlx4_wire::wqe::{DataSeg, SrqNextSeg};
use zerocopy::{FromZeros, IntoBytes};

use crate::RingMemory;
use crate::completion::PostedReceive;
use crate::geometry::SrqGeometry;
use crate::receive::{check_list, write_list};
use crate::record::{Place, PlaceError, ReceiveRecord};
use crate::request::{PostError, Sge, room};

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    wr_id: u64,
    /// Bytes that its request can take.
    room: u32,
    /// The slot behind it in the chain.
    next: u16,
    posted: bool,
}

/// A shared receive queue.
pub struct SharedReceiveQueue<M> {
    place: Place<M>,
    record: ReceiveRecord<M>,
    geometry: SrqGeometry,
    slots: Box<[Slot]>,
    /// The next slot to post.
    head: u16,
    /// The end of the chain of free slots, which is never posted.
    tail: u16,
    /// Count of requests posted, modulo 65536.
    posted: u16,
    free: u32,
}

impl<M: RingMemory> SharedReceiveQueue<M> {
    /// The SRQ at a place, with its doorbell record. Writes nothing: [`SharedReceiveQueue::reset`] does.
    ///
    /// # Errors
    /// The ring isn't inside its memory or not aligned to 16 bytes, or the record is not in its own.
    pub fn new(place: Place<M>, record: Place<M>, geometry: SrqGeometry) -> Result<Self, PlaceError> {
        place.check(geometry.bytes() as usize, 16)?;
        let slots = vec![Slot::default(); geometry.entries() as usize].into_boxed_slice();
        let record = ReceiveRecord::new(record)?;
        Ok(Self { place, record, geometry, slots, head: 0, tail: 0, posted: 0, free: 0 })
    }

    /// The geometry.
    pub fn geometry(&self) -> &SrqGeometry {
        &self.geometry
    }

    /// Chains all slots, invalid, and zeroes the record: before the SRQ goes to the HCA.
    pub fn reset(&mut self) {
        let entries = self.geometry.entries();
        #[expect(clippy::cast_possible_truncation, reason = "at most 2^15 entries")]
        let last = (entries - 1) as u16;
        for index in 0..=last {
            let next = if index == last { 0 } else { index + 1 };
            self.slots[usize::from(index)] = Slot { next, ..Slot::default() };
            self.write_link(index);
            let list = self.offset(index) + size_of::<SrqNextSeg>();
            for piece in 0..self.geometry.max_sges() as usize {
                let at = list + piece * size_of::<DataSeg>();
                self.place.memory.write(at, DataSeg::TERMINATOR.as_bytes());
            }
        }
        (self.head, self.tail, self.posted, self.free) = (0, last, 0, self.geometry.requests());
        self.record.set_posted(0);
    }

    /// Requests that can be posted now.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Writes a request. The HCA sees it after [`SharedReceiveQueue::commit`].
    ///
    /// # Errors
    /// The queue is full, or the list is too long or has a piece of 2 GiB or more; the queue is then as
    /// before.
    pub fn post(&mut self, wr_id: u64, pieces: &[Sge]) -> Result<(), PostError> {
        if self.head == self.tail {
            return Err(PostError::Full);
        }
        check_list(pieces, self.geometry.max_sges())?;
        let list = self.offset(self.head) + size_of::<SrqNextSeg>();
        write_list(&self.place.memory, list, pieces, self.geometry.max_sges());
        let slot = &mut self.slots[usize::from(self.head)];
        (slot.wr_id, slot.room, slot.posted) = (wr_id, room(pieces), true);
        self.head = slot.next;
        self.posted = self.posted.wrapping_add(1);
        self.free -= 1;
        Ok(())
    }

    /// Hands all requests that were posted to the HCA.
    pub fn commit(&self) {
        self.record.set_posted(self.posted);
    }

    /// Takes the completion of the request in slot `index`. `None` if none is outstanding there.
    pub fn complete(&mut self, index: u16) -> Option<PostedReceive> {
        let slot = self.slots.get_mut(usize::from(index)).filter(|slot| slot.posted)?;
        slot.posted = false;
        let request = PostedReceive { wr_id: slot.wr_id, room: slot.room };
        self.slots[usize::from(self.tail)].next = index;
        self.write_link(self.tail);
        self.tail = index;
        self.free += 1;
        Some(request)
    }

    fn offset(&self, index: u16) -> usize {
        self.place.offset + usize::from(index) * self.geometry.stride() as usize
    }

    fn write_link(&self, index: u16) {
        let mut segment = SrqNextSeg::new_zeroed();
        segment.next_index = U16::new(self.slots[usize::from(index)].next);
        self.place.memory.write(self.offset(index), segment.as_bytes());
    }
}

impl<M> std::fmt::Debug for SharedReceiveQueue<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedReceiveQueue")
            .field("geometry", &self.geometry)
            .field("head", &self.head)
            .field("tail", &self.tail)
            .field("free", &self.free)
            .finish_non_exhaustive()
    }
}
