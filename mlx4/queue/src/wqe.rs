//! Building one send WQE in its slot.
//!
//! The HCA fetches a WQE in chunks of 64 bytes, perhaps before it is whole. The first word of each chunk says
//! whether the chunk is valid (a stamp if it isn't; in the first chunk, the owner bit): so it is stored after
//! the rest of its chunk, and that of the first chunk last of all. A chunk is put together in a local buffer
//! and stored when it is full.

use mlx4_wire::wqe::{
    BYTE_COUNT_BYTES, ByteCount, CtrlOpcode, CtrlSize, Opcode, WQE_CHUNK_BYTES, WQE_STAMP, WQE_UNIT_BYTES,
};
use zerocopy::{Immutable, IntoBytes, transmute};

use crate::RingMemory;

const CHUNK: usize = WQE_CHUNK_BYTES as usize;
const UNIT: usize = WQE_UNIT_BYTES as usize;
const HEADER: usize = BYTE_COUNT_BYTES as usize;

/// A WQE that is whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    /// Its size in bytes.
    pub(crate) bytes: usize,
    /// What its control segment says.
    pub(crate) opcode: Opcode,
}

/// Puts the segments of a send WQE into its slot, one after the other, the control segment first.
///
/// What doesn't fit in the slot is not stored, and then the request isn't posted. [`WqeWriter::inline_bytes`]
/// tells how much inline data takes.
#[derive(Debug)]
pub struct WqeWriter<'a, M: RingMemory> {
    memory: &'a M,
    /// Byte offset of the slot.
    slot: usize,
    /// Bytes that the WQE may have.
    limit: usize,
    /// Bytes that it has so far.
    at: usize,
    first: [u8; CHUNK],
    chunk: [u8; CHUNK],
}

impl<'a, M: RingMemory> WqeWriter<'a, M> {
    pub(crate) fn new(memory: &'a M, slot: usize, limit: usize) -> Self {
        Self { memory, slot, limit, at: 0, first: [0; CHUNK], chunk: [0; CHUNK] }
    }

    fn fits(&self) -> bool {
        self.at <= self.limit
    }

    /// Puts in a segment; its size is a multiple of 16 bytes.
    pub fn segment<T: IntoBytes + Immutable>(&mut self, segment: &T) {
        const { assert!(size_of::<T>().is_multiple_of(UNIT)) };
        self.put(segment.as_bytes());
    }

    /// Puts in inline data, with a header at its start and at each bound of a chunk; ends at a whole unit.
    /// No data, no segment.
    pub fn inline(&mut self, pieces: &[&[u8]]) {
        let mut left: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut room = 0;
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                if room == 0 {
                    room = self.inline_header(left);
                }
                let (now, later) = rest.split_at(rest.len().min(room));
                self.put(now);
                (rest, room, left) = (later, room - now.len(), left - now.len());
            }
        }
        self.pad();
    }

    /// Puts in an LSO segment: its first word and the header that follows at once, up to a whole unit.
    pub(crate) fn header(&mut self, word: [u8; HEADER], header: &[u8]) {
        self.put(&word);
        self.put(header);
        self.pad();
    }

    fn pad(&mut self) {
        let odd = self.at % UNIT;
        if odd != 0 {
            self.put(&[0; UNIT][odd..]);
        }
    }

    /// Puts in the header of inline data of which `left` bytes are to come; returns how many of them it
    /// covers.
    fn inline_header(&mut self, left: usize) -> usize {
        let count = left.min(CHUNK - self.at % CHUNK - HEADER);
        // Less than a chunk.
        #[expect(clippy::cast_possible_truncation, reason = "less than a chunk")]
        let header = ByteCount::new().with_inline(true).with_count(count as u32);
        self.put(header.as_bytes());
        count
    }

    /// Bytes that inline data takes if it starts at byte `at` of the WQE, a multiple of 16.
    pub const fn inline_bytes(at: usize, data: usize) -> usize {
        let first = CHUNK - at % CHUNK - HEADER;
        if data == 0 {
            0
        } else if data <= first {
            (HEADER + data).next_multiple_of(UNIT)
        } else {
            let more = data - first;
            let whole = more / (CHUNK - HEADER);
            let rest = more % (CHUNK - HEADER);
            let last = if rest == 0 { 0 } else { (HEADER + rest).next_multiple_of(UNIT) };
            HEADER + first + whole * CHUNK + last
        }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let inside = self.at % CHUNK;
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - inside));
            let chunk = if self.at < CHUNK { &mut self.first } else { &mut self.chunk };
            chunk[inside..inside + now.len()].copy_from_slice(now);
            self.at += now.len();
            bytes = later;
            if self.at.is_multiple_of(CHUNK) {
                self.flush(CHUNK);
            }
        }
    }

    /// Stores the chunk that ends here, `filled` bytes of it; the first chunk waits.
    fn flush(&mut self, filled: usize) {
        let start = self.at - filled;
        if start != 0 && self.fits() {
            store(self.memory, self.slot + start, &self.chunk[..filled]);
        }
    }

    /// Ends the WQE: stores what is left, with the size in the control segment, and the first word, which
    /// makes it the HCA's, last. `owner` is the owner bit. `None` if it doesn't fit or is empty, and then
    /// nothing of the first chunk was stored.
    pub(crate) fn finish(mut self, owner: bool) -> Option<Finished> {
        if !self.fits() || self.at < UNIT {
            return None;
        }
        let odd = self.at % CHUNK;
        if odd != 0 {
            self.flush(odd);
        }
        let (word0, word1) = (self.word(0), self.word(HEADER));
        let opcode: CtrlOpcode = transmute!(word0);
        let size: CtrlSize = transmute!(word1);
        // The slot's limit is at most 63 units.
        #[expect(clippy::cast_possible_truncation, reason = "at most 63")]
        let size = size.with_units((self.at / UNIT) as u32);
        self.first[..HEADER].copy_from_slice(opcode.with_owner(owner).as_bytes());
        self.first[HEADER..2 * HEADER].copy_from_slice(size.as_bytes());
        store(self.memory, self.slot, &self.first[..self.at.min(CHUNK)]);
        Some(Finished { bytes: self.at, opcode: opcode.opcode() })
    }

    fn word(&self, at: usize) -> [u8; HEADER] {
        let mut word = [0; HEADER];
        word.copy_from_slice(&self.first[at..at + HEADER]);
        word
    }
}

/// Stores a chunk, its first word last.
fn store<M: RingMemory>(memory: &M, offset: usize, chunk: &[u8]) {
    let (first, rest) = chunk.split_at(HEADER);
    memory.write(offset + HEADER, rest);
    let mut word = [0; HEADER];
    word.copy_from_slice(first);
    memory.publish(offset, word);
}

/// Marks all but the first chunk of a WQE of `bytes` bytes as not written.
pub(crate) fn stamp<M: RingMemory>(memory: &M, slot: usize, bytes: usize) {
    for chunk in (CHUNK..bytes).step_by(CHUNK) {
        memory.publish(slot + chunk, WQE_STAMP.to_be_bytes());
    }
}
