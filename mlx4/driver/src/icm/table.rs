//! One table in ICM, which gets memory where it is used.
//!
//! The table is cut into chunks of 256 KiB. A chunk has memory as long as an entry in it is in use. The
//! device reads and writes the memory by itself; this side writes the MTT only.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mlx4_pci::{DmaBuffer, DmaSpace};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::fw::{ICM_PAGE_BYTES, MapEntry};

use super::memory::CHUNK_BYTES;
use crate::cmd::{Command, Commands, Ends, Input};
use crate::error::{Error, Result};
use crate::profile::Extent;

#[derive(Debug)]
struct Chunk {
    memory: DmaBuffer,
    /// Entries in it that are in use; it isn't taken back before there is none. With none, the device was told to give
    /// it back, and has not said that it did.
    users: u64,
}

/// A table in ICM.
#[derive(Debug)]
pub(crate) struct IcmTable {
    base: u64,
    log2_entry_bytes: u8,
    chunk_bytes: u64,
    chunks: Mutex<Vec<Option<Chunk>>>,
}

impl IcmTable {
    /// A table without memory.
    pub(crate) fn new(extent: Extent) -> Self {
        let chunk_bytes = extent.bytes().min(CHUNK_BYTES);
        // At most 2^35 bytes in 2^18.
        let count = usize::try_from(extent.bytes() / chunk_bytes).unwrap_or(0);
        let chunks = Mutex::new((0..count).map(|_| None).collect());
        Self { base: extent.base, log2_entry_bytes: extent.log2_entry_bytes, chunk_bytes, chunks }
    }

    /// Sees to it that the entries from `first` on have memory.
    ///
    /// # Errors
    /// No memory, or the device refuses it; nothing has changed then.
    pub(crate) fn get(&self, commands: &Commands, dma: &DmaSpace, first: u64, count: u64) -> Result<()> {
        let mut chunks = self.lock();
        let range = self.chunks_of(first, count);
        for index in range.clone() {
            if let Err(error) = self.get_chunk(&mut chunks, commands, dma, index) {
                for index in range.start..index {
                    if let Err(error) = self.put_chunk(&mut chunks, commands, index) {
                        log::warn!("while taking ICM back: {error}");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets go of entries. Memory that nobody uses is taken back from the device.
    ///
    /// # Errors
    /// The device doesn't give it; it stays mapped until the next reset, or until it gives it when the entries, or
    /// others near them, are needed again.
    pub(crate) fn put(&self, commands: &Commands, first: u64, count: u64) -> Result<()> {
        let mut chunks = self.lock();
        let mut ends = Ends::default();
        for index in self.chunks_of(first, count) {
            ends.note(self.put_chunk(&mut chunks, commands, index));
        }
        ends.result()
    }

    /// Takes all memory back, used or not.
    ///
    /// # Errors
    /// As for [`IcmTable::put`].
    pub(crate) fn close(&self, commands: &Commands) -> Result<()> {
        let mut chunks = self.lock();
        let mut ends = Ends::default();
        for index in 0..chunks.len() {
            if let Some(chunk) = &mut chunks[index] {
                chunk.users = 1;
                ends.note(self.put_chunk(&mut chunks, commands, index));
            }
        }
        ends.result()
    }

    /// Writes entries, which all have memory.
    ///
    /// # Errors
    /// They don't.
    pub(crate) fn write(&self, first: u64, mut bytes: &[u8]) -> Result<()> {
        let chunks = self.lock();
        let mut at = first << self.log2_entry_bytes;
        while !bytes.is_empty() {
            let (index, inside) = (at / self.chunk_bytes, at % self.chunk_bytes);
            let chunk = usize::try_from(index).ok().and_then(|index| chunks.get(index)?.as_ref());
            let Some(chunk) = chunk else { return Err(Error::argument("ICM entry", first)) };
            // Less than a chunk.
            let inside = usize::try_from(inside).unwrap_or(0);
            let (now, later) = bytes.split_at(bytes.len().min(chunk.memory.len() - inside));
            chunk.memory.write(inside, now)?;
            at += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn chunks_of(&self, first: u64, count: u64) -> std::ops::Range<usize> {
        let bytes = |entry: u64| entry << self.log2_entry_bytes;
        // Entries of the table; what is beyond finds no chunk.
        let chunk = |byte: u64| usize::try_from(byte / self.chunk_bytes).unwrap_or(usize::MAX);
        let end = if count == 0 { chunk(bytes(first)) } else { chunk(bytes(first + count) - 1) + 1 };
        chunk(bytes(first))..end
    }

    fn get_chunk(
        &self,
        chunks: &mut [Option<Chunk>],
        commands: &Commands,
        dma: &DmaSpace,
        index: usize,
    ) -> Result<()> {
        let slot = chunks.get_mut(index).ok_or(Error::argument("ICM chunk", index as u64))?;
        if slot.as_ref().is_some_and(|chunk| chunk.users == 0) {
            self.take_back(slot, commands, index)?;
        }
        if let Some(chunk) = slot {
            chunk.users += 1;
            return Ok(());
        }
        // At most 256 KiB.
        let bytes = usize::try_from(self.chunk_bytes).unwrap_or(0);
        let memory = dma.allocate(bytes, self.chunk_bytes)?;
        let address = self.address(index);
        let log2_pages = self.log2_pages();
        let entry = MapEntry::new(address, memory.iova(), log2_pages)
            .ok_or(Error::argument("ICM address", address))?;
        let input = Input::Mailbox(zerocopy::IntoBytes::as_bytes(&entry));
        let mapped = commands.run(&Command { input, ..Command::new(Opcode::MAP_ICM, 1) });
        if let Err(error) = mapped {
            if !error.leaves_open() {
                memory.release()?;
            }
            return Err(error.into());
        }
        *slot = Some(Chunk { memory, users: 1 });
        Ok(())
    }

    fn put_chunk(&self, chunks: &mut [Option<Chunk>], commands: &Commands, index: usize) -> Result<()> {
        let slot = chunks.get_mut(index).ok_or(Error::argument("ICM chunk", index as u64))?;
        match slot {
            Some(chunk) if chunk.users > 1 => {
                chunk.users -= 1;
                Ok(())
            }
            Some(chunk) => {
                chunk.users = 0;
                self.take_back(slot, commands, index)
            }
            None => Ok(()),
        }
    }

    /// Takes the memory of a chunk back that nobody uses. If the device doesn't give it, nobody may use it.
    fn take_back(&self, slot: &mut Option<Chunk>, commands: &Commands, index: usize) -> Result<()> {
        let input = Input::Immediate(self.address(index));
        let pages = 1u32 << self.log2_pages();
        commands.run(&Command { input, ..Command::new(Opcode::UNMAP_ICM, pages) })?;
        // Dropped without release it would wait for a reset.
        Ok(slot.take().map_or(Ok(()), |chunk| chunk.memory.release())?)
    }

    fn address(&self, chunk: usize) -> u64 {
        self.base + chunk as u64 * self.chunk_bytes
    }

    fn log2_pages(&self) -> u8 {
        // At most 6.
        u8::try_from((self.chunk_bytes / ICM_PAGE_BYTES).ilog2()).unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Chunk>>> {
        // Each change of a slot is one assignment.
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
