//! Translation and protection: memory keys (MPT) and page tables (MTT), read from ICM at each use, since
//! the driver may edit both in place.
//!
//! The order of the checks is the hardware's: slot, key, status, protection domain, rights, bounds.

use std::sync::atomic::Ordering;

use mlx4_wire::ctx::mpt::{MptEntry, MptStatus, key_to_mpt_index};
use mlx4_wire::ctx::mtt::MttEntry;
use vm_memory::VolatileSlice;
use zerocopy::{FromZeros, IntoBytes};

use super::burst::{Burst, IcmFault};
use crate::mem::{Access, DmaFault};

/// Why an access through a memory key was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyFault {
    #[error("memory key {0:#x} names no valid region")]
    Invalid(u32),
    #[error("memory key {key:#x} belongs to protection domain {region}, not {user}")]
    Domain { key: u32, region: u32, user: u32 },
    #[error("memory key {0:#x} doesn't grant the access")]
    Rights(u32),
    #[error("{len} bytes at {va:#x} are outside the region of memory key {key:#x}")]
    Bounds { key: u32, va: u64, len: u64 },
    #[error("atomic access to {0:#x} isn't aligned in memory")]
    Misaligned(u64),
    #[error("MTT entry for {0:#x} isn't present")]
    NotPresent(u64),
    #[error(transparent)]
    Dma(#[from] DmaFault),
}

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    LocalRead,
    LocalWrite,
    RemoteRead,
    RemoteWrite,
    RemoteAtomic,
}

impl Rights {
    /// The DMA that such an access makes. An atomic reads and writes.
    pub(crate) fn dma(self) -> Access {
        match self {
            Self::LocalRead | Self::RemoteRead => Access::Read,
            Self::LocalWrite | Self::RemoteWrite | Self::RemoteAtomic => Access::Write,
        }
    }

    fn granted(self, mpt: &MptEntry) -> bool {
        match self {
            Self::LocalRead => mpt.flags.local_read(),
            Self::LocalWrite => mpt.flags.local_write(),
            Self::RemoteRead => mpt.flags.remote_read(),
            Self::RemoteWrite => mpt.flags.remote_write(),
            Self::RemoteAtomic => mpt.flags.remote_atomic(),
        }
    }
}

/// The bus address of the page behind an MTT entry, if the entry is present and ICM is mapped there.
/// `offset` is the entry's byte offset in the MTT table.
pub(crate) fn mtt(burst: &Burst, offset: u64, page_shift: u8) -> Option<u64> {
    let mut entry = MttEntry::new_zeroed();
    burst.icm_read(burst.tables.mtt_base.wrapping_add(offset & !7), entry.as_mut_bytes()).ok()?;
    entry.is_present().then_some(entry.address() & !((1 << page_shift) - 1))
}

/// The ICM address of an MPT index's entry.
pub(crate) fn mpt_addr(burst: &Burst, index: u32) -> u64 {
    let slots = 1u64 << burst.tables.log2_mpts.min(32);
    burst.tables.dmpt_base.wrapping_add((u64::from(index) & (slots - 1)) * MPT_STRIDE)
}

/// Distance of two dMPT entries in ICM, as QUERY_DEV_CAP reports it.
pub(crate) const MPT_STRIDE: u64 = 128;

/// Reads the MPT entry of an index.
pub(crate) fn read_mpt(burst: &Burst, index: u32) -> Result<MptEntry, IcmFault> {
    let mut entry = MptEntry::new_zeroed();
    burst.icm_read(mpt_addr(burst, index), entry.as_mut_bytes())?;
    Ok(entry)
}

/// Writes the MPT entry of an index, its first word (which holds the status) last.
pub(crate) fn write_mpt(burst: &Burst, index: u32, entry: &MptEntry) -> Result<(), IcmFault> {
    let addr = mpt_addr(burst, index);
    burst.icm_write(addr + 4, &entry.as_bytes()[4..])?;
    burst.icm_write(addr, &entry.as_bytes()[..4])?;
    std::sync::atomic::fence(Ordering::Release);
    Ok(())
}

/// log2 of the smallest page that an MTT entry can name.
const PAGE_SHIFT_MIN: u8 = 9;

/// A checked range of a memory region, to be walked page by page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    va: u64,
    left: u64,
    start: u64,
    /// `None`: a physical region, whose virtual address is the bus address.
    pages: Option<(u64, u8)>,
    access: Access,
    /// The pages last looked up.
    run: Run,
}

/// Pages that follow each other both in virtual addresses and on the bus.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// Virtual address of the first byte.
    va: u64,
    /// Its bus address.
    bus: u64,
    /// Bytes; 0: none.
    len: u64,
}

/// MTT entries that are read at once.
const BATCH: usize = 32;

/// Checks an access of `len` bytes at `va` through `key` by a user of protection domain `pd`.
///
/// # Errors
/// The first check of the hardware's order that fails.
pub(crate) fn check(
    burst: &Burst,
    key: u32,
    pd: u32,
    va: u64,
    len: u64,
    rights: Rights,
) -> Result<Region, KeyFault> {
    let index = key_to_mpt_index(key);
    let mpt = read_mpt(burst, index).map_err(|_| KeyFault::Invalid(key))?;
    if mpt.key.get() != index || mpt.flags.status() != MptStatus::VALID {
        return Err(KeyFault::Invalid(key));
    }
    if mpt.pd.pd() != pd {
        return Err(KeyFault::Domain { key, region: mpt.pd.pd(), user: pd });
    }
    if !mpt.flags.region() || !rights.granted(&mpt) {
        return Err(KeyFault::Rights(key));
    }
    let (start, length) = (mpt.start.get(), mpt.length.get());
    let whole = mpt.options.length_64();
    let inside = va >= start && len <= length && va - start <= length - len;
    if len != 0 && !whole && !inside {
        return Err(KeyFault::Bounds { key, va, len });
    }
    let pages = if mpt.flags.physical() {
        None
    } else {
        let shift = mpt.log2_page.number();
        if !(u32::from(PAGE_SHIFT_MIN)..=40).contains(&shift) {
            return Err(KeyFault::Invalid(key));
        }
        Some((mpt.mtt_base(), u8::try_from(shift).unwrap_or(PAGE_SHIFT_MIN)))
    };
    Ok(Region { va, left: len, start, pages, access: rights.dma(), run: Run::default() })
}

impl Region {
    /// Virtual address of the next byte.
    pub(crate) fn va(&self) -> u64 {
        self.va
    }

    /// The next piece of host memory, of at most `max` bytes, and steps over it; empty at the end.
    ///
    /// # Errors
    /// [`KeyFault::NotPresent`] for an absent page, [`KeyFault::Dma`] for one that the bus refuses.
    pub(crate) fn next<'b>(&mut self, burst: &'b Burst, max: u64) -> Result<VolatileSlice<'b>, KeyFault> {
        let want = self.left.min(max);
        let (bus, run) = self.translate(burst, want)?;
        let n = want.min(run);
        let slice = burst.dma.prefix(bus, n, self.access)?;
        self.va = self.va.wrapping_add(slice.len() as u64);
        self.left -= slice.len() as u64;
        Ok(slice)
    }

    /// The bus address of the next byte, and how many bytes from there follow each other on the bus; at least
    /// one, perhaps more than are left.
    fn translate(&mut self, burst: &Burst, want: u64) -> Result<(u64, u64), KeyFault> {
        let Some((table, shift)) = self.pages else { return Ok((self.va, want)) };
        let mut deep = self.va.wrapping_sub(self.run.va);
        if deep >= self.run.len {
            self.run = self.look_up(burst, table, shift, want)?;
            deep = self.va.wrapping_sub(self.run.va);
        }
        Ok((self.run.bus.wrapping_add(deep), self.run.len - deep))
    }

    /// Looks up the page of the next byte, and those of the bytes behind it that follow it on the bus.
    fn look_up(&self, burst: &Burst, table: u64, shift: u8, want: u64) -> Result<Run, KeyFault> {
        let size = 1u64 << shift;
        let inside = self.va & (size - 1);
        let index = (self.va >> shift).wrapping_sub(self.start >> shift);
        let first = table.wrapping_add(index.wrapping_mul(8));
        let bus = mtt(burst, first, shift).ok_or(KeyFault::NotPresent(self.va))?;
        let mut run = Run { va: self.va - inside, bus, len: size };
        let wanted = inside.saturating_add(want).div_ceil(size) - 1;
        let mut more = [MttEntry::new_zeroed(); BATCH];
        let more = &mut more[..usize::try_from(wanted).unwrap_or(BATCH).min(BATCH)];
        let next = burst.tables.mtt_base.wrapping_add(first.wrapping_add(8) & !7);
        if more.is_empty() || burst.icm_read(next, more.as_mut_bytes()).is_err() {
            return Ok(run);
        }
        for entry in more {
            let address = entry.address() & !(size - 1);
            if !entry.is_present() || address != run.bus.wrapping_add(run.len) {
                break;
            }
            run.len += size;
        }
        Ok(run)
    }
}
