//! Memory regions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_rdma::request::memory::{DeregMr, MrRegistered, RegMr, ReregFlags, ReregMr};
use virtio_rdma::{Reserved, U32, U64};

use crate::access::Access;
use crate::arena::{Block, PAGE};
use crate::device::Open;
use crate::error::{Error, Result};
use crate::memory::Span;
use crate::pd::{Domain, Pd};
use crate::wr::Sge;

/// The region, which windows that are bound to it keep.
#[derive(Debug)]
pub(crate) struct Region {
    domain: Arc<Domain>,
    memory: Block,
    handle: u32,
    lkey: u32,
    rkey: u32,
    ended: bool,
}

impl Region {
    pub(crate) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let body = DeregMr { mr: U32::new(self.handle), reserved: Reserved::ZERO };
        self.domain.open().end(&body, &[&self.memory])
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}

/// What changes of a memory region ([`Mr::rereg`]); what is `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rereg<'a> {
    /// Its protection domain.
    pub pd: Option<&'a Pd>,
    /// Its rights.
    pub access: Option<Access>,
    /// Its memory: so many new, zeroed bytes. The old memory is freed.
    pub bytes: Option<usize>,
}

/// A memory region (`ibv_mr`) and its memory.
///
/// The HCA, and through it whoever has the key, may read and write the memory at any time, so it is reached by
/// copies only. A copy isn't atomic; [`Mr::load_u64`] and [`Mr::store_u64`] are.
#[derive(Debug)]
pub struct Mr(Arc<Region>);

/// Memory for a region.
fn memory(open: &Open, bytes: usize) -> Result<Block> {
    if bytes == 0 {
        return Err(Error::Invalid("a memory region has at least one byte".into()));
    }
    let most = open.config().max_registered_bytes.get().min(open.attributes().max_mr_size.get());
    if bytes as u64 > most {
        return Err(Error::NoMemory(format!(
            "{bytes} bytes are more than the {most} that may be registered"
        )));
    }
    open.arena().allocate(bytes, PAGE)
}

impl Mr {
    pub(crate) fn new(domain: &Arc<Domain>, bytes: usize, access: Access) -> Result<Self> {
        let open = domain.open();
        open.loss().check()?;
        let memory = memory(open, bytes)?;
        let body = RegMr {
            pd: U32::new(domain.handle()),
            access: access.flags(),
            iova: U64::new(memory.span().address()),
            length: U64::new(bytes as u64),
        };
        let MrRegistered { mr, lkey, rkey, .. } = open.make(&body, &[&memory])?;
        let (handle, lkey, rkey) = (mr.get(), lkey.get(), rkey.get());
        Ok(Self(Arc::new(Region { domain: Arc::clone(domain), memory, handle, lkey, rkey, ended: false })))
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.0
    }

    fn span(&self) -> &Span {
        self.0.memory.span()
    }

    /// Changes it (`ibv_rereg_mr`). Its keys and its address may be others then. Work requests that use it must be
    /// done.
    ///
    /// # Errors
    /// Nothing changes, rights that contradict each other, a domain of another context, or no bytes (`EINVAL`); a
    /// window is bound to it, or was and may still be (`EBUSY`): nothing has changed then. There is no more memory,
    /// or too much is registered (`ENOMEM`); the HCA failed at it, and the region can only be dropped (`EIO`); the
    /// device is lost.
    pub fn rereg(&mut self, change: &Rereg<'_>) -> Result<()> {
        let region = Arc::get_mut(&mut self.0).ok_or(Error::Busy("the memory region"))?;
        let open = Arc::clone(region.domain.open());
        open.loss().check()?;
        if change.pd.is_some_and(|pd| !Arc::ptr_eq(pd.domain().open(), &open)) {
            return Err(Error::Invalid("the protection domain is of another context".into()));
        }
        let new = change.bytes.map(|bytes| memory(&open, bytes)).transpose()?;
        let body = rereg(region.handle, change, new.as_ref());
        // If it is unsure what the HCA did it may use either memory.
        let blocks: Vec<&Block> = new.iter().collect();
        let changed = open.keep_if_unsure(open.make(&body, &blocks), &[&region.memory])?;
        (region.lkey, region.rkey) = (changed.lkey.get(), changed.rkey.get());
        if let Some(pd) = change.pd {
            region.domain = Arc::clone(pd.domain());
        }
        if let Some(new) = new {
            region.memory = new;
        }
        Ok(())
    }

    fn inside(&self, offset: usize, length: usize) -> Result<()> {
        if self.span().contains(offset, length) {
            return Ok(());
        }
        let bytes = self.len();
        Err(Error::Invalid(format!("{length} bytes at {offset} are not inside a memory region of {bytes}")))
    }

    fn word_inside(&self, offset: usize) -> Result<()> {
        if !offset.is_multiple_of(8) {
            return Err(Error::Invalid(format!("offset {offset} of a word is not a multiple of 8")));
        }
        self.inside(offset, 8)
    }

    /// Address of the first byte, for work requests and remote operations.
    pub fn addr(&self) -> u64 {
        self.span().address()
    }

    /// Length in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.span().len()
    }

    /// Key for work requests.
    pub fn lkey(&self) -> u32 {
        self.0.lkey
    }

    /// Key for remote operations.
    pub fn rkey(&self) -> u32 {
        self.0.rkey
    }

    /// The piece of `length` bytes from `offset`. Whether it is inside is checked by the HCA.
    pub fn sge(&self, offset: usize, length: u32) -> Sge {
        Sge { addr: self.addr().wrapping_add(offset as u64), length, lkey: self.0.lkey }
    }

    /// Copies into the memory, from byte `offset` on.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.inside(offset, from.len())?;
        self.span().copy_in(offset, from);
        Ok(())
    }

    /// Copies out of the memory, from byte `offset` on.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.inside(offset, to.len())?;
        self.span().copy_out(offset, to);
        Ok(())
    }

    /// Sets `length` bytes from `offset` on to one value.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn fill(&self, offset: usize, length: usize, value: u8) -> Result<()> {
        self.inside(offset, length)?;
        self.span().fill(offset, length, value);
        Ok(())
    }

    /// Loads a byte, before all that this thread reads later (acquire): to wait for an RDMA write.
    ///
    /// # Errors
    /// It isn't inside (`EINVAL`).
    pub fn load_u8(&self, offset: usize) -> Result<u8> {
        self.inside(offset, 1)?;
        Ok(self.span().u8_at(offset).load(Ordering::Acquire))
    }

    /// Loads 8 bytes at once, in this machine's order, before all that this thread reads later (acquire).
    ///
    /// # Errors
    /// They aren't inside, or `offset` is not a multiple of 8 (`EINVAL`).
    pub fn load_u64(&self, offset: usize) -> Result<u64> {
        self.word_inside(offset)?;
        Ok(self.span().u64_at(offset).load(Ordering::Acquire))
    }

    /// Stores 8 bytes at once, in this machine's order, after all that this thread has written (release).
    ///
    /// # Errors
    /// They aren't inside, or `offset` is not a multiple of 8 (`EINVAL`).
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<()> {
        self.word_inside(offset)?;
        self.span().u64_at(offset).store(value, Ordering::Release);
        Ok(())
    }

    /// Ends it and frees its memory (`ibv_dereg_mr`), as dropping it does.
    ///
    /// # Errors
    /// A window is bound to it, or was and may still be (`EBUSY`): then it ends with the last of them. The HCA
    /// doesn't give it back: its memory is then kept aside.
    pub fn dereg(self) -> Result<()> {
        match Arc::into_inner(self.0) {
            Some(mut region) => region.end(),
            None => Err(Error::Busy("the memory region")),
        }
    }
}

/// The request for a change; `new` is the new memory.
fn rereg(handle: u32, change: &Rereg<'_>, new: Option<&Block>) -> ReregMr {
    let flag = |set: bool, flag| if set { flag } else { ReregFlags::NONE };
    ReregMr {
        mr: U32::new(handle),
        change: flag(new.is_some(), ReregFlags::TRANSLATION)
            | flag(change.pd.is_some(), ReregFlags::PD)
            | flag(change.access.is_some(), ReregFlags::ACCESS),
        pd: U32::new(change.pd.map_or(0, |pd| pd.domain().handle())),
        access: change.access.unwrap_or_default().flags(),
        iova: U64::new(new.map_or(0, |new| new.span().address())),
        length: U64::new(new.map_or(0, |new| new.span().len() as u64)),
    }
}
