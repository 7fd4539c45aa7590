//! Memory that the device can access.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::space::Mapping;
use super::{DmaAccess, DmaError, DmaSpace, HostMemory, MemoryError};

/// A range of memory that is mapped for a device.
///
/// The device may change it at any time, so its content is copied in and out, or loaded and stored word by
/// word; no reference into it can be had. Copies are not ordered: see [`barrier`](crate::barrier). Loads of
/// words acquire, stores of words release.
///
/// Once [`DmaBuffer::iova`] was asked for, the device is taken to know the address. Give the buffer back by
/// [`DmaBuffer::release`] when the device has let go of it; just dropped, it stays mapped, in quarantine,
/// until the next reset. Ask for the address anew after a reset.
pub struct DmaBuffer {
    space: DmaSpace,
    /// None only while being dropped or released.
    mapping: Option<Mapping>,
    memory: HostMemory,
    iova: u64,
    access: DmaAccess,
    /// The epoch in which the address was last asked for; 0 if never.
    exposed: AtomicU64,
}

impl DmaBuffer {
    pub(super) fn new(space: DmaSpace, mapping: Mapping, access: DmaAccess) -> Self {
        let (memory, iova) = (mapping.memory.clone(), mapping.iova);
        Self { space, mapping: Some(mapping), memory, iova, access, exposed: AtomicU64::new(0) }
    }

    /// Address of the first byte, as the device sees it.
    pub fn iova(&self) -> u64 {
        self.exposed.store(self.space.epoch(), Ordering::Relaxed);
        self.iova
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are no bytes; never.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// What the device may do.
    pub fn access(&self) -> DmaAccess {
        self.access
    }

    /// The memory, as this process sees it.
    pub fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// A part of the buffer.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn slice(&self, offset: usize, len: usize) -> Result<DmaSlice<'_>, MemoryError> {
        self.memory.check(offset, len)?;
        Ok(DmaSlice { buffer: self, offset, len })
    }

    /// All of it.
    pub fn as_slice(&self) -> DmaSlice<'_> {
        DmaSlice { buffer: self, offset: 0, len: self.len() }
    }

    /// Unmaps the memory: the device has let go of it, because a command that took it back succeeded, or
    /// because it was never told.
    ///
    /// # Errors
    /// The host doesn't unmap it; it stays mapped, in quarantine.
    pub fn release(mut self) -> Result<(), DmaError> {
        match self.mapping.take() {
            Some(mapping) => self.space.unmap(mapping),
            None => Ok(()),
        }
    }

    /// Copies bytes out; see [`HostMemory::read`].
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(offset, data)
    }

    /// Copies bytes in; see [`HostMemory::write`].
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(offset, data)
    }

    /// Copies a structure out.
    ///
    /// # Errors
    /// It isn't all inside.
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, MemoryError> {
        let mut object = T::new_zeroed();
        self.memory.read(offset, object.as_mut_bytes())?;
        Ok(object)
    }

    /// Copies a structure in.
    ///
    /// # Errors
    /// It isn't all inside.
    pub fn write_obj<T: IntoBytes + Immutable + ?Sized>(
        &self,
        offset: usize,
        object: &T,
    ) -> Result<(), MemoryError> {
        self.memory.write(offset, object.as_bytes())
    }

    /// Sets every byte of a range.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<(), MemoryError> {
        self.memory.fill(offset, len, value)
    }

    /// Loads a big-endian word of 4 bytes; later accesses come after it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn load_be32(&self, offset: usize) -> Result<u32, MemoryError> {
        self.memory.load_be32(offset)
    }

    /// Stores a big-endian word of 4 bytes; earlier stores come before it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn store_be32(&self, offset: usize, value: u32) -> Result<(), MemoryError> {
        self.memory.store_be32(offset, value)
    }

    /// Loads a big-endian word of 8 bytes; later accesses come after it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn load_be64(&self, offset: usize) -> Result<u64, MemoryError> {
        self.memory.load_be64(offset)
    }

    /// Stores a big-endian word of 8 bytes; earlier stores come before it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn store_be64(&self, offset: usize, value: u64) -> Result<(), MemoryError> {
        self.memory.store_be64(offset, value)
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping.take() {
            self.space.abandon(mapping, self.exposed.load(Ordering::Relaxed));
        }
    }
}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuffer({:#x}+{:#x}, {:?})", self.iova, self.len(), self.access)
    }
}

/// A part of a [`DmaBuffer`]. Offsets count from its own beginning.
#[derive(Clone, Copy, Debug)]
pub struct DmaSlice<'a> {
    buffer: &'a DmaBuffer,
    offset: usize,
    len: usize,
}

impl<'a> DmaSlice<'a> {
    /// Address of the first byte, as the device sees it; as [`DmaBuffer::iova`].
    pub fn iova(&self) -> u64 {
        self.buffer.iova() + self.offset as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of the part.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn slice(&self, offset: usize, len: usize) -> Result<DmaSlice<'a>, MemoryError> {
        Ok(DmaSlice { buffer: self.buffer, offset: self.at(offset, len)?, len })
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), MemoryError> {
        self.buffer.read(self.at(offset, data.len())?, data)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), MemoryError> {
        self.buffer.write(self.at(offset, data.len())?, data)
    }

    /// Copies a structure out.
    ///
    /// # Errors
    /// It isn't all inside.
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, MemoryError> {
        self.buffer.read_obj(self.at(offset, size_of::<T>())?)
    }

    /// Copies a structure in.
    ///
    /// # Errors
    /// It isn't all inside.
    pub fn write_obj<T: IntoBytes + Immutable + ?Sized>(
        &self,
        offset: usize,
        object: &T,
    ) -> Result<(), MemoryError> {
        self.write(offset, object.as_bytes())
    }

    /// Sets every byte of a range.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<(), MemoryError> {
        self.buffer.fill(self.at(offset, len)?, len, value)
    }

    /// Loads a big-endian word of 4 bytes; later accesses come after it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned in the buffer.
    pub fn load_be32(&self, offset: usize) -> Result<u32, MemoryError> {
        self.buffer.load_be32(self.at(offset, 4)?)
    }

    /// Stores a big-endian word of 4 bytes; earlier stores come before it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned in the buffer.
    pub fn store_be32(&self, offset: usize, value: u32) -> Result<(), MemoryError> {
        self.buffer.store_be32(self.at(offset, 4)?, value)
    }

    /// Loads a big-endian word of 8 bytes; later accesses come after it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned in the buffer.
    pub fn load_be64(&self, offset: usize) -> Result<u64, MemoryError> {
        self.buffer.load_be64(self.at(offset, 8)?)
    }

    /// Stores a big-endian word of 8 bytes; earlier stores come before it.
    ///
    /// # Errors
    /// The word isn't inside, or not aligned in the buffer.
    pub fn store_be64(&self, offset: usize, value: u64) -> Result<(), MemoryError> {
        self.buffer.store_be64(self.at(offset, 8)?, value)
    }

    /// Offset in the buffer of a range of this part.
    fn at(&self, offset: usize, len: usize) -> Result<usize, MemoryError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.offset + offset),
            _ => Err(MemoryError::Outside { offset, len, size: self.len }),
        }
    }
}
