//! Changes of memory keys by work requests: windows are bound, keys invalidated, regions registered.
//!
//! A window that is bound has a copy of its region's translation, so an access through it looks at nothing
//! else; the region counts its windows and can't be taken back before them. The window keeps the region's
//! key in index form.
//!
//! Commands and the engines of several HCAs change entries, so each change is made under one lock of the
//! HCA. Readers take no lock: they see from a count behind the entry that it changes.

use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError};

use mlx4_wire::ctx::mpt::{MptEntry, MptFlags, MptStatus, Number21, key_to_mpt_index};
use mlx4_wire::ctx::mtt::{MTT_ENTRY_BYTES, MttEntry};
use mlx4_wire::wqe::{BindAccess, BindSeg, FastRegisterSeg, RegisterAccess};
use mlx4_wire::{Number24, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::{CHANGES_OFFSET, Entry, KeyFault, User, mpt_addr, page_shift, read_mpt, write_mpt};
use crate::hca::burst::{Burst, IcmFault};
use crate::hca::running::Running;

/// Bits of an index-form key that name the slot; the others vary from use to use.
const INDEX_BITS: u32 = Number24::MAX;

/// Pages that one fast register work request can name: Linux lays the list out in one page (511).
const MAX_FAST_REGISTER_PAGES: u64 = 511;
/// log2 of the smallest page of a fast register work request, and of the largest.
const FAST_REGISTER_PAGES: std::ops::RangeInclusive<u32> = 12..=31;
/// Alignment of its page list in bytes.
const PAGE_LIST_ALIGN: u64 = 64;

/// Who asks to invalidate a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A local invalidate work request.
    Local,
    /// A SEND with invalidate from the other end.
    Remote,
}

/// The right to change the MPT entries of an HCA.
pub(crate) struct Changes<'a> {
    burst: &'a Burst,
    _lock: MutexGuard<'a, ()>,
}

impl<'a> Changes<'a> {
    /// Waits for others who change entries, and keeps them out.
    pub(crate) fn begin(burst: &'a Burst, running: &'a Running) -> Self {
        let lock = running.mpt_changes.lock().unwrap_or_else(PoisonError::into_inner);
        Self { burst, _lock: lock }
    }

    /// Reads an entry.
    pub(crate) fn read(&self, index: u32) -> Result<MptEntry, IcmFault> {
        read_mpt(self.burst, index)
    }

    /// Writes an entry, so that readers see the old one, the new one, or that it changes.
    pub(crate) fn write(&self, index: u32, entry: &MptEntry) -> Result<(), IcmFault> {
        let count = mpt_addr(self.burst, index) + CHANGES_OFFSET;
        let odd = self.burst.icm_load_u32(count, Ordering::Relaxed)? | 1;
        self.burst.icm_store_u32(count, odd, Ordering::Relaxed)?;
        fence(Ordering::Release);
        let written = write_mpt(self.burst, index, entry);
        self.burst.icm_store_u32(count, odd.wrapping_add(1), Ordering::Release)?;
        written
    }

    /// Takes a window off the region that it is bound to, if it is; its entry is the caller's to write.
    pub(crate) fn release(&self, window: &mut MptEntry) -> Result<(), IcmFault> {
        let lkey = std::mem::take(&mut window.lkey).get();
        if window.flags.region() || lkey == 0 {
            return Ok(());
        }
        let mut region = self.read(lkey)?;
        if region.flags.region() && region.key.get() == lkey {
            region.window_count = Number24::wrapping(region.window_count.number().saturating_sub(1));
            self.write(lkey, &region)?;
        }
        Ok(())
    }

    /// Binds a window to a region, or unbinds it if the length is 0. The window gets the key of the request.
    ///
    /// # Errors
    /// What was wrong with window or region; nothing has changed.
    pub(crate) fn bind(&self, user: User, request: &BindSeg) -> Result<(), KeyFault> {
        let key = request.new_rkey.get();
        let mut window = self.window(key, user, request)?;
        if request.length.get() == 0 {
            self.release(&mut window).map_err(|_| KeyFault::Invalid(key))?;
            unbind(&mut window);
        } else {
            let region = self.bindable(user, request)?;
            let translation = Translation::of(&region, request)?;
            self.release(&mut window).map_err(|_| KeyFault::Invalid(key))?;
            self.count_window(region.key.get()).map_err(|_| KeyFault::Invalid(request.lkey.get()))?;
            translation.enter(&mut window);
            window.lkey = region.key;
            window.start = request.start;
            window.length = request.length;
            set_window_rights(&mut window.flags, request.access);
            window.flags.set_status(MptStatus::VALID);
            if request.kind.type_2() {
                window.qp.set_qpn(user.qpn & Number24::MAX);
            }
        }
        window.key = U32::new(key_to_mpt_index(key));
        self.write(key_to_mpt_index(key), &window).map_err(|_| KeyFault::Invalid(key))
    }

    /// The window that a bind request is about. One of type 2 is free before it is bound, and unbound only
    /// through the queue pair that it is bound to.
    fn window(&self, key: u32, user: User, request: &BindSeg) -> Result<MptEntry, KeyFault> {
        let window = self.of_slot(key)?;
        let type_2 = request.kind.type_2();
        if window.flags.region() || window.qp.bound_to_qp() != type_2 || request.kind.zero_based() {
            return Err(KeyFault::Rights(key));
        }
        let unbind = request.length.get() == 0;
        match window.flags.status() {
            MptStatus::VALID if !type_2 || unbind => Entry::of(&window).check_owner(key, user)?,
            MptStatus::FREE if type_2 => check_domain(&window, key, user)?,
            _ => return Err(KeyFault::State(key)),
        }
        Ok(window)
    }

    /// The region that a window shall be bound to. A window that is written through needs a region that may
    /// be written locally (IBTA vol. 1, 10.6.6.2).
    fn bindable(&self, user: User, request: &BindSeg) -> Result<MptEntry, KeyFault> {
        let key = request.lkey.get();
        let region = self.of_key(key)?;
        if region.flags.status() != MptStatus::VALID {
            return Err(KeyFault::Invalid(key));
        }
        Entry::of(&region).check_owner(key, user)?;
        let (access, flags) = (request.access, region.flags);
        let changes = access.remote_write() || access.remote_atomic();
        let reads = access.remote_read() || access.remote_atomic();
        let granted = (!changes || flags.local_write()) && (!reads || flags.local_read());
        if !flags.region() || !flags.bind() || !granted {
            return Err(KeyFault::Rights(key));
        }
        if region.window_count.number() == Number24::MAX {
            return Err(KeyFault::Bound(key));
        }
        Entry::of(&region).check_bounds(key, request.start.get(), request.length.get())?;
        Ok(region)
    }

    fn count_window(&self, index: u32) -> Result<(), IcmFault> {
        let mut region = self.read(index)?;
        region.window_count = Number24::wrapping(region.window_count.number() + 1);
        self.write(index, &region)
    }

    /// Frees a key: a region can be registered anew, a window of type 2 bound anew. A free key may be freed
    /// locally again.
    ///
    /// # Errors
    /// Why the key can't be invalidated by this user; nothing has changed.
    pub(crate) fn invalidate(&self, user: User, key: u32, by: By) -> Result<(), KeyFault> {
        let mut entry = self.of_key(key)?;
        match (entry.flags.status(), by) {
            (MptStatus::VALID, _) => Entry::of(&entry).check_owner(key, user)?,
            (MptStatus::FREE, By::Local) => check_domain(&entry, key, user)?,
            _ => return Err(KeyFault::Invalid(key)),
        }
        let allowed = match by {
            By::Local => entry.pd.invalidate(),
            By::Remote => entry.pd.remote_invalidate(),
        };
        let window_1 = !entry.flags.region() && !entry.qp.bound_to_qp();
        if !allowed || window_1 {
            return Err(KeyFault::Rights(key));
        }
        if entry.flags.region() && entry.window_count.number() != 0 {
            return Err(KeyFault::Bound(key));
        }
        if !entry.flags.region() {
            self.release(&mut entry).map_err(|_| KeyFault::Invalid(key))?;
            unbind(&mut entry);
        }
        entry.flags.set_status(MptStatus::FREE);
        self.write(key_to_mpt_index(key), &entry).map_err(|_| KeyFault::Invalid(key))
    }

    /// Registers pages under a key that is free: the list is copied to the region's MTT entries.
    ///
    /// # Errors
    /// Why the key can't be registered so by this user. The key is as before.
    pub(crate) fn fast_register(&self, user: User, request: &FastRegisterSeg) -> Result<(), KeyFault> {
        let key = request.key.get();
        let mut entry = self.of_slot(key)?;
        if !entry.flags.region() || !entry.pd.fast_register() {
            return Err(KeyFault::Rights(key));
        }
        if entry.flags.status() != MptStatus::FREE {
            return Err(KeyFault::State(key));
        }
        check_domain(&entry, key, user)?;
        let access = request.access;
        let changes = access.remote_write() || access.remote_atomic();
        let remote = changes || access.remote_read();
        if (remote && !entry.pd.remote_access_enable()) || (changes && !access.local_write()) {
            return Err(KeyFault::Rights(key));
        }
        self.copy_page_list(&entry, request)?;
        set_region_rights(&mut entry.flags, access);
        entry.key = U32::new(key_to_mpt_index(key));
        entry.start = request.start;
        entry.length = request.length;
        entry.log2_page = Number21::new().with_number(request.log2_page.get());
        entry.options.set_length_64(false);
        entry.flags.set_physical(false);
        entry.flags.set_status(MptStatus::VALID);
        self.write(key_to_mpt_index(key), &entry).map_err(|_| KeyFault::Invalid(key))
    }

    fn copy_page_list(&self, entry: &MptEntry, request: &FastRegisterSeg) -> Result<(), KeyFault> {
        let (key, log2_page) = (request.key.get(), request.log2_page.get());
        let refused = |pages| KeyFault::Pages { key, pages, log2_page };
        let (start, length) = (request.start.get(), request.length.get());
        if length == 0 || start.checked_add(length - 1).is_none() {
            return Err(KeyFault::Bounds { key, va: start, len: length });
        }
        if !FAST_REGISTER_PAGES.contains(&log2_page)
            || !request.page_list.get().is_multiple_of(PAGE_LIST_ALIGN)
        {
            return Err(refused(0));
        }
        let pages = ((start + (length - 1)) >> log2_page) - (start >> log2_page) + 1;
        if pages > MAX_FAST_REGISTER_PAGES.min(entry.mtt_entries.get().into()) {
            return Err(refused(pages));
        }
        for page in 0..pages {
            let mut one = MttEntry::new_zeroed();
            self.burst.dma.read(request.page_list.get().wrapping_add(8 * page), one.as_mut_bytes())?;
            let to = entry.mtt_base().wrapping_add(MTT_ENTRY_BYTES * page);
            let mtt = self.burst.tables.mtt_base.wrapping_add(to);
            self.burst.icm_write(mtt, one.as_bytes()).map_err(|_| KeyFault::NotPresent(start))?;
        }
        Ok(())
    }

    /// The entry of a key that matches in all its bits.
    fn of_key(&self, key: u32) -> Result<MptEntry, KeyFault> {
        let entry = self.read(key_to_mpt_index(key)).map_err(|_| KeyFault::Invalid(key))?;
        if entry.key.get() == key_to_mpt_index(key) { Ok(entry) } else { Err(KeyFault::Invalid(key)) }
    }

    /// The entry of a key that may have another variable byte.
    fn of_slot(&self, key: u32) -> Result<MptEntry, KeyFault> {
        let index = key_to_mpt_index(key);
        let entry = self.read(index).map_err(|_| KeyFault::Invalid(key))?;
        let same = (entry.key.get() ^ index) & INDEX_BITS == 0;
        if same { Ok(entry) } else { Err(KeyFault::Invalid(key)) }
    }
}

fn check_domain(entry: &MptEntry, key: u32, user: User) -> Result<(), KeyFault> {
    let region = entry.pd.pd();
    if region == user.pd { Ok(()) } else { Err(KeyFault::Domain { key, region, user: user.pd }) }
}

/// How a window finds its pages.
struct Translation {
    physical: bool,
    mtt_address: u64,
    log2_page: Number21,
}

impl Translation {
    /// That of a region, from the page on in which the window starts.
    fn of(region: &MptEntry, request: &BindSeg) -> Result<Self, KeyFault> {
        let (physical, log2_page) = (region.flags.physical(), region.log2_page);
        if physical {
            return Ok(Self { physical, mtt_address: 0, log2_page });
        }
        let shift = page_shift(region).ok_or(KeyFault::Invalid(request.lkey.get()))?;
        let pages = (request.start.get() >> shift).wrapping_sub(region.start.get() >> shift);
        let mtt_address = region.mtt_base().wrapping_add(pages.wrapping_mul(MTT_ENTRY_BYTES));
        Ok(Self { physical, mtt_address, log2_page })
    }

    fn enter(self, window: &mut MptEntry) {
        window.flags.set_physical(self.physical);
        window.mtt_address = U64::new(self.mtt_address);
        window.log2_page = self.log2_page;
    }
}

/// Takes everything from a window that a bind gave it. One of type 2 becomes free.
fn unbind(window: &mut MptEntry) {
    set_window_rights(&mut window.flags, BindAccess::new());
    (window.start, window.length) = (U64::ZERO, U64::ZERO);
    if window.qp.bound_to_qp() {
        window.qp.set_qpn(0);
        window.flags.set_status(MptStatus::FREE);
    }
}

fn set_window_rights(flags: &mut MptFlags, access: BindAccess) {
    flags.set_remote_read(access.remote_read());
    flags.set_remote_write(access.remote_write());
    flags.set_remote_atomic(access.remote_atomic());
}

fn set_region_rights(flags: &mut MptFlags, access: RegisterAccess) {
    flags.set_local_read(access.local_read());
    flags.set_local_write(access.local_write());
    flags.set_remote_read(access.remote_read());
    flags.set_remote_write(access.remote_write());
    flags.set_remote_atomic(access.remote_atomic());
}
