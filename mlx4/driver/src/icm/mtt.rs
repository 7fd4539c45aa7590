//! The memory translation table. This side writes its entries straight into ICM, before the command that
//! makes the device use them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mlx4_pci::DmaSpace;
use mlx4_wire::ctx::mtt::{MTT_ENTRY_BYTES, MttEntry};
use zerocopy::{FromZeros, IntoBytes};

use super::buddy::Buddy;
use super::table::IcmTable;
use crate::cmd::Commands;
use crate::error::{Error, Result};
use crate::profile::Extent;

/// Entries that are written at once.
const BATCH: usize = 512;

/// Pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages<'a> {
    /// Pages at any addresses.
    List(&'a [u64]),
    /// Pages of `1 << log2_page` bytes, one behind the other.
    Run {
        /// Address of the first.
        first: u64,
        /// How many.
        count: u32,
        /// log2 of their size.
        log2_page: u8,
    },
}

impl Pages<'_> {
    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::List(pages) => pages.len() as u64,
            Self::Run { count, .. } => (*count).into(),
        }
    }

    fn address(&self, index: u64) -> Option<u64> {
        match self {
            Self::List(pages) => usize::try_from(index).ok().and_then(|index| pages.get(index).copied()),
            Self::Run { first, count, log2_page } => {
                (index < u64::from(*count)).then(|| first + (index << log2_page))
            }
        }
    }
}

/// A range of entries, or none.
#[derive(Debug)]
pub(crate) struct MttRange {
    first: u64,
    /// A power of two, or 0.
    count: u64,
}

impl MttRange {
    /// Byte offset in the table, as contexts name it.
    pub(crate) fn offset(&self) -> u64 {
        self.first * MTT_ENTRY_BYTES
    }
}

/// log2 of a power of two of at most 2^63.
fn log2(count: u64) -> u8 {
    u8::try_from(count.ilog2()).unwrap_or(u8::MAX)
}

/// The table, and which of its entries are free.
#[derive(Debug)]
pub(super) struct MttTable {
    table: IcmTable,
    free: Mutex<Buddy>,
}

impl MttTable {
    pub(super) fn new(table: IcmTable, extent: Extent, reserved: u32) -> Self {
        Self { table, free: Mutex::new(Buddy::new(extent.log2_entries, reserved.into())) }
    }

    pub(super) fn pin(&self, commands: &Commands, dma: &DmaSpace, count: u64) -> Result<()> {
        self.table.get(commands, dma, 0, count)
    }

    /// Takes entries and writes them; `spare` entries behind are not present.
    pub(super) fn allocate(
        &self,
        commands: &Commands,
        dma: &DmaSpace,
        pages: &Pages<'_>,
        spare: u32,
    ) -> Result<MttRange> {
        let count = match pages.count() + u64::from(spare) {
            0 => return Ok(MttRange { first: 0, count: 0 }),
            count => count.next_power_of_two(),
        };
        let log2 = log2(count);
        let first = self.lock().take(log2).ok_or(Error::Exhausted("translation entry"))?;
        let range = MttRange { first, count };
        if let Err(error) = self.table.get(commands, dma, first, count) {
            self.lock().give_back(first, log2);
            return Err(error);
        }
        match self.write(&range, pages, count) {
            Ok(()) => Ok(range),
            Err(error) => {
                self.free(commands, range)?;
                Err(error)
            }
        }
    }

    fn write(&self, range: &MttRange, pages: &Pages<'_>, count: u64) -> Result<()> {
        let mut batch = [MttEntry::new_zeroed(); BATCH];
        for start in (0..count).step_by(BATCH) {
            let length = (count - start).min(BATCH as u64);
            for (entry, index) in batch.iter_mut().zip(start..start + length) {
                *entry = pages.address(index).map_or(MttEntry::new_zeroed(), MttEntry::present);
            }
            // At most BATCH.
            let length = usize::try_from(length).unwrap_or(BATCH);
            self.table.write(range.first + start, batch[..length].as_bytes())?;
        }
        Ok(())
    }

    pub(super) fn free(&self, commands: &Commands, range: MttRange) -> Result<()> {
        if range.count == 0 {
            return Ok(());
        }
        let result = self.table.put(commands, range.first, range.count);
        self.lock().give_back(range.first, log2(range.count));
        result
    }

    pub(super) fn close(&self, commands: &Commands) -> Result<()> {
        self.table.close(commands)
    }

    fn lock(&self) -> MutexGuard<'_, Buddy> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
