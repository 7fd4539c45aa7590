//! Places in memory, and the doorbell records: words in which this side tells the HCA how far it has come.

use std::mem::offset_of;

use mlx4_wire::Number24;
use mlx4_wire::doorbell::{self, CqArmRecord, RqRecord};
use zerocopy::transmute;

use crate::RingMemory;

/// Where a ring or a doorbell record lies.
#[derive(Clone, Debug)]
pub struct Place<M> {
    /// The memory.
    pub memory: M,
    /// Where it starts in the memory, in bytes.
    pub offset: usize,
}

/// A place isn't one for what was to lie there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {offset:#x} aren't inside the memory of {memory:#x}, or aligned to {align}")]
pub struct PlaceError {
    /// Bytes that were to lie there.
    pub bytes: usize,
    /// Where, in bytes.
    pub offset: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Size of the memory in bytes.
    pub memory: usize,
}

impl<M: RingMemory> Place<M> {
    pub(crate) fn check(&self, bytes: usize, align: usize) -> Result<(), PlaceError> {
        let memory = self.memory.bytes();
        let inside = self.offset.checked_add(bytes).is_some_and(|end| end <= memory);
        if inside && self.offset.is_multiple_of(align) {
            return Ok(());
        }
        Err(PlaceError { bytes, offset: self.offset, align, memory })
    }
}

/// Size and alignment of a CQ's doorbell record in bytes.
pub const CQ_RECORD_BYTES: usize = 8;

/// Size and alignment of the doorbell record of a receive queue or SRQ in bytes.
pub const RQ_RECORD_BYTES: usize = 4;

/// The record of a receive queue or an SRQ.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveRecord<M>(Place<M>);

impl<M: RingMemory> ReceiveRecord<M> {
    pub(crate) fn new(place: Place<M>) -> Result<Self, PlaceError> {
        place.check(RQ_RECORD_BYTES, RQ_RECORD_BYTES)?;
        Ok(Self(place))
    }

    /// Publishes how many requests were posted ever, modulo 65536.
    pub(crate) fn set_posted(&self, posted: u16) {
        self.0.memory.publish(self.0.offset, transmute!(RqRecord::new().with_posted(posted)));
    }
}

/// Offset of the arm word in a CQ's record.
const ARM: usize = offset_of!(doorbell::CqRecord, arm);

/// The record of a CQ.
#[derive(Clone, Debug)]
pub(crate) struct CompletionRecord<M>(Place<M>);

impl<M: RingMemory> CompletionRecord<M> {
    pub(crate) fn new(place: Place<M>) -> Result<Self, PlaceError> {
        place.check(CQ_RECORD_BYTES, CQ_RECORD_BYTES)?;
        Ok(Self(place))
    }

    /// Publishes the consumer index.
    pub(crate) fn set_consumer_index(&self, index: u32) {
        self.0.memory.publish(self.0.offset, transmute!(Number24::wrapping(index)));
    }

    /// Publishes an arm request.
    pub(crate) fn set_arm(&self, arm: CqArmRecord) {
        self.0.memory.publish(self.0.offset + ARM, transmute!(arm));
    }
}
