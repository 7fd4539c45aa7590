//! Memory regions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlx4_pci::{DmaBuffer, MemoryError};
use mlx4_queue::request::Sge;
use mlx4_wire::cmd::misc::Hw2SwOp;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::mpt::{MptEntry, MptFlags, MptPd, MptStatus, Number21, mpt_index_to_key};
use mlx4_wire::{U32, U64};
use zerocopy::FromZeros;

use crate::claim::{Claim, give_back};
use crate::cmd::Command;
use crate::error::{Error, Result};
use crate::icm::{Kind, MttRange, Pages};
use crate::object::{Live, Pd};
use crate::shared::Shared;

/// log2 of the smallest and the greatest page.
const LOG2_PAGES: std::ops::RangeInclusive<u8> = 12..=31;

/// What may be done with a region, besides local reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Local writes, by receives and reads.
    pub local_write: bool,
    /// RDMA reads from the other end.
    pub remote_read: bool,
    /// RDMA writes from the other end.
    pub remote_write: bool,
    /// Atomics from the other end.
    pub remote_atomic: bool,
}

impl Access {
    /// Local reads and writes.
    pub const LOCAL: Self =
        Self { local_write: true, remote_read: false, remote_write: false, remote_atomic: false };

    /// Everything.
    pub const ALL: Self =
        Self { local_write: true, remote_read: true, remote_write: true, remote_atomic: true };
}

/// Whose memory a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// This driver's: the entry is as the stock driver makes those of the kernel.
    Driver,
    /// Anybody's, a guest's too: no work request may take the region away, and what the family leaves undefined
    /// is off.
    Anybody,
}

/// What a region shall be.
#[derive(Clone, Copy, Debug)]
pub struct RegionConfig<'a> {
    /// Its domain.
    pub pd: &'a Pd,
    /// Virtual address of the first byte, as work requests name it. Where it lies in its page is where the
    /// memory lies in its.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Bus addresses of the pages, each a multiple of the page's size.
    pub pages: &'a [u64],
    /// log2 of the page's size in bytes, 12 to 31.
    pub log2_page: u8,
    /// What may be done with it.
    pub access: Access,
    /// Windows may be bound to it.
    pub bind: bool,
}

/// What is known of a region by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its key, with the variable byte.
    pub key: u32,
    /// Number of its domain.
    pub pd: u32,
    /// Virtual address of the first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// What may be done with it.
    pub access: Access,
}

/// A memory region. The memory stays the caller's, who keeps it mapped until the region is destroyed.
#[derive(Debug)]
pub struct Region {
    live: Live,
    _pd: Pd,
    key: u32,
    mtt: MttRange,
}

impl Region {
    pub(crate) fn new(shared: &Arc<Shared>, config: &RegionConfig<'_>) -> Result<Self> {
        check(config)?;
        Self::over(shared, config, &Pages::List(config.pages), Owner::Anybody)
    }

    fn over(
        shared: &Arc<Shared>,
        config: &RegionConfig<'_>,
        pages: &Pages<'_>,
        owner: Owner,
    ) -> Result<Self> {
        let claim = Claim::new(shared, (Kind::Mpt, shared.numbers.mpts.take()?), pages, 0)?;
        let index = claim.number();
        let entry = entry(config, new_key(shared, index), claim.mtt(), owner);
        let key = mpt_index_to_key(entry.key.get());
        let (live, mtt) = claim.hand_over(shared, "memory region", Opcode::SW2HW_MPT, Ok(entry))?;
        let info = RegionInfo {
            key,
            pd: config.pd.number(),
            address: config.address,
            length: config.length,
            access: config.access,
        };
        shared.regions.insert(index, Arc::new(info));
        Ok(Self { live, _pd: config.pd.clone(), key, mtt })
    }

    /// Key for this side's work requests.
    pub fn lkey(&self) -> u32 {
        self.key
    }

    /// Key for the other end.
    pub fn rkey(&self) -> u32 {
        self.key
    }

    /// Takes the region back: when this returns, the device doesn't use its memory any more.
    ///
    /// # Errors
    /// The device doesn't give it back, or windows are bound to it: for those that may be see
    /// [`Region::destroy_unbound`]. The memory must stay mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        self.destroy_unbound()?.map_or(Ok(()), |_lost| Err(Error::Used("memory region")))
    }

    /// As [`Region::destroy`]; but if windows are bound to it, it stays as it is, and is returned.
    ///
    /// # Errors
    /// The device doesn't give it back. The memory must stay mapped until the next reset.
    pub fn destroy_unbound(self) -> Result<Option<Self>> {
        let shared = Arc::clone(&self.live.shared);
        let index = self.live.number();
        match take_back(&shared, index) {
            Err(error) if error.status() == Some(Status::REG_BOUND) => return Ok(Some(self)),
            other => other?,
        }
        shared.regions.remove(index);
        let given_back = give_back(&shared, Kind::Mpt, index, self.mtt);
        self.live.end();
        given_back.map(|()| None)
    }
}

/// Takes a region or window from the device.
pub(crate) fn take_back(shared: &Shared, index: u32) -> Result<()> {
    let command = Command::new(Opcode::HW2SW_MPT, index);
    shared.commands.run(&Command { opmod: Hw2SwOp::NO_OUTPUT.0, ..command })?;
    Ok(())
}

/// The key of a new region or window, in index form: it isn't that of the one that had the number before.
pub(crate) fn new_key(shared: &Shared, index: u32) -> u32 {
    let variant = shared.key_variant.fetch_add(1, Ordering::Relaxed);
    index | u32::from(variant) << 24
}

fn check(config: &RegionConfig<'_>) -> Result<()> {
    if !LOG2_PAGES.contains(&config.log2_page) {
        return Err(Error::argument("log2 of the page size", config.log2_page));
    }
    let page = 1u64 << config.log2_page;
    let inside = config.address & (page - 1);
    if config.length == 0 || config.address.checked_add(config.length - 1).is_none() {
        return Err(Error::argument("length of a region", config.length));
    }
    let bytes = inside.checked_add(config.length).ok_or(Error::argument("region length", config.length))?;
    if bytes.div_ceil(page) != config.pages.len() as u64 {
        return Err(Error::argument("number of pages", config.pages.len() as u64));
    }
    match config.pages.iter().find(|address| !address.is_multiple_of(page)) {
        Some(address) => Err(Error::argument("page address", *address)),
        None => Ok(()),
    }
}

fn entry(config: &RegionConfig<'_>, key: u32, mtt: &MttRange, owner: Owner) -> MptEntry {
    let own = owner == Owner::Driver;
    let mut entry = MptEntry::new_zeroed();
    entry.flags = MptFlags::new()
        .with_mio(own)
        .with_status(MptStatus::SOFTWARE)
        .with_region(true)
        .with_bind(config.bind)
        .with_local_read(true)
        .with_local_write(config.access.local_write)
        .with_remote_read(config.access.remote_read)
        .with_remote_write(config.access.remote_write)
        .with_remote_atomic(config.access.remote_atomic);
    entry.key = U32::new(key);
    entry.pd = MptPd::new().with_pd(config.pd.number()).with_invalidate(own).with_remote_invalidate(own);
    entry.start = U64::new(config.address);
    entry.length = U64::new(config.length);
    entry.mtt_address = U64::new(mtt.offset());
    entry.log2_page = Number21::new().with_number(config.log2_page.into());
    entry
}

/// Memory of the driver's own that is registered as a region, for messages of the daemon itself.
#[derive(Debug)]
pub struct RegisteredMemory {
    region: Region,
    buffer: DmaBuffer,
}

impl RegisteredMemory {
    pub(crate) fn new(shared: &Arc<Shared>, pd: &Pd, bytes: usize, access: Access) -> Result<Self> {
        let buffer = shared.device.dma().allocate(bytes, 1 << LOG2_PAGES.start())?;
        let log2_page = *LOG2_PAGES.start();
        let count = u32::try_from(buffer.len() >> log2_page)
            .map_err(|_| Error::argument("bytes of registered memory", bytes as u64))?;
        let pages = Pages::Run { first: buffer.iova(), count, log2_page };
        let (address, length) = (buffer.iova(), buffer.len() as u64);
        let config = RegionConfig { pd, address, length, pages: &[], log2_page, access, bind: false };
        match Region::over(shared, &config, &pages, Owner::Driver) {
            Ok(region) => Ok(Self { region, buffer }),
            Err(error) => {
                if !error.leaves_open() {
                    buffer.release()?;
                }
                Err(error)
            }
        }
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The memory.
    pub fn buffer(&self) -> &DmaBuffer {
        &self.buffer
    }

    /// Virtual address of an offset, as work requests name it.
    pub fn address(&self, offset: usize) -> u64 {
        self.buffer.iova() + offset as u64
    }

    /// A piece for a work request. It isn't checked to be inside: the device does.
    pub fn piece(&self, offset: usize, length: u32) -> Sge {
        Sge { address: self.address(offset), length, lkey: self.region.lkey() }
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), MemoryError> {
        self.buffer.read(offset, to)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), MemoryError> {
        self.buffer.write(offset, from)
    }

    /// Takes the region back and frees the memory.
    ///
    /// # Errors
    /// The device doesn't give it back; the memory stays mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        self.region.destroy()?;
        Ok(self.buffer.release()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::testing::Bench;

    /// Hostile guests try what these bits would allow: they must be off whatever is asked for.
    #[test]
    fn region_of_anybody_can_not_be_invalidated_by_work_requests() {
        let bench = Bench::new(&Config { ports: false, ..Config::default() });
        let shared = &bench.hca.shared;
        let (pd, memory) = (bench.hca.pd().unwrap(), shared.device.dma().allocate(4096, 4096).unwrap());
        let pages = [memory.iova()];
        let config = RegionConfig {
            pd: &pd,
            address: 0,
            length: 4096,
            pages: &pages,
            log2_page: 12,
            access: Access::ALL,
            bind: false,
        };
        let asked = |region: &Region| -> MptEntry {
            shared.commands.query(Opcode::QUERY_MPT, region.live.number()).unwrap()
        };
        let protected = |entry: &MptEntry| {
            let flags = entry.flags;
            [flags.mio(), flags.no_snoop(), flags.atc_request(), flags.bind(), flags.physical()] == [false; 5]
                && !entry.pd.invalidate()
                && !entry.pd.remote_invalidate()
        };
        let region = bench.hca.region(&config).unwrap();
        assert!(protected(&asked(&region)), "{:?}", asked(&region));
        let own = bench.hca.memory(&pd, 4096, Access::ALL).unwrap();
        assert!(!protected(&asked(own.region())), "the test sees a difference");
        own.destroy().unwrap();
        region.destroy().unwrap();
        memory.release().unwrap();
        bench.hca.close().unwrap();
    }
}
