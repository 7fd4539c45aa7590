//! The receive queue of a QP.

use mlx4_wire::wqe::{ByteCount, DataSeg};
use mlx4_wire::{U32, U64};
use zerocopy::IntoBytes;

use crate::RingMemory;
use crate::completion::PostedReceive;
use crate::geometry::ReceiveGeometry;
use crate::record::{Place, PlaceError, ReceiveRecord};
use crate::request::{PostError, Sge, room};

/// Stores a scatter list of at most `most` pieces, with a terminator if it is shorter. Pieces without bytes
/// are left out: a count of 0 stands for 2 GiB.
pub(crate) fn write_list<M: RingMemory>(memory: &M, offset: usize, pieces: &[Sge], most: u32) {
    let size = size_of::<DataSeg>();
    let mut at = offset;
    for piece in pieces.iter().filter(|piece| piece.length != 0) {
        let segment = DataSeg {
            byte_count: ByteCount::new().with_count(piece.length),
            lkey: U32::new(piece.lkey),
            address: U64::new(piece.address),
        };
        memory.write(at, segment.as_bytes());
        at += size;
    }
    if at < offset + most as usize * size {
        memory.write(at, DataSeg::TERMINATOR.as_bytes());
    }
}

/// Whether a scatter list can be posted where there is room for `most` pieces.
pub(crate) fn check_list(pieces: &[Sge], most: u32) -> Result<(), PostError> {
    if pieces.len() > most as usize {
        return Err(PostError::TooManyPieces(pieces.len(), most));
    }
    match pieces.iter().find(|piece| piece.length > i32::MAX as u32) {
        Some(long) => Err(PostError::PieceTooLong(long.length)),
        None => Ok(()),
    }
}

/// The receive queue of a QP. Requests complete in order.
pub struct ReceiveQueue<M> {
    place: Place<M>,
    record: ReceiveRecord<M>,
    geometry: ReceiveGeometry,
    posted: Box<[PostedReceive]>,
    /// Count of requests posted, modulo 2^32.
    head: u32,
    /// Count of requests completed, modulo 2^32.
    tail: u32,
}

impl<M: RingMemory> ReceiveQueue<M> {
    /// The receive queue at a place, with its doorbell record. Writes nothing: [`ReceiveQueue::reset`] does.
    ///
    /// # Errors
    /// The ring isn't inside its memory or not aligned to 16 bytes, or the record is not in its own.
    pub fn new(place: Place<M>, record: Place<M>, geometry: ReceiveGeometry) -> Result<Self, PlaceError> {
        place.check(geometry.bytes() as usize, 16)?;
        let none = PostedReceive { wr_id: 0, room: 0 };
        let posted = vec![none; geometry.entries() as usize].into_boxed_slice();
        Ok(Self { place, record: ReceiveRecord::new(record)?, geometry, posted, head: 0, tail: 0 })
    }

    /// The geometry.
    pub fn geometry(&self) -> &ReceiveGeometry {
        &self.geometry
    }

    /// Empties the queue and zeroes its record: before the QP leaves RESET, and not while the HCA works on
    /// it.
    pub fn reset(&mut self) {
        (self.head, self.tail) = (0, 0);
        self.record.set_posted(0);
    }

    /// Requests that can be posted now.
    pub fn free(&self) -> u32 {
        self.geometry.entries() - self.head.wrapping_sub(self.tail)
    }

    /// Writes a request. The HCA sees it after [`ReceiveQueue::commit`].
    ///
    /// # Errors
    /// The queue is full, or the list is too long or has a piece of 2 GiB or more; the queue is then as
    /// before.
    pub fn post(&mut self, wr_id: u64, pieces: &[Sge]) -> Result<(), PostError> {
        if self.free() == 0 {
            return Err(PostError::Full);
        }
        check_list(pieces, self.geometry.max_sges())?;
        let index = self.index(self.head);
        let offset = self.place.offset + index * self.geometry.stride() as usize;
        write_list(&self.place.memory, offset, pieces, self.geometry.max_sges());
        self.posted[index] = PostedReceive { wr_id, room: room(pieces) };
        self.head = self.head.wrapping_add(1);
        Ok(())
    }

    /// Hands all requests that were posted to the HCA.
    pub fn commit(&self) {
        // The record counts modulo 65536.
        self.record.set_posted((self.head & 0xffff) as u16);
    }

    fn index(&self, counter: u32) -> usize {
        (counter & (self.geometry.entries() - 1)) as usize
    }

    /// Takes the completion of the oldest request. `None` if none is outstanding, or the counter `wqe_index`
    /// names another slot than the oldest request's.
    pub fn complete(&mut self, wqe_index: u16) -> Option<PostedReceive> {
        let index = self.index(self.tail);
        if self.head == self.tail || self.index(wqe_index.into()) != index {
            return None;
        }
        self.tail = self.tail.wrapping_add(1);
        Some(self.posted[index])
    }
}

impl<M> std::fmt::Debug for ReceiveQueue<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveQueue")
            .field("geometry", &self.geometry)
            .field("head", &self.head)
            .field("tail", &self.tail)
            .finish_non_exhaustive()
    }
}
