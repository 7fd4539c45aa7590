//! Where a PCI function meets its surroundings: the vfio-user server or the in-process seam drive a
//! [`PciFunction`], and it raises interrupts through [`Interrupts`].

/// What the function's surroundings may ask of it. Calls may come from any thread, several at once.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space. Bytes past its end (4096) read as zero.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space; a write to the function-level-reset bit resets the function.
    fn config_write(&self, offset: u64, data: &[u8]);

    /// Size of a BAR in bytes; 0 for a BAR that isn't there (or is the upper half of a 64-bit one).
    fn bar_size(&self, bar: u8) -> u64;

    /// Reads a BAR. Registers answer 32-bit aligned accesses; anything else reads as all ones.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes a BAR. A store that no register takes is dropped, as a posted write on the bus is.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Resets the function (FLR, or VFIO_DEVICE_RESET): returns when it has stopped all DMA.
    fn reset(&self);
}

/// Message-signalled interrupts, as the function raises them.
pub trait Interrupts: Send + Sync {
    /// Sends the message of an MSI-X vector; does nothing if the vector isn't enabled.
    fn signal(&self, vector: u16);
}
