//! Translation and protection: memory keys (MPT) and page tables (MTT), read from ICM anew in each burst,
//! since the driver may edit both in place. What work requests change in them is in [`change`]; [`cache`] has
//! what a burst remembers.
//!
//! The order of the checks is the hardware's: slot, key, status, protection domain, queue pair, rights,
//! bounds.

mod cache;
mod change;

use std::sync::atomic::{Ordering, fence};

use mlx4_wire::ctx::mpt::{MptEntry, MptFlags, MptStatus, key_to_mpt_index};
use mlx4_wire::ctx::mtt::MttEntry;
use vm_memory::VolatileSlice;
use zerocopy::{FromZeros, IntoBytes};

use super::burst::{Burst, IcmFault};
use crate::mem::{Access, DmaFault};
pub(crate) use cache::KeyCache;
use cache::{KeyEntry, Place};
pub(crate) use change::{By, Changes};

/// Why an access through a memory key was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyFault {
    #[error("memory key {0:#x} names no valid region")]
    Invalid(u32),
    #[error("memory key {key:#x} belongs to protection domain {region}, not {user}")]
    Domain { key: u32, region: u32, user: u32 },
    #[error("memory key {key:#x} belongs to queue pair {owner:#x}, not {user:#x}")]
    QueuePair { key: u32, owner: u32, user: u32 },
    #[error("memory key {0:#x} doesn't grant the access")]
    Rights(u32),
    #[error("memory key {0:#x} isn't in the state that the work request needs")]
    State(u32),
    #[error("memory key {0:#x} has windows bound to it")]
    Bound(u32),
    #[error(
        "registration of {pages} pages of 2^{log2_page} bytes isn't one that memory key {key:#x} can hold"
    )]
    Pages { key: u32, pages: u64, log2_page: u32 },
    #[error("{len} bytes at {va:#x} are outside the region of memory key {key:#x}")]
    Bounds { key: u32, va: u64, len: u64 },
    #[error("atomic access to {0:#x} isn't aligned in memory")]
    Misaligned(u64),
    #[error("MTT entry for {0:#x} isn't present")]
    NotPresent(u64),
    #[error(transparent)]
    Dma(#[from] DmaFault),
}

/// Who uses a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// Protection domain.
    pub(crate) pd: u32,
    /// Queue pair.
    pub(crate) qpn: u32,
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

    fn granted(self, flags: MptFlags) -> bool {
        match self {
            Self::LocalRead => flags.local_read(),
            Self::LocalWrite => flags.local_write(),
            Self::RemoteRead => flags.remote_read(),
            Self::RemoteWrite => flags.remote_write(),
            Self::RemoteAtomic => flags.remote_atomic(),
        }
    }
}

/// What accesses look at of an entry.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    flags: MptFlags,
    pd: u32,
    /// The queue pair that a window belongs to, if it belongs to one.
    owner: Option<u32>,
    start: u64,
    length: u64,
    /// The whole address space, whatever start and length are.
    unbounded: bool,
    addressing: Addressing,
}

/// How virtual addresses become bus addresses.
#[derive(Clone, Copy, Debug, Default)]
enum Addressing {
    /// They are bus addresses.
    #[default]
    Physical,
    /// By MTT entries, each for a page of this log2 size; the byte offset of the one for address 0, modulo
    /// 2^64.
    Pages(u64, u8),
    /// The page size is out of range.
    Invalid,
}

impl Entry {
    fn of(mpt: &MptEntry) -> Self {
        let window_of_qp = !mpt.flags.region() && mpt.qp.bound_to_qp();
        let addressing = match page_shift(mpt) {
            _ if mpt.flags.physical() => Addressing::Physical,
            Some(shift) => {
                let before = (mpt.start.get() >> shift).wrapping_mul(MTT_BYTES);
                Addressing::Pages(mpt.mtt_base().wrapping_sub(before), shift)
            }
            None => Addressing::Invalid,
        };
        Self {
            flags: mpt.flags,
            pd: mpt.pd.pd(),
            owner: window_of_qp.then(|| mpt.qp.qpn()),
            start: mpt.start.get(),
            length: mpt.length.get(),
            unbounded: mpt.options.length_64(),
            addressing,
        }
    }

    /// Checks the protection domain, and of a window of type 2 the queue pair.
    fn check_owner(&self, key: u32, user: User) -> Result<(), KeyFault> {
        if self.pd != user.pd {
            return Err(KeyFault::Domain { key, region: self.pd, user: user.pd });
        }
        match self.owner {
            Some(owner) if owner != user.qpn => Err(KeyFault::QueuePair { key, owner, user: user.qpn }),
            _ => Ok(()),
        }
    }

    fn check_bounds(&self, key: u32, va: u64, len: u64) -> Result<(), KeyFault> {
        let (start, length) = (self.start, self.length);
        let inside = va >= start && len <= length && va - start <= length - len;
        let good = len == 0 || self.unbounded || inside;
        if good { Ok(()) } else { Err(KeyFault::Bounds { key, va, len }) }
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

/// Writes the MPT entry of an index, its first word (which holds the status) last. Whoever writes one that
/// others may be reading goes through [`Changes`].
pub(crate) fn write_mpt(burst: &Burst, index: u32, entry: &MptEntry) -> Result<(), IcmFault> {
    let addr = mpt_addr(burst, index);
    burst.icm_write(addr + 4, &entry.as_bytes()[4..])?;
    burst.icm_write(addr, &entry.as_bytes()[..4])?;
    fence(Ordering::Release);
    Ok(())
}

/// What the burst remembers of a key, which it looks up if need be.
#[inline]
fn remembered(burst: &Burst, key: u32) -> Result<&KeyEntry, KeyFault> {
    let changes = burst.icm_changes();
    match burst.keys.find(key, changes) {
        Some(found) => Ok(found),
        None => look_up_entry(burst, key, changes),
    }
}

#[cold]
fn look_up_entry(burst: &Burst, key: u32, changes: u64) -> Result<&KeyEntry, KeyFault> {
    let index = key_to_mpt_index(key);
    let mpt = read_mpt_whole(burst, index).ok().flatten().ok_or(KeyFault::Invalid(key))?;
    if mpt.key.get() != index || mpt.flags.status() != MptStatus::VALID {
        return Err(KeyFault::Invalid(key));
    }
    Ok(burst.keys.insert(key, changes, Entry::of(&mpt)))
}

/// Where in its slot an entry that work requests change has the count of its changes: in the part behind the
/// entry, which is the hardware's own. Odd while a change is under way.
const CHANGES_OFFSET: u64 = 0x40;

/// How often an entry that keeps changing is read before it is taken for invalid.
const READ_TRIES: u32 = 1000;

/// Reads the MPT entry of an index as it was at one moment.
fn read_mpt_whole(burst: &Burst, index: u32) -> Result<Option<MptEntry>, IcmFault> {
    let entry = read_mpt(burst, index)?;
    if entry.flags.region() && !entry.pd.fast_register() {
        // Work requests change no more than its status.
        return Ok(Some(entry));
    }
    let count = mpt_addr(burst, index) + CHANGES_OFFSET;
    for _ in 0..READ_TRIES {
        let before = burst.icm_load_u32(count, Ordering::Acquire)?;
        let entry = read_mpt(burst, index)?;
        fence(Ordering::Acquire);
        if before & 1 == 0 && burst.icm_load_u32(count, Ordering::Relaxed)? == before {
            return Ok(Some(entry));
        }
        std::hint::spin_loop();
    }
    Ok(None)
}

/// log2 of the smallest page that an MTT entry can name, and of the largest.
const PAGE_SHIFT_MIN: u8 = 9;
const PAGE_SHIFT_MAX: u8 = 40;

/// A checked range of a memory region, to be walked page by page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    va: u64,
    left: u64,
    addressing: Addressing,
    access: Access,
    /// The pages last looked up.
    run: Run,
    /// Where the key is in the burst's cache.
    place: Place,
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

/// Size of an MTT entry.
const MTT_BYTES: u64 = size_of::<MttEntry>() as u64;
/// MTT entries that are read at once.
const BATCH: usize = 32;

/// Checks an access of `len` bytes at `va` through `key`.
///
/// # Errors
/// The first check of the hardware's order that fails.
#[inline]
pub(crate) fn check(
    burst: &Burst,
    key: u32,
    user: User,
    va: u64,
    len: u64,
    rights: Rights,
) -> Result<Region, KeyFault> {
    let remembered = remembered(burst, key)?;
    let entry = remembered.entry.get();
    entry.check_owner(key, user)?;
    // A window has no local rights, so its key is of no use here.
    if !rights.granted(entry.flags) {
        return Err(KeyFault::Rights(key));
    }
    entry.check_bounds(key, va, len)?;
    let addressing = entry.addressing;
    if matches!(addressing, Addressing::Invalid) {
        return Err(KeyFault::Invalid(key));
    }
    let (place, run) = (remembered.place.get(), remembered.run.get());
    Ok(Region { va, left: len, addressing, access: rights.dma(), run, place })
}

/// log2 of the page size of an entry that isn't physical.
fn page_shift(mpt: &MptEntry) -> Option<u8> {
    let shift = u8::try_from(mpt.log2_page.number()).ok()?;
    (PAGE_SHIFT_MIN..=PAGE_SHIFT_MAX).contains(&shift).then_some(shift)
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
    #[inline]
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
    #[inline]
    fn translate(&mut self, burst: &Burst, want: u64) -> Result<(u64, u64), KeyFault> {
        let Addressing::Pages(table, shift) = self.addressing else { return Ok((self.va, want)) };
        let mut deep = self.va.wrapping_sub(self.run.va);
        if deep >= self.run.len {
            self.run = self.look_up(burst, table, shift, want)?;
            burst.keys.set_run(self.place, self.run);
            deep = self.va.wrapping_sub(self.run.va);
        }
        Ok((self.run.bus.wrapping_add(deep), self.run.len - deep))
    }

    /// Looks up the page of the next byte, and those of the bytes behind it that follow it on the bus.
    #[cold]
    fn look_up(&self, burst: &Burst, table: u64, shift: u8, want: u64) -> Result<Run, KeyFault> {
        let size = 1u64 << shift;
        let inside = self.va & (size - 1);
        let first = table.wrapping_add((self.va >> shift).wrapping_mul(MTT_BYTES));
        let bus = mtt(burst, first, shift).ok_or(KeyFault::NotPresent(self.va))?;
        let mut run = Run { va: self.va - inside, bus, len: size };
        let mut wanted = inside.saturating_add(want).div_ceil(size) - 1;
        let mut next = burst.tables.mtt_base.wrapping_add(first.wrapping_add(MTT_BYTES) & !7);
        while wanted != 0 {
            let mut more = [MttEntry::new_zeroed(); BATCH];
            let count = usize::try_from(wanted).unwrap_or(BATCH).min(BATCH);
            let more = &mut more[..count];
            if burst.icm_read(next, more.as_mut_bytes()).is_err() || !run.extend(more, size) {
                break;
            }
            next = next.wrapping_add(MTT_BYTES * count as u64);
            wanted -= count as u64;
        }
        Ok(run)
    }
}

impl Run {
    /// Takes in the pages of entries as far as they follow on the bus. Says whether all did.
    fn extend(&mut self, entries: &[MttEntry], page: u64) -> bool {
        for entry in entries {
            let address = entry.address() & !(page - 1);
            if !entry.is_present() || address != self.bus.wrapping_add(self.len) {
                return false;
            }
            self.len += page;
        }
        true
    }
}
