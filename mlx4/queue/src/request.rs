//! Work requests.

use mlx4_wire::wqe::Av;

/// A piece of a gather or scatter list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sge {
    /// Virtual address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Lkey of the region.
    pub lkey: u32,
}

/// Bytes of a list of pieces. More than 32 bits tell is more than any message has.
pub(crate) fn room(pieces: &[Sge]) -> u32 {
    pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.length))
}

/// Memory at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Virtual address.
    pub address: u64,
    /// Rkey of the region.
    pub rkey: u32,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address vector.
    pub av: Av,
    /// QP, 24 bits; all ones for multicast.
    pub qpn: u32,
    /// Q_Key; with the top bit set the QP's own is sent.
    pub qkey: u32,
}

/// What a send request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// SEND.
    Send,
    /// SEND with immediate data, whose bytes go out as they are.
    SendImm([u8; 4]),
    /// SEND that invalidates an rkey at the other end.
    SendInvalidate(u32),
    /// RDMA write.
    Write(Remote),
    /// RDMA write with immediate data.
    WriteImm(Remote, [u8; 4]),
    /// RDMA read.
    Read(Remote),
    /// Atomic compare and swap of 8 bytes; the old value goes to the data.
    CompareSwap {
        /// The 8 bytes at the other end.
        remote: Remote,
        /// What they must be.
        compare: u64,
        /// What they become.
        swap: u64,
    },
    /// Atomic fetch and add of 8 bytes; the old value goes to the data.
    FetchAdd {
        /// The 8 bytes at the other end.
        remote: Remote,
        /// What is added.
        add: u64,
    },
    /// Nothing.
    Nop,
}

/// The data of a send request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// Pieces of registered memory, gathered (or scattered to, by a read or atomic).
    Pieces(&'a [Sge]),
    /// The bytes themselves, copied into the queue; the pieces are strung together.
    Inline(&'a [&'a [u8]]),
}

/// Switches of a send request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags {
    /// There is a completion also if all goes well.
    pub signalled: bool,
    /// The completion at the other end is solicited.
    pub solicited: bool,
    /// Starts after all earlier reads and atomics are done.
    pub fence: bool,
}

/// A send request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendRequest<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// What it does.
    pub operation: Operation,
    /// Its data.
    pub data: Data<'a>,
    /// Its switches.
    pub flags: SendFlags,
    /// Where it goes; for UD, and only for UD.
    pub destination: Option<&'a Destination>,
}

/// Why a request can't be posted. The queue is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// All slots are taken by requests whose completions haven't been polled.
    #[error("the queue is full")]
    Full,
    /// More pieces than the queue was made for.
    #[error("{0} pieces exceed {1}")]
    TooManyPieces(usize, u32),
    /// A piece of 2 GiB or more.
    #[error("piece of {0} bytes is too long")]
    PieceTooLong(u32),
    /// More inline data than the queue was made for.
    #[error("{0} bytes inline exceed {1}")]
    TooMuchInline(usize, u32),
    /// A request that its poster built has no control segment, or is too large.
    #[error("the request isn't of 16 to {0} bytes")]
    TooLarge(u32),
    /// The operation doesn't exist for the queue's service.
    #[error("the operation isn't one of the queue's service")]
    Operation,
    /// The operation's data can't be inline.
    #[error("the operation takes no inline data")]
    Inline,
    /// A datagram without destination, or a destination of something else.
    #[error("a destination belongs to datagrams, and only to them")]
    Destination,
    /// A QP number beyond 24 bits.
    #[error("QP number {0:#x} has more than 24 bits")]
    Qpn(u32),
    /// The data of an atomic isn't one piece of 8 bytes.
    #[error("an atomic has one piece of 8 bytes")]
    AtomicData,
}
