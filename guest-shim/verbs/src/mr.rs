//! Memory regions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_rdma::request::memory::{DeregMr, MrRegistered, RegMr};
use virtio_rdma::{Reserved, U32, U64};

use crate::access::Access;
use crate::arena::{Block, PAGE};
use crate::error::{Error, Result};
use crate::pd::Domain;
use crate::wr::Sge;

/// A memory region (`ibv_mr`) and its memory.
///
/// The HCA, and through it whoever has the key, may read and write the memory at any time, so it is reached by
/// copies only. A copy isn't atomic; [`Mr::load_u64`] and [`Mr::store_u64`] are.
#[derive(Debug)]
pub struct Mr {
    domain: Arc<Domain>,
    memory: Block,
    handle: u32,
    lkey: u32,
    rkey: u32,
    ended: bool,
}

impl Mr {
    pub(crate) fn new(domain: &Arc<Domain>, bytes: usize, access: Access) -> Result<Self> {
        let open = domain.open();
        open.loss().check()?;
        if bytes == 0 {
            return Err(Error::Invalid("a memory region has at least one byte".into()));
        }
        let most = open.config().max_registered_bytes.get().min(open.attributes().max_mr_size.get());
        if bytes as u64 > most {
            return Err(Error::NoMemory(format!(
                "{bytes} bytes are more than the {most} that may be registered"
            )));
        }
        let memory = open.arena().allocate(bytes, PAGE)?;
        let body = RegMr {
            pd: U32::new(domain.handle()),
            access: access.flags(),
            iova: U64::new(memory.span().address()),
            length: U64::new(bytes as u64),
        };
        let MrRegistered { mr, lkey, rkey, .. } = open.make(&body, &[&memory])?;
        let (handle, lkey, rkey) = (mr.get(), lkey.get(), rkey.get());
        Ok(Self { domain: Arc::clone(domain), memory, handle, lkey, rkey, ended: false })
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let body = DeregMr { mr: U32::new(self.handle), reserved: Reserved::ZERO };
        self.domain.open().end(&body, &[&self.memory])
    }

    fn inside(&self, offset: usize, length: usize) -> Result<()> {
        if self.memory.span().contains(offset, length) {
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
        self.memory.span().address()
    }

    /// Length in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.memory.span().len()
    }

    /// Key for work requests.
    pub fn lkey(&self) -> u32 {
        self.lkey
    }

    /// Key for remote operations.
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// The piece of `length` bytes from `offset`. Whether it is inside is checked by the HCA.
    pub fn sge(&self, offset: usize, length: u32) -> Sge {
        Sge { addr: self.addr().wrapping_add(offset as u64), length, lkey: self.lkey }
    }

    /// Copies into the memory, from byte `offset` on.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.inside(offset, from.len())?;
        self.memory.span().copy_in(offset, from);
        Ok(())
    }

    /// Copies out of the memory, from byte `offset` on.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.inside(offset, to.len())?;
        self.memory.span().copy_out(offset, to);
        Ok(())
    }

    /// Sets `length` bytes from `offset` on to one value.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn fill(&self, offset: usize, length: usize, value: u8) -> Result<()> {
        self.inside(offset, length)?;
        self.memory.span().fill(offset, length, value);
        Ok(())
    }

    /// Loads a byte, before all that this thread reads later (acquire): to wait for an RDMA write.
    ///
    /// # Errors
    /// It isn't inside (`EINVAL`).
    pub fn load_u8(&self, offset: usize) -> Result<u8> {
        self.inside(offset, 1)?;
        Ok(self.memory.span().u8_at(offset).load(Ordering::Acquire))
    }

    /// Loads 8 bytes at once, in this machine's order, before all that this thread reads later (acquire).
    ///
    /// # Errors
    /// They aren't inside, or `offset` is not a multiple of 8 (`EINVAL`).
    pub fn load_u64(&self, offset: usize) -> Result<u64> {
        self.word_inside(offset)?;
        Ok(self.memory.span().u64_at(offset).load(Ordering::Acquire))
    }

    /// Stores 8 bytes at once, in this machine's order, after all that this thread has written (release).
    ///
    /// # Errors
    /// They aren't inside, or `offset` is not a multiple of 8 (`EINVAL`).
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<()> {
        self.word_inside(offset)?;
        self.memory.span().u64_at(offset).store(value, Ordering::Release);
        Ok(())
    }

    /// Ends it and frees its memory (`ibv_dereg_mr`), as dropping it does.
    ///
    /// # Errors
    /// The HCA doesn't give it back: its memory is then kept aside.
    pub fn dereg(mut self) -> Result<()> {
        self.end()
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}
