//! A completion queue moves to another ring.
//!
//! 1. [`CompletionQueue::prepare_resize`] takes the new ring.
//! 2. The HCA is told. It marks the entries of the new ring as not valid, each for the index it gets first;
//!    ends the old ring with a mark, which takes an index; and goes on in the new one behind that index.
//! 3. [`CompletionQueue::finish_resize`] copies what wasn't polled of the old ring to the new one, each entry
//!    one index later, since the mark goes. If the HCA refuses, [`CompletionQueue::cancel_resize`].
//!
//! Polling goes on all the while: who meets the mark turns to the new ring at once.

use super::ring::Ring;
use super::{CompletionQueue, RingMemory};
use crate::Doorbell;
use crate::geometry::CqGeometry;
use crate::record::{Place, PlaceError};

/// How far a resize is.
pub(super) enum Resize<M> {
    /// None is under way.
    None,
    /// The HCA may turn to this ring.
    Waiting(Ring<M>),
    /// This side has turned to the new ring and left this one.
    Done(Ring<M>),
}

/// Why a completion queue can't move to another ring, or hasn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// The ring isn't inside its memory, or not aligned to an entry.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The entries have another size.
    #[error("entries of {0} bytes can't become some of {1}")]
    EntrySize(u32, u32),
    /// More completions are unread than the new ring holds.
    #[error("{unread} completions are unread, the new ring holds {room}")]
    TooSmall {
        /// Completions that weren't polled.
        unread: u32,
        /// Those that fit.
        room: u32,
    },
    /// Another resize is under way.
    #[error("another resize is under way")]
    UnderWay,
    /// No resize is under way.
    #[error("no resize is under way")]
    None,
    /// The HCA has not ended the old ring with a mark. The old ring stays in use, and both rings' memory must be
    /// kept.
    #[error("the HCA has not marked the end of the old ring")]
    NoMark,
}

impl<M: RingMemory, D: Doorbell> CompletionQueue<M, D> {
    /// Prepares a ring to move to, before the HCA is told. Writes nothing to it.
    ///
    /// # Errors
    /// The ring can't be one of this queue, is too small for what is unread now, or another resize is under
    /// way.
    pub fn prepare_resize(&mut self, place: Place<M>, geometry: CqGeometry) -> Result<(), ResizeError> {
        if !matches!(self.resize, Resize::None) {
            return Err(ResizeError::UnderWay);
        }
        let (old, new) = (self.ring.geometry().entry_bytes(), geometry.entry_bytes());
        if old != new {
            return Err(ResizeError::EntrySize(old, new));
        }
        let unread = self.ring.end(self.consumer, |_| false).wrapping_sub(self.consumer);
        if unread > geometry.completions() {
            return Err(ResizeError::TooSmall { unread, room: geometry.completions() });
        }
        self.resize = Resize::Waiting(Ring::new(place, geometry)?);
        Ok(())
    }

    /// Moves to the new ring, after the HCA has. Returns the place of the old ring, which the HCA uses no more.
    ///
    /// # Errors
    /// None is under way, or the HCA has not marked the end of the old ring.
    pub fn finish_resize(&mut self) -> Result<Place<M>, ResizeError> {
        self.turn();
        match std::mem::replace(&mut self.resize, Resize::None) {
            Resize::Done(old) => {
                self.commit();
                Ok(old.into_place())
            }
            Resize::Waiting(ring) => {
                self.resize = Resize::Waiting(ring);
                Err(ResizeError::NoMark)
            }
            Resize::None => Err(ResizeError::None),
        }
    }

    /// Ends a resize that the HCA has refused. Returns the place of the ring that is not in use: the new one; or
    /// the old one if the HCA has turned to the new one for all that. `None` if no resize is under way.
    pub fn cancel_resize(&mut self) -> Option<Place<M>> {
        match std::mem::replace(&mut self.resize, Resize::None) {
            Resize::Waiting(ring) | Resize::Done(ring) => Some(ring.into_place()),
            Resize::None => None,
        }
    }

    /// Turns to the new ring if the old one has its mark; tells whether it did.
    pub(super) fn turn(&mut self) -> bool {
        let Resize::Waiting(new) = &self.resize else { return false };
        let mark = self.ring.end(self.consumer, |cqe| cqe.owner.is_resize());
        let marked = self.ring.entry(mark).is_some_and(|cqe| cqe.owner.is_resize());
        if !marked || mark.wrapping_sub(self.consumer) > new.geometry().entries() {
            return false;
        }
        let mut at = self.consumer;
        while at != mark {
            let next = at.wrapping_add(1);
            if let Some(cqe) = self.ring.entry(at) {
                new.replace(next, cqe);
            }
            at = next;
        }
        self.consumer = self.consumer.wrapping_add(1);
        if let Resize::Waiting(new) = std::mem::replace(&mut self.resize, Resize::None) {
            self.resize = Resize::Done(std::mem::replace(&mut self.ring, new));
        }
        true
    }
}
