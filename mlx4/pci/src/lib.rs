//! The seam between the mlx4 driver and whatever is behind it: a real card through VFIO, or the
//! model, in this process or behind a socket.
//!
//! [`PciDevice`] is the driver's only way in, and tells it nothing about which implementation it has:
//!
//! - registers of BAR0, 32 bits wide and big endian;
//! - memory for DMA: a [`DmaSpace`] hands out bus addresses (IOVAs) and [`DmaBuffer`]s, and keeps memory
//!   mapped that the device may still use;
//! - MSI-X vectors as eventfds;
//! - doorbells, each a [`Doorbell`] that can only be rung;
//! - reset of the function, in the best way the device has.
//!
//! Accesses to memory and registers are ordered by the functions of [`barrier`], each named after its use.
//!
//! Does not: know commands, contexts or queues, or depend on any other crate of the workspace.
#![deny(unsafe_code)]

pub mod barrier;
mod device;
mod dma;
mod doorbell;
mod vectors;
mod vfio;
mod vfio_user;

pub use device::{Identity, InterruptError, PciDevice, RegisterError, ResetError, ResetKind};
pub use dma::{
    DmaAccess, DmaBuffer, DmaError, DmaSlice, DmaSpace, Geometry, HostMemory, Iommu, Limits, MemoryError,
};
pub use doorbell::{Doorbell, DoorbellKind, DoorbellPlace};
pub use vectors::Vectors;
pub use vfio::{Holder, OpenError, PciAddress, VfioPci, holders};
pub use vfio_user::{ConnectError, VfioUserPci};
pub use vmm_sys_util::eventfd::EventFd;
