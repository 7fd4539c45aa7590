//! Management datagrams: both special queue pairs of each port.
//!
//! QP0 carries subnet management. What a subnet manager asks of a port is answered by the firmware's agent,
//! but it is the driver that takes the datagram from QP0, hands it over (MAD_IFC), and sends the answer: a
//! driver that doesn't leaves its port in INIT. QP1 carries everything else; performance management is
//! answered likewise, and the rest is for whoever has asked for it ([`MadSink`]).
//!
//! - `agent`: what is done with a datagram that comes
//! - `directed`: directed routes
//! - `header`: the packet headers, which the sender of a special queue pair builds itself
//! - `ifc`: the firmware's agents
//! - `special`: one special queue pair
//! - `service`: all of them, and the thread that serves them

mod agent;
mod directed;
mod header;
pub(crate) mod ifc;
mod service;
mod special;

use mlx4_wire::mad::MAD_SIZE;

use crate::path::GlobalRoute;

pub(crate) use service::MadService;

/// Bytes of a global route header.
pub(crate) const GRH_BYTES: usize = 40;

/// A special queue pair of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MadQueue {
    /// QP0: subnet management.
    Smi,
    /// QP1: everything else.
    Gsi,
}

impl MadQueue {
    /// Number in packets.
    pub const fn qpn(self) -> u32 {
        match self {
            Self::Smi => 0,
            Self::Gsi => 1,
        }
    }
}

/// How a datagram came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Number of the queue pair that received it, in packets: 0 or 1.
    pub qpn: u32,
    /// Queue pair that sent it.
    pub source_qpn: u32,
    /// LID that it came from.
    pub slid: u16,
    /// Service level.
    pub sl: u8,
    /// Low bits of the LID that it came to.
    pub path_bits: u8,
    /// Index of its P_Key.
    pub pkey_index: u8,
    /// Its global route header, if it had one.
    pub grh: Option<[u8; GRH_BYTES]>,
}

/// A datagram that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedMad {
    /// Port that it came through, from 1.
    pub port: u8,
    /// The datagram.
    pub mad: [u8; MAD_SIZE],
    /// How it came.
    pub arrival: Arrival,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadAddress {
    /// Destination LID.
    pub dlid: u16,
    /// Service level.
    pub sl: u8,
    /// Low bits of the source LID.
    pub path_bits: u8,
    /// Queue pair at the other end: 0, 1, or any other for some services on QP1.
    pub qpn: u32,
    /// Q_Key; 0 on QP0.
    pub qkey: u32,
    /// Index of the P_Key; no matter on QP0.
    pub pkey_index: u8,
    /// The global route header, if it shall have one.
    pub grh: Option<GlobalRoute>,
}

/// Takes datagrams that the firmware's agents don't answer. Called from the driver's thread for datagrams: it
/// must be quick.
pub trait MadSink: Send + Sync {
    /// A datagram came. Says whether it was taken; a request that nobody takes is answered with an error.
    fn received(&self, mad: &ReceivedMad) -> bool;
}

/// Takes no datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMads;

impl MadSink for NoMads {
    fn received(&self, _mad: &ReceivedMad) -> bool {
        false
    }
}
