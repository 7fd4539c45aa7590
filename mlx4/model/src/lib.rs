//! A software ConnectX-3, the InfiniBand fabric it is plugged into, and its vfio-user server.
//!
//! - [`mem`]: the bus-address space that the HCA reaches by DMA; the only place that touches host memory
//! - [`device`]: how a PCI function meets what it is plugged into (in-process seam, vfio-user server)
//! - [`pci`]: configuration space and capabilities of the card
//! - [`node`]: what subnet management sees of a node: its SMA and PMA, port state, tables, counters
//! - [`fabric`]: the switch, packets, and the built-in subnet manager and administrator
//! - [`hca`]: registers, command interface, ICM, queues and the data path
//! - [`seam`]: gives an HCA to a driver in the same process
//! - [`trace`]: a readable record of what a driver does
//! - [`vfio_user`]: serves an HCA to a VMM
#![deny(unsafe_code)]

pub mod device;
pub mod fabric;
pub mod hca;
pub mod mem;
pub mod node;
pub mod pci;
pub mod seam;
pub mod trace;
pub mod vfio_user;
