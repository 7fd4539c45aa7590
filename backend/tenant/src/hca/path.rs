//! Paths, addresses and groups: what a queue pair or an address handle says of the other side.

/// A GID, in the order of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid(pub [u8; 16]);

/// A path to another port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The port it leaves by, from 1.
    pub port: u8,
    /// Destination LID.
    pub dlid: u16,
    /// Service level, 0 to 15.
    pub sl: u8,
    /// Low bits of the source LID.
    pub src_path_bits: u8,
    /// Static rate in verbs' codes (`ibv_rate`); 0: the port's.
    pub static_rate: u8,
    /// The GRH; `None`: packets have none.
    pub grh: Option<Grh>,
    /// Destination MAC address on an Ethernet port; else zero.
    pub dmac: [u8; 6],
}

/// The global part of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grh {
    /// Destination.
    pub dgid: Gid,
    /// Index of the source GID in the HCA's table of the port.
    pub sgid_index: u16,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
}

/// The path that a connection may move to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlternatePath {
    /// The path.
    pub path: Path,
    /// Index of its P_Key in the HCA's table of the port.
    pub pkey_index: u16,
    /// Local ACK timeout: 4.096 µs × 2^n; 0: none.
    pub timeout: u8,
}

/// Path migration state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Migration {
    /// Migrated.
    Migrated,
    /// To be armed.
    Rearm,
    /// Armed.
    Armed,
}

/// Which remote operations a queue pair allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteAccess {
    /// RDMA reads.
    pub read: bool,
    /// RDMA writes.
    pub write: bool,
    /// Atomic operations.
    pub atomic: bool,
}

/// A multicast group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct McastGroup {
    /// Its GID.
    pub mgid: Gid,
    /// Its LID.
    pub mlid: u16,
}

/// The address part of a UD work request, in the queue format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressVector(pub [u8; 48]);
