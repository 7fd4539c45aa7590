//! A user-space driver of the ConnectX family (mlx4) of InfiniBand HCAs.
//!
//! [`Hca::open`] resets a device, starts its firmware, gives it memory (ICM) that grows on demand, and brings
//! its ports up: it answers subnet management packets on QP0, so that a subnet manager makes them ACTIVE.
//! Then there are the objects of verbs: protection domains, UARs, memory regions, completion and queue pairs.
//!
//! The driver reaches the device through [`mlx4_pci::PciDevice`] only, and can't tell a card from a model.
//! Whatever it reads from the device is checked; memory that the device may still use is never unmapped: it
//! waits for the next reset.
//!
//! - [`Hca`], [`Config`], [`Profile`]: the device
//! - [`Event`], [`EventSink`]: what it tells by itself; [`EventPoller`]: completion events without threads
//! - [`Pd`], [`Uar`], [`Region`], [`Window`], [`Xrcd`], [`Cq`], [`Srq`], [`Qp`]: objects; rings and records lie in
//!   anybody's memory. [`ArmDoorbell`]: arms a `Cq`
//! - [`QueuePair`], [`CompletionQueue`], [`SharedReceiveQueue`], [`RegisteredMemory`], [`FastRegion`]: with memory
//!   of the driver's own, to post and poll in this process
//! - [`MadQueue`], [`MadSink`]: management datagrams on both special queue pairs of each port
//!
//! Objects are destroyed explicitly. One that is just dropped stays with the device, its number and memory too,
//! until the device is reset.
//!
//! Threads: `mlx4-cmd` completes commands; `mlx4-async` hands events on and watches for a failure;
//! `mlx4-comp0` and up hand completion events on, unless they are polled; `mlx4-mad` serves the special queue pairs. Every method can
//! be called from any thread, those of sinks included.
//!
//! Does not: decide what a guest may do, speak to guests, or run a subnet manager.
//!
//! Sources: the hardware's interface as Linux mlx4_core and mlx4_ib and iPXE's hermon driver use it.
#![forbid(unsafe_code)]

mod arm;
mod caps;
mod claim;
mod cmd;
mod cq;
mod eq;
mod error;
mod event;
mod fast;
mod handlers;
mod hca;
mod health;
mod icm;
mod lifecycle;
mod mad;
mod multicast;
mod numbers;
mod object;
mod path;
mod poller;
mod port;
mod profile;
mod qp;
mod queues;
mod region;
mod registry;
mod shared;
mod srq;
#[cfg(test)]
mod testing;
mod window;
mod xrc;

pub use arm::ArmDoorbell;
pub use caps::{Capabilities, Firmware, Objects, PortCapabilities};
pub use claim::RingMemoryPages;
pub use cmd::Timeouts;
pub use cq::{Cq, CqConfig, CqState};
pub use error::{CommandError, CommandFailure, Error, FieldError, Result, Rule};
pub use event::{Event, EventSink, LogEvents, PortEvent, QpEventKind};
pub use fast::{FastRegion, MAX_FAST_PAGES};
pub use hca::{Config, Hca};
pub use mad::{Arrival, MadAddress, MadQueue, MadSink, NoMads, ReceivedMad};
pub use object::{Pd, Uar};
pub use path::{GlobalRoute, Path};
pub use poller::{CompletionEvents, EventPoller};
pub use port::{Gid, PortAttributes};
pub use profile::Profile;
pub use qp::{AlternatePath, Attributes, Qp, QpConfig, QpRights, QpStatus};
pub use queues::{CompletionQueue, QueuePair, QueuePairConfig, SharedReceiveQueue};
pub use region::{Access, Region, RegionConfig, RegionInfo, RegisteredMemory};
pub use srq::{Srq, SrqConfig};
pub use window::{Window, WindowKind};
pub use xrc::{XRC_TARGET, Xrcd};
