//! Memory regions.

use crate::error::Result;
use crate::wr::Sge;

/// A memory region (`ibv_mr`) and its memory.
///
/// The HCA, and through it whoever has the key, may read and write the memory at any time, so it is reached by
/// copies only. A copy isn't atomic; [`Mr::load_u64`] and [`Mr::store_u64`] are.
#[derive(Debug)]
pub struct Mr {}

impl Mr {
    /// Address of the first byte, for work requests and remote operations.
    pub fn addr(&self) -> u64 {
        unimplemented!()
    }

    /// Length in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Key for work requests.
    pub fn lkey(&self) -> u32 {
        unimplemented!()
    }

    /// Key for remote operations.
    pub fn rkey(&self) -> u32 {
        unimplemented!()
    }

    /// The piece of `length` bytes from `offset`. Whether it is inside is checked by the HCA.
    pub fn sge(&self, _offset: usize, _length: u32) -> Sge {
        unimplemented!()
    }

    /// Copies into the memory, from byte `offset` on.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn write(&self, _offset: usize, _from: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Copies out of the memory, from byte `offset` on.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn read(&self, _offset: usize, _to: &mut [u8]) -> Result<()> {
        unimplemented!()
    }

    /// Sets `length` bytes from `offset` on to one value.
    ///
    /// # Errors
    /// It isn't all inside (`EINVAL`).
    pub fn fill(&self, _offset: usize, _length: usize, _value: u8) -> Result<()> {
        unimplemented!()
    }

    /// Loads a byte, before all that this thread reads later (acquire): to wait for an RDMA write.
    ///
    /// # Errors
    /// It isn't inside (`EINVAL`).
    pub fn load_u8(&self, _offset: usize) -> Result<u8> {
        unimplemented!()
    }

    /// Loads 8 bytes at once, in this machine's order, before all that this thread reads later (acquire).
    ///
    /// # Errors
    /// They aren't inside, or `offset` is not a multiple of 8 (`EINVAL`).
    pub fn load_u64(&self, _offset: usize) -> Result<u64> {
        unimplemented!()
    }

    /// Stores 8 bytes at once, in this machine's order, after all that this thread has written (release).
    ///
    /// # Errors
    /// They aren't inside, or `offset` is not a multiple of 8 (`EINVAL`).
    pub fn store_u64(&self, _offset: usize, _value: u64) -> Result<()> {
        unimplemented!()
    }

    /// Ends it and frees its memory (`ibv_dereg_mr`), as dropping it does.
    ///
    /// # Errors
    /// The HCA doesn't give it back: its memory is then kept aside.
    pub fn dereg(self) -> Result<()> {
        unimplemented!()
    }
}
