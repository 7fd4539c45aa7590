//! The seam's main trait, and what a device tells about itself.

use std::fmt;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::{DmaError, DmaSpace, Doorbell, DoorbellKind};

/// A PCI function of the mlx4 family, as its driver reaches it. Calls may come from any thread.
///
/// A function that was just opened can't access memory: [`PciDevice::reset`] it first.
pub trait PciDevice: fmt::Debug + Send + Sync {
    /// What the function is.
    fn identity(&self) -> &Identity;

    /// Reads configuration space, little endian as it is there.
    ///
    /// # Errors
    /// The range isn't inside the 4096 bytes, or the device doesn't answer.
    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError>;

    /// Reads a big-endian register of BAR0. A device that is gone or in reset reads as all ones.
    ///
    /// # Errors
    /// `offset` (bytes) isn't a multiple of 4 inside the BAR, or lies in a part that can't be reached.
    fn register(&self, offset: u64) -> Result<u32, RegisterError>;

    /// Writes a big-endian register of BAR0. Such stores reach the device in order, and after all stores to
    /// DMA memory before them.
    ///
    /// # Errors
    /// As for [`PciDevice::register`].
    fn set_register(&self, offset: u64, value: u32) -> Result<(), RegisterError>;

    /// The addresses that the function uses for memory.
    fn dma(&self) -> &DmaSpace;

    /// The eventfd of an MSI-X vector: non-blocking, its count is the number of messages since the last
    /// read. Every call gives a duplicate of the same one. It counts nothing until interrupts are enabled.
    ///
    /// # Errors
    /// There is no such vector, or no descriptor left.
    fn interrupt(&self, vector: u16) -> Result<EventFd, InterruptError>;

    /// Connects the vectors from 0 to before `vectors` to their eventfds, all at once, and disconnects
    /// others. They stay connected over a reset.
    ///
    /// # Errors
    /// The device has fewer vectors ([`Identity::vectors`]), or the host none left.
    fn enable_interrupts(&self, vectors: u16) -> Result<(), InterruptError>;

    /// Disconnects all vectors. Their eventfds stay.
    ///
    /// # Errors
    /// The host refuses.
    fn disable_interrupts(&self) -> Result<(), InterruptError>;

    /// A doorbell in UAR page `uar` of BAR2. For an event queue that's the page which its number gives, four
    /// to a page.
    ///
    /// # Errors
    /// The page isn't in the BAR, or not the event queue's.
    fn doorbell(&self, uar: u32, kind: DoorbellKind) -> Result<Arc<dyn Doorbell>, RegisterError>;

    /// Resets the function and turns bus mastering on. When it returns the device accesses no memory, knows
    /// no mapping that was told to it, and [quarantined](DmaSpace) memory has been unmapped; connected
    /// interrupts are connected again.
    ///
    /// Whether the device is alive again is for the caller to find out: by the ownership word and QUERY_FW.
    ///
    /// # Errors
    /// No way of resetting worked, and the device may still access memory.
    fn reset(&self) -> Result<ResetKind, ResetError>;
}

/// What a function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name for messages, e.g. `vfio:0000:01:00.0`.
    pub name: String,
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// PCI subsystem vendor id.
    pub subsystem_vendor: u16,
    /// PCI subsystem id.
    pub subsystem: u16,
    /// PCI revision.
    pub revision: u8,
    /// Bytes of each BAR, 0 where there is none (or where it is the upper half of a 64-bit one).
    pub bar_bytes: [u64; 6],
    /// MSI-X vectors.
    pub vectors: u16,
    /// NUMA node that the device is near to, if the host knows.
    pub numa_node: Option<u32>,
}

/// How a function was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// By itself: function-level reset, or what else the host's kernel has for this device.
    Function,
    /// Together with the bus that it has for itself.
    Bus,
    /// Through the device's own reset register.
    Register,
}

/// Why a register or doorbell can't be accessed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The range isn't all inside.
    #[error("{len} bytes at {offset:#x} are outside {what} of {size:#x} bytes")]
    Outside {
        /// BAR0, BAR2 or configuration space.
        what: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// Bytes from there.
        len: u64,
        /// Bytes that there are.
        size: u64,
    },
    /// Not a multiple of the register's size.
    #[error("register offset {offset:#x} is not a multiple of {align}")]
    Unaligned {
        /// Offset in bytes.
        offset: u64,
        /// Size of the register in bytes.
        align: u64,
    },
    /// The host doesn't let this part of the BAR be mapped.
    #[error("{offset:#x} lies in a part of {what} that the host does not let a program map")]
    NotMapped {
        /// BAR0 or BAR2.
        what: &'static str,
        /// Offset in bytes.
        offset: u64,
    },
    /// The event queue's doorbell is in another page.
    #[error("doorbell of EQ {eqn} is not in UAR page {uar}, but in page {}", eqn / 4)]
    EqPage {
        /// Number of the event queue.
        eqn: u32,
        /// Page asked for.
        uar: u32,
    },
    /// The kernel failed the access.
    #[error("can't access {len} bytes at {offset:#x} of {what}")]
    Io {
        /// BAR0, BAR2 or configuration space.
        what: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// Bytes from there.
        len: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why interrupts can't be had.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// The MSI-X table is shorter.
    #[error("device has {vectors} interrupt vectors, not one numbered {vector}")]
    NoVector {
        /// Vector asked for, from 0.
        vector: u16,
        /// Vectors of the device.
        vectors: u16,
    },
    /// No eventfd can be made.
    #[error("can't make an eventfd for interrupt vector {vector}")]
    EventFd {
        /// Vector that it is for.
        vector: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel doesn't connect them.
    #[error("can't connect {vectors} interrupt vectors")]
    Connect {
        /// Vectors asked for, 0 to disconnect all.
        vectors: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why a reset failed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Each way of resetting, and what came of it.
    #[error("{name} can't be reset: {tried}; unbind and rebind the device, or power-cycle the host")]
    Failed {
        /// The device.
        name: String,
        /// Each way and its failure, in one line.
        tried: String,
    },
    /// The device has left for good.
    #[error("{name} is gone: {why}; start it again, and then this program")]
    Gone {
        /// The device.
        name: String,
        /// What was seen of that.
        why: String,
    },
    /// Reset worked, but the configuration is not as it was.
    #[error("{name} was reset, but its configuration can't be restored")]
    Restore {
        /// The device.
        name: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Reset worked, but interrupts are no longer connected.
    #[error("device was reset, but its interrupts can't be connected again")]
    Interrupts(#[from] InterruptError),
    /// Reset worked, but quarantined memory is still mapped.
    #[error("device was reset, but memory can't be unmapped")]
    Unmap(#[from] DmaError),
}
