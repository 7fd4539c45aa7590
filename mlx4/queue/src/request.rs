//! Work requests.

use mlx4_wire::wqe::{Av, BindAccess, RegisterAccess};

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

/// What a memory window is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// A window of type 2, which belongs to the QP from now on; of type 1 otherwise.
    pub type_2: bool,
    /// What the other end may do.
    pub access: BindAccess,
    /// Addresses of the window count from zero; they are the region's otherwise.
    pub zero_based: bool,
    /// Rkey of the window from now on: the old one, but for the low 8 bits.
    pub rkey: u32,
    /// Lkey of the region.
    pub lkey: u32,
    /// First virtual address.
    pub address: u64,
    /// Bytes; 0 unbinds.
    pub length: u64,
}

/// The pages that a region is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// What the region is for.
    pub access: RegisterAccess,
    /// Lkey and rkey of the region from now on: the old one, but for the low 8 bits.
    pub key: u32,
    /// Bus address of the list of pages, a multiple of 64: an
    /// [`MttEntry`](mlx4_wire::ctx::mtt::MttEntry) for each.
    pub page_list: u64,
    /// First virtual address; its offset in a page is that of the first byte in the first page.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// log2 of the size of a page in bytes.
    pub log2_page: u8,
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
    /// Compare and swap of the bits in masks; the old value of all 8 bytes goes to the data.
    MaskedCompareSwap {
        /// The 8 bytes at the other end.
        remote: Remote,
        /// What the bits of `compare_mask` must be.
        compare: u64,
        /// What the bits of `swap_mask` become.
        swap: u64,
        /// Which bits are compared.
        compare_mask: u64,
        /// Which bits are swapped.
        swap_mask: u64,
    },
    /// Fetch and add of several numbers in 8 bytes; the old value of all goes to the data.
    MaskedFetchAdd {
        /// The 8 bytes at the other end.
        remote: Remote,
        /// What is added.
        add: u64,
        /// The top bit of each number: nothing is carried out of it.
        boundary: u64,
    },
    /// Binds a memory window. No data.
    Bind(Bind),
    /// Invalidates the key of a window of type 2, or of a region that was fast registered. No data.
    LocalInvalidate(u32),
    /// Registers pages. No data.
    FastRegister(Register),
    /// Nothing. No data.
    Nop,
}

impl Operation {
    /// Whether the request takes data; what it has otherwise is left out.
    pub(crate) fn takes_data(&self) -> bool {
        !matches!(self, Self::Bind(_) | Self::LocalInvalidate(_) | Self::FastRegister(_) | Self::Nop)
    }

    /// The memory at the other end, if the request names some.
    pub(crate) fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Write(remote)
            | Self::WriteImm(remote, _)
            | Self::Read(remote)
            | Self::CompareSwap { remote, .. }
            | Self::FetchAdd { remote, .. }
            | Self::MaskedCompareSwap { remote, .. }
            | Self::MaskedFetchAdd { remote, .. } => Some(remote),
            _ => None,
        }
    }

    /// Whether it is an atomic, whose data is one piece of 8 bytes.
    pub(crate) fn is_atomic(&self) -> bool {
        matches!(
            self,
            Self::CompareSwap { .. }
                | Self::FetchAdd { .. }
                | Self::MaskedCompareSwap { .. }
                | Self::MaskedFetchAdd { .. }
        )
    }
}

/// The data of a send request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// Pieces of registered memory, gathered (or scattered to, by a read or atomic).
    Pieces(&'a [Sge]),
    /// The bytes themselves, copied into the queue; the pieces are strung together.
    Inline(&'a [&'a [u8]]),
    /// Of a SEND of UD: payload that the HCA cuts into packets, each with a copy of the header before it,
    /// whose IP and TCP fields it mends, checksums included (LSO).
    Segmented {
        /// The header, at least one byte.
        header: &'a [u8],
        /// Bytes of payload in each packet but the last, not 0.
        segment: u16,
        /// The payload.
        pieces: &'a [Sge],
    },
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
    /// The request isn't one that can be cut into packets, or without header or segment size.
    #[error("only a SEND of UD is cut into packets, with a header and a segment size")]
    Segmented,
    /// An XRC request without an SRQ at the other end, or another request with one.
    #[error("an SRQ at the other end belongs to XRC requests, and only to them")]
    RemoteSrq,
}
