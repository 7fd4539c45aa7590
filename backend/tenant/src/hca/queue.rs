//! What regions and queues are created from, and how queue pairs are changed.

use super::{
    AlternatePath, Cookie, CqId, GuestId, Iova, Migration, Path, PdId, RemoteAccess, SrqId, UarId, XrcdId,
};

/// A piece of mapped memory, whole pages of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts.
    pub iova: Iova,
    /// Its length in bytes.
    pub length: u64,
}

/// Rights of a region. Reading by the guest's own work requests is always allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionAccess {
    /// Work requests of the guest may write.
    pub local_write: bool,
    /// What others may do.
    pub remote: RemoteAccess,
    /// Windows may be bound to it.
    pub mw_bind: bool,
}

/// A region to register.
#[derive(Clone, Copy, Debug)]
pub struct MrSpec<'a> {
    /// Its PD.
    pub pd: PdId,
    /// Its rights.
    pub access: RegionAccess,
    /// The address by which its first byte is named. Its offset in a page is that of the first byte.
    pub start: u64,
    /// Length in bytes, not 0.
    pub length: u64,
    /// The pages that it touches, in order.
    pub pages: &'a [Piece],
}

/// A change of a region.
#[derive(Clone, Copy, Debug)]
pub struct MrChange<'a> {
    /// The new PD.
    pub pd: Option<PdId>,
    /// The new rights.
    pub access: Option<RegionAccess>,
    /// The new memory: start, length in bytes, pages as in [`MrSpec`].
    pub memory: Option<(u64, u64, &'a [Piece])>,
}

/// Keys of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MrKeys {
    /// For local use.
    pub lkey: u32,
    /// For remote use.
    pub rkey: u32,
}

/// Kind of a memory window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MwKind {
    /// Bound by a verb, to a PD.
    Type1,
    /// Bound by a work request, to a queue pair.
    Type2,
}

/// How much memory a ring takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Length of the ring in bytes, whole pages; 0: no ring.
    pub ring_bytes: u64,
    /// Size and alignment of the doorbell record in bytes, a power of two; 0: no record.
    pub record_bytes: u64,
    /// Whether the HCA writes into the ring.
    pub written: bool,
}

/// The memory of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingMemory<'a> {
    /// The ring's pages, in order. Behind the last the HCA must find nothing.
    pub ring: &'a [Piece],
    /// The doorbell record; `None` where the layout has none.
    pub record: Option<Iova>,
}

/// Geometry of a CQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CqGeometry {
    /// Entries of the ring, a power of two.
    pub entries: u32,
}

/// A CQ to create.
#[derive(Clone, Copy, Debug)]
pub struct CqSpec<'a> {
    /// Whose it is.
    pub guest: GuestId,
    /// What its events carry.
    pub cookie: Cookie,
    /// The UAR on which it is armed.
    pub uar: UarId,
    /// Geometry.
    pub geometry: CqGeometry,
    /// Memory.
    pub memory: RingMemory<'a>,
    /// Completions carry time stamps.
    pub timestamp: bool,
    /// Old completions may be overwritten.
    pub ignore_overrun: bool,
}

/// Kind of an SRQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SrqKind {
    /// For RC and UD queue pairs.
    Basic,
    /// For XRC queue pairs of a domain, with a CQ of its own.
    Xrc {
        /// The domain.
        xrcd: XrcdId,
        /// The CQ.
        cq: CqId,
    },
}

/// Geometry of an SRQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SrqGeometry {
    /// log2 of the number of WQEs.
    pub log2_wqes: u8,
    /// log2 of the stride in bytes.
    pub log2_stride: u8,
    /// Work requests that the guest means to have outstanding.
    pub max_wr: u32,
    /// Scatter elements of a work request.
    pub max_sge: u32,
}

/// An SRQ to create.
#[derive(Clone, Copy, Debug)]
pub struct SrqSpec<'a> {
    /// Whose it is.
    pub guest: GuestId,
    /// What its events carry.
    pub cookie: Cookie,
    /// Its PD.
    pub pd: PdId,
    /// Its kind.
    pub kind: SrqKind,
    /// Geometry.
    pub geometry: SrqGeometry,
    /// Memory.
    pub memory: RingMemory<'a>,
}

/// State of an SRQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SrqState {
    /// The limit that is armed; 0: none.
    pub limit: u32,
}

/// Type of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpKind {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram.
    Ud,
    /// Initiator of an extended reliable connection.
    XrcSend,
    /// Target of an extended reliable connection.
    XrcRecv,
}

/// One queue of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueGeometry {
    /// log2 of the number of WQEs, headroom included.
    pub log2_wqes: u8,
    /// log2 of the stride in bytes.
    pub log2_stride: u8,
    /// Work requests that the guest means to have outstanding.
    pub max_wr: u32,
    /// Elements of a work request.
    pub max_sge: u32,
}

/// Geometry of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpGeometry {
    /// Its type.
    pub kind: QpKind,
    /// The send queue, if it has one.
    pub send: Option<QueueGeometry>,
    /// The receive queue, if it has one.
    pub receive: Option<QueueGeometry>,
    /// Bytes of inline data.
    pub max_inline: u32,
}

/// A queue pair to create.
#[derive(Clone, Copy, Debug)]
pub struct QpSpec<'a> {
    /// Whose it is.
    pub guest: GuestId,
    /// What its events carry.
    pub cookie: Cookie,
    /// Its PD; `None` only for [`QpKind::XrcRecv`].
    pub pd: Option<PdId>,
    /// The UAR on which its send queue is rung; `None` only for [`QpKind::XrcRecv`].
    pub uar: Option<UarId>,
    /// CQ of the send queue; `None` only for [`QpKind::XrcRecv`].
    pub send_cq: Option<CqId>,
    /// CQ of the receive queue; `None` only for XRC.
    pub recv_cq: Option<CqId>,
    /// Its SRQ.
    pub srq: Option<SrqId>,
    /// Its XRC domain; only for [`QpKind::XrcRecv`].
    pub xrcd: Option<XrcdId>,
    /// Geometry, with its type.
    pub geometry: QpGeometry,
    /// Memory.
    pub memory: RingMemory<'a>,
    /// UD: it segments long messages.
    pub lso: bool,
    /// Its own multicast messages don't come back to it.
    pub block_loopback: bool,
    /// UD: its packets have the source GID of this index in the HCA's table of the port, whatever the guest's
    /// address vectors say.
    pub forced_gid: Option<u16>,
}

/// State of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpState {
    /// Reset.
    Reset,
    /// Initialised.
    Init,
    /// Ready to receive.
    Rtr,
    /// Ready to send.
    Rts,
    /// Send queue drained.
    Sqd,
    /// Send queue error.
    Sqe,
    /// Error.
    Err,
}

/// A change of a queue pair. `None`: that stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpModify {
    /// The state that it is assumed in.
    pub from: QpState,
    /// The state that it goes to; may be the same.
    pub to: QpState,
    /// SQD: whether an event tells that the send queue is drained.
    pub sqd_event: Option<bool>,
    /// Remote operations that it allows.
    pub access: Option<RemoteAccess>,
    /// Index of the P_Key in the HCA's table of the port.
    pub pkey_index: Option<u16>,
    /// Primary port, from 1.
    pub port: Option<u8>,
    /// Q_Key, the top bit clear.
    pub qkey: Option<u32>,
    /// Primary path.
    pub path: Option<Path>,
    /// Path MTU in verbs' codes: 1 to 5 for 256 to 4096 bytes.
    pub path_mtu: Option<u8>,
    /// Local ACK timeout: 4.096 µs × 2^n; 0: none.
    pub timeout: Option<u8>,
    /// Retries, 0 to 7.
    pub retry_count: Option<u8>,
    /// Retries after RNR NAKs; 7: without end.
    pub rnr_retry: Option<u8>,
    /// PSN of the receive queue, 24 bits.
    pub rq_psn: Option<u32>,
    /// PSN of the send queue, 24 bits.
    pub sq_psn: Option<u32>,
    /// Reads and atomics under way as requester.
    pub max_rd_atomic: Option<u8>,
    /// Reads and atomics under way as responder.
    pub max_dest_rd_atomic: Option<u8>,
    /// Alternate path.
    pub alternate: Option<AlternatePath>,
    /// Code of the least RNR NAK timer.
    pub min_rnr_timer: Option<u8>,
    /// Path migration state.
    pub migration: Option<Migration>,
    /// Number of the remote queue pair, 24 bits.
    pub dest_qpn: Option<u32>,
}

impl QpModify {
    /// A change of state and of nothing else.
    pub const fn state(from: QpState, to: QpState) -> Self {
        Self {
            from,
            to,
            sqd_event: None,
            access: None,
            pkey_index: None,
            port: None,
            qkey: None,
            path: None,
            path_mtu: None,
            timeout: None,
            retry_count: None,
            rnr_retry: None,
            rq_psn: None,
            sq_psn: None,
            max_rd_atomic: None,
            max_dest_rd_atomic: None,
            alternate: None,
            min_rnr_timer: None,
            migration: None,
            dest_qpn: None,
        }
    }
}

/// What a queue pair has. Values that its state doesn't define are 0 or `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpAttributes {
    /// Its state.
    pub state: QpState,
    /// The send queue is being drained.
    pub draining: bool,
    /// Remote operations that it allows.
    pub access: RemoteAccess,
    /// Index of the P_Key in the HCA's table of the port.
    pub pkey_index: u16,
    /// Primary port, from 1; 0: none yet.
    pub port: u8,
    /// Q_Key.
    pub qkey: u32,
    /// Primary path.
    pub path: Option<Path>,
    /// Alternate path.
    pub alternate: Option<AlternatePath>,
    /// Path MTU in verbs' codes; 0: none yet.
    pub path_mtu: u8,
    /// Local ACK timeout.
    pub timeout: u8,
    /// Retries.
    pub retry_count: u8,
    /// Retries after RNR NAKs.
    pub rnr_retry: u8,
    /// PSN of the receive queue.
    pub rq_psn: u32,
    /// PSN of the send queue.
    pub sq_psn: u32,
    /// Reads and atomics under way as requester.
    pub max_rd_atomic: u8,
    /// Reads and atomics under way as responder.
    pub max_dest_rd_atomic: u8,
    /// Code of the least RNR NAK timer.
    pub min_rnr_timer: u8,
    /// Path migration state.
    pub migration: Migration,
    /// Number of the remote queue pair.
    pub dest_qpn: u32,
}
