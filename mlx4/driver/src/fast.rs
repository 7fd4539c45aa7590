//! Regions that work requests register: for the driver's own use. Whoever may do so names memory by its bus
//! addresses.

use std::sync::Arc;

use mlx4_pci::DmaBuffer;
use mlx4_queue::request::{Operation, Register};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::ctx::mpt::{MptEntry, MptFlags, MptPd, MptStatus, mpt_index_to_key};
use mlx4_wire::ctx::mtt::MttEntry;
use mlx4_wire::wqe::RegisterAccess;
use mlx4_wire::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::claim::{Claim, give_back};
use crate::error::{Error, Result};
use crate::icm::{Kind, MttRange, Pages};
use crate::object::{Live, Pd};
use crate::region::{Access, new_key, take_back};
use crate::shared::Shared;

/// Most pages of a region, as the stock driver has it.
pub const MAX_FAST_PAGES: u32 = 511;

/// Alignment of a list of pages in bytes: a whole page, so that no list lies in two.
const LIST_ALIGN: u64 = 4096;

/// A region that a work request registers, and another one invalidates, again and again.
#[derive(Debug)]
pub struct FastRegion {
    live: Live,
    _pd: Pd,
    key: u32,
    mtt: MttRange,
    list: DmaBuffer,
    most: u32,
}

impl FastRegion {
    /// A region for at most so many pages, which isn't registered yet.
    pub(crate) fn new(shared: &Arc<Shared>, pd: &Pd, most: u32) -> Result<Self> {
        if !shared.caps.has_fast_registration || most == 0 || most > MAX_FAST_PAGES {
            return Err(Error::argument("pages of a fast-register region", most));
        }
        let list = shared.device.dma().allocate(most as usize * size_of::<MttEntry>(), LIST_ALIGN)?;
        match Self::over(shared, pd, most) {
            Ok((live, mtt, key)) => Ok(Self { live, _pd: pd.clone(), key, mtt, list, most }),
            Err(error) => {
                // The device has never heard of the list.
                list.release()?;
                Err(error)
            }
        }
    }

    fn over(shared: &Arc<Shared>, pd: &Pd, most: u32) -> Result<(Live, MttRange, u32)> {
        let number = shared.numbers.mpts.take()?;
        // Entries that are not present until a request writes them.
        let claim = Claim::new(shared, (Kind::Mpt, number), &Pages::List(&[]), most)?;
        let key = new_key(shared, claim.number());
        let entry = entry(pd, key, claim.mtt(), most);
        let (live, mtt) = claim.hand_over(shared, "fast-register region", Opcode::SW2HW_MPT, Ok(entry))?;
        Ok((live, mtt, mpt_index_to_key(key)))
    }

    /// Its key, since the last [`FastRegion::register`].
    pub fn key(&self) -> u32 {
        self.key
    }

    /// The request that registers pages of `1 << log2_page` bytes: post it to a queue pair of the same domain
    /// that has the right. The region must not be registered, nor another such request be under way: its key
    /// changes, and the list of its pages.
    ///
    /// # Errors
    /// The pages aren't those of the range, or too many.
    pub fn register(
        &mut self,
        access: Access,
        (address, length): (u64, u64),
        pages: &[u64],
        log2_page: u8,
    ) -> Result<Operation> {
        self.check((address, length), pages, log2_page)?;
        for (index, page) in pages.iter().enumerate() {
            self.list.write(index * size_of::<MttEntry>(), MttEntry::present(*page).as_bytes())?;
        }
        self.key = self.key & !0xff | self.key.wrapping_add(1) & 0xff;
        let access = RegisterAccess::new()
            .with_local_read(true)
            .with_local_write(access.local_write)
            .with_remote_read(access.remote_read)
            .with_remote_write(access.remote_write)
            .with_remote_atomic(access.remote_atomic);
        let (key, page_list) = (self.key, self.list.iova());
        Ok(Operation::FastRegister(Register { access, key, page_list, address, length, log2_page }))
    }

    /// The request that invalidates its key.
    pub fn invalidate(&self) -> Operation {
        Operation::LocalInvalidate(self.key)
    }

    fn check(&self, (address, length): (u64, u64), pages: &[u64], log2_page: u8) -> Result<()> {
        if !(12..=31).contains(&log2_page) {
            return Err(Error::argument("log2 of the page size", log2_page));
        }
        let page = 1u64 << log2_page;
        let end = (address & (page - 1)).checked_add(length);
        let needed = end.filter(|_| length != 0 && address.checked_add(length - 1).is_some());
        let given = pages.len() as u64;
        if needed.map(|bytes| bytes.div_ceil(page)) != Some(given) || given > self.most.into() {
            return Err(Error::argument("number of pages", given));
        }
        match pages.iter().find(|address| !address.is_multiple_of(page)) {
            Some(address) => Err(Error::argument("page address", *address)),
            None => Ok(()),
        }
    }

    /// Takes the region back, registered or not: when this returns, the device doesn't use its memory any more.
    ///
    /// # Errors
    /// The device doesn't give it back. The memory must stay mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        let shared = Arc::clone(&self.live.shared);
        let index = self.live.number();
        take_back(&shared, index)?;
        let given_back = give_back(&shared, Kind::Mpt, index, self.mtt);
        self.live.end();
        self.list.release()?;
        given_back
    }
}

/// As the stock driver has it: size, range and rights come with the request.
fn entry(pd: &Pd, key: u32, mtt: &MttRange, most: u32) -> MptEntry {
    let mut entry = MptEntry::new_zeroed();
    entry.flags = MptFlags::new().with_status(MptStatus::FREE).with_mio(true).with_region(true);
    entry.key = U32::new(key);
    entry.pd = MptPd::new()
        .with_pd(pd.number())
        .with_invalidate(true)
        .with_remote_invalidate(true)
        .with_fast_register(true)
        .with_remote_access_enable(true);
    entry.mtt_address = U64::new(mtt.offset());
    entry.mtt_entries = U32::new(most);
    entry
}
