//! Work requests and completions.

use crate::ah::Ah;
use mlx4_queue::{Completed, Completion, Payload};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::wqe::Opcode;

/// A piece of a gather or scatter list (`ibv_sge`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sge {
    /// Address of the first byte, as the memory region has it ([`Mr::addr`](crate::Mr::addr)).
    pub addr: u64,
    /// Bytes.
    pub length: u32,
    /// Key of the memory region.
    pub lkey: u32,
}

/// What a send request does (`ibv_wr_opcode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOp {
    /// Sends a message.
    Send,
    /// Sends a message with immediate data.
    SendImm(u32),
    /// Sends a message that invalidates a key at the other side: of a window of type 2 that is bound to its queue
    /// pair.
    SendInvalidate(u32),
    /// Writes to the other side's memory.
    Write {
        /// Where.
        remote_addr: u64,
        /// Key of the memory there.
        rkey: u32,
    },
    /// Writes to the other side's memory, and completes a receive request there with immediate data.
    WriteImm {
        /// Where.
        remote_addr: u64,
        /// Key of the memory there.
        rkey: u32,
        /// The immediate data.
        imm: u32,
    },
    /// Reads the other side's memory.
    Read {
        /// Where.
        remote_addr: u64,
        /// Key of the memory there.
        rkey: u32,
    },
    /// Replaces 8 bytes at the other side if they are equal to a value; what they were goes to the data.
    CompareSwap {
        /// Where, a multiple of 8.
        remote_addr: u64,
        /// Key of the memory there.
        rkey: u32,
        /// What they must be.
        compare: u64,
        /// What they become.
        swap: u64,
    },
    /// Adds to 8 bytes at the other side; what they were goes to the data.
    FetchAdd {
        /// Where, a multiple of 8.
        remote_addr: u64,
        /// Key of the memory there.
        rkey: u32,
        /// What is added.
        add: u64,
    },
    /// Replaces bits of 8 bytes at the other side if others are equal to a value; what the 8 bytes were goes to
    /// the data. The queue pair must be made for it ([`QpInit::masked_atomics`](crate::QpInit::masked_atomics)).
    MaskedCompareSwap {
        /// Where, a multiple of 8.
        remote_addr: u64,
        /// Key of the memory there.
        rkey: u32,
        /// What the bits of `compare_mask` must be.
        compare: u64,
        /// What the bits of `swap_mask` become.
        swap: u64,
        /// Which bits are compared.
        compare_mask: u64,
        /// Which bits are replaced.
        swap_mask: u64,
    },
    /// Adds to several numbers in 8 bytes at the other side; what the 8 bytes were goes to the data.
    MaskedFetchAdd {
        /// Where, a multiple of 8.
        remote_addr: u64,
        /// Key of the memory there.
        rkey: u32,
        /// What is added.
        add: u64,
        /// The top bit of each number: nothing is carried out of it.
        boundary: u64,
    },
}

/// The data of a send request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendData<'a> {
    /// Pieces of registered memory, gathered (scattered to, by reads and atomics).
    Sges(&'a [Sge]),
    /// The bytes themselves, strung together (`IBV_SEND_INLINE`): they are copied while the request is posted,
    /// at most [`QpCap::max_inline_data`](crate::QpCap::max_inline_data) of them.
    Inline(&'a [&'a [u8]]),
    /// Of a send of a UD queue pair: payload that the HCA cuts into packets, each with a copy of the header before
    /// it, whose IP and TCP fields it mends, checksums included (LSO).
    Segmented {
        /// The header, at most [`QpInit::max_lso_header`](crate::QpInit::max_lso_header) bytes.
        header: &'a [u8],
        /// Bytes of payload in each packet but the last.
        mss: u16,
        /// The payload.
        sges: &'a [Sge],
    },
}

/// Switches of a send request (`ibv_send_flags`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags {
    /// There is a completion also if all goes well. Implied by [`QpInit::sq_sig_all`](crate::QpInit::sq_sig_all).
    pub signaled: bool,
    /// The completion at the other side is solicited.
    pub solicited: bool,
    /// Starts after all earlier reads and atomics are done.
    pub fence: bool,
}

impl SendFlags {
    /// Signalled, and nothing else.
    pub const SIGNALED: Self = Self { signaled: true, solicited: false, fence: false };
}

/// A send request (`ibv_send_wr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWr<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// What it does.
    pub op: SendOp,
    /// Its data.
    pub data: SendData<'a>,
    /// Its switches.
    pub flags: SendFlags,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub struct UdDest<'a> {
    /// The path.
    pub ah: &'a Ah,
    /// The queue pair there, 24 bits; [`UdDest::MULTICAST`] for a group.
    pub remote_qpn: u32,
    /// Its Q_Key; with the top bit set the sending queue pair's own.
    pub remote_qkey: u32,
}

impl UdDest<'_> {
    /// The queue pair number that stands for a multicast group.
    pub const MULTICAST: u32 = 0xff_ffff;
}

/// A receive request (`ibv_recv_wr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvWr<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// Where the message goes.
    pub sges: &'a [Sge],
}

/// How a work request ended (`ibv_wc_status`); the numbers are verbs'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum WcStatus {
    /// Well.
    #[default]
    Success = 0,
    /// A message was longer than its place, or than a message may be.
    LocLenErr = 1,
    /// The queue pair could not carry out the request.
    LocQpOpErr = 2,
    /// EE context operation error (RD).
    LocEecOpErr = 3,
    /// A piece of the request isn't in the memory region of its key.
    LocProtErr = 4,
    /// The queue pair was in error before the request was done.
    WrFlushErr = 5,
    /// A memory window could not be bound.
    MwBindErr = 6,
    /// The other side's answer was none.
    BadRespErr = 7,
    /// A write of the other side with immediate data violated rights.
    LocAccessErr = 8,
    /// The other side found the request invalid.
    RemInvReqErr = 9,
    /// The request violated rights at the other side.
    RemAccessErr = 10,
    /// The other side could not carry out the request.
    RemOpErr = 11,
    /// The other side didn't answer.
    RetryExcErr = 12,
    /// The other side had no receive request posted, again and again.
    RnrRetryExcErr = 13,
    /// RDD violation (RD).
    LocRddViolErr = 14,
    /// Invalid RD request (RD).
    RemInvRdReqErr = 15,
    /// The other side aborted the request.
    RemAbortErr = 16,
    /// Invalid EE context number (RD).
    InvEecnErr = 17,
    /// Invalid EE context state (RD).
    InvEecStateErr = 18,
    /// The device failed.
    FatalErr = 19,
    /// The response timed out.
    RespTimeoutErr = 20,
    /// Something else; `vendor_err` may tell.
    GeneralErr = 21,
}

impl std::fmt::Display for WcStatus {
    /// As `ibv_wc_status_str` has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Success => "success",
            Self::LocLenErr => "local length error",
            Self::LocQpOpErr => "local QP operation error",
            Self::LocEecOpErr => "local EE context operation error",
            Self::LocProtErr => "local protection error",
            Self::WrFlushErr => "Work Request Flushed Error",
            Self::MwBindErr => "memory management operation error",
            Self::BadRespErr => "bad response error",
            Self::LocAccessErr => "local access error",
            Self::RemInvReqErr => "remote invalid request error",
            Self::RemAccessErr => "remote access error",
            Self::RemOpErr => "remote operation error",
            Self::RetryExcErr => "transport retry counter exceeded",
            Self::RnrRetryExcErr => "RNR retry counter exceeded",
            Self::LocRddViolErr => "local RDD violation error",
            Self::RemInvRdReqErr => "remote invalid RD request",
            Self::RemAbortErr => "aborted error",
            Self::InvEecnErr => "invalid EE context number",
            Self::InvEecStateErr => "invalid EE context state",
            Self::FatalErr => "fatal error",
            Self::RespTimeoutErr => "response timeout error",
            Self::GeneralErr => "general error",
        })
    }
}

/// What a completed work request was (`ibv_wc_opcode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum WcOpcode {
    /// A message was sent.
    #[default]
    Send,
    /// An RDMA write.
    RdmaWrite,
    /// An RDMA read.
    RdmaRead,
    /// An atomic compare and swap.
    CompSwap,
    /// An atomic fetch and add.
    FetchAdd,
    /// A masked atomic compare and swap.
    MaskedCompSwap,
    /// A masked atomic fetch and add.
    MaskedFetchAdd,
    /// A memory window was bound.
    BindMw,
    /// A message was cut into packets (LSO).
    Tso,
    /// A message was received.
    Recv,
    /// The other side wrote to memory with immediate data.
    RecvRdmaWithImm,
}

impl WcOpcode {
    /// Whether it was a receive request.
    pub const fn is_receive(self) -> bool {
        matches!(self, Self::Recv | Self::RecvRdmaWithImm)
    }
}

/// A completion (`ibv_wc`).
///
/// If `status` is not [`WcStatus::Success`] only `wr_id`, `status`, `qp_num` and `vendor_err` count, and of
/// `opcode` whether it is of a receive request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wc {
    /// The request's.
    pub wr_id: u64,
    /// How it ended.
    pub status: WcStatus,
    /// What it was.
    pub opcode: WcOpcode,
    /// The HCA's own code of an error.
    pub vendor_err: u32,
    /// Bytes that were received, read, or fetched by an atomic.
    pub byte_len: u32,
    /// Immediate data that came.
    pub imm: Option<u32>,
    /// The key that the message has invalidated.
    pub invalidated_rkey: Option<u32>,
    /// The queue pair.
    pub qp_num: u32,
    /// UD receives: the queue pair that sent it.
    pub src_qp: u32,
    /// UD receives: the LID that it came from.
    pub slid: u16,
    /// UD receives: service level.
    pub sl: u8,
    /// UD receives: low bits of the LID that it came to.
    pub dlid_path_bits: u8,
    /// UD receives: there is a GRH in the first [`GRH_BYTES`] bytes, which the message leaves free in any case
    /// (`IBV_WC_GRH`).
    pub grh: bool,
}

/// Bytes at the start of a UD receive that are the GRH's. `byte_len` counts them.
pub const GRH_BYTES: usize = 40;

impl From<Completion> for Wc {
    fn from(from: Completion) -> Self {
        let wc = Self { wr_id: from.wr_id, qp_num: from.qpn, ..Self::default() };
        match from.outcome {
            Completed::Sent { opcode, bytes } => Self { opcode: sent(opcode), byte_len: bytes, ..wc },
            Completed::Received(received) => Self {
                opcode: if received.write { WcOpcode::RecvRdmaWithImm } else { WcOpcode::Recv },
                byte_len: received.bytes,
                imm: match received.payload {
                    Payload::Immediate(bytes) => Some(u32::from_be_bytes(bytes)),
                    Payload::Plain | Payload::Invalidated(_) => None,
                },
                invalidated_rkey: match received.payload {
                    Payload::Invalidated(rkey) => Some(rkey),
                    Payload::Plain | Payload::Immediate(_) => None,
                },
                src_qp: received.source_qpn,
                slid: received.slid,
                sl: received.sl,
                dlid_path_bits: received.path_bits,
                grh: received.grh,
                ..wc
            },
            Completed::Failed { send, syndrome, vendor } => Self {
                status: failed(syndrome),
                opcode: if send { WcOpcode::Send } else { WcOpcode::Recv },
                vendor_err: vendor.into(),
                ..wc
            },
        }
    }
}

fn sent(opcode: Opcode) -> WcOpcode {
    match opcode {
        Opcode::RDMA_WRITE | Opcode::RDMA_WRITE_IMM => WcOpcode::RdmaWrite,
        Opcode::RDMA_READ => WcOpcode::RdmaRead,
        Opcode::ATOMIC_CS => WcOpcode::CompSwap,
        Opcode::ATOMIC_FA => WcOpcode::FetchAdd,
        Opcode::MASKED_ATOMIC_CS => WcOpcode::MaskedCompSwap,
        Opcode::MASKED_ATOMIC_FA => WcOpcode::MaskedFetchAdd,
        Opcode::BIND_MW => WcOpcode::BindMw,
        Opcode::LSO => WcOpcode::Tso,
        _ => WcOpcode::Send,
    }
}

/// The status of an error, as verbs numbers them.
fn failed(syndrome: Syndrome) -> WcStatus {
    match syndrome {
        Syndrome::LOCAL_LENGTH_ERR => WcStatus::LocLenErr,
        Syndrome::LOCAL_QP_OP_ERR => WcStatus::LocQpOpErr,
        Syndrome::LOCAL_EEC_OP_ERR => WcStatus::LocEecOpErr,
        Syndrome::LOCAL_PROT_ERR => WcStatus::LocProtErr,
        Syndrome::WR_FLUSH_ERR => WcStatus::WrFlushErr,
        Syndrome::MW_BIND_ERR => WcStatus::MwBindErr,
        Syndrome::BAD_RESP_ERR => WcStatus::BadRespErr,
        Syndrome::LOCAL_ACCESS_ERR => WcStatus::LocAccessErr,
        Syndrome::REMOTE_INVAL_REQ_ERR => WcStatus::RemInvReqErr,
        Syndrome::REMOTE_ACCESS_ERR => WcStatus::RemAccessErr,
        Syndrome::REMOTE_OP_ERR => WcStatus::RemOpErr,
        Syndrome::TRANSPORT_RETRY_EXC_ERR => WcStatus::RetryExcErr,
        Syndrome::RNR_RETRY_EXC_ERR => WcStatus::RnrRetryExcErr,
        Syndrome::LOCAL_RDD_VIOL_ERR => WcStatus::LocRddViolErr,
        Syndrome::REMOTE_INVAL_RD_REQ_ERR => WcStatus::RemInvRdReqErr,
        Syndrome::REMOTE_ABORTED_ERR => WcStatus::RemAbortErr,
        Syndrome::INVALID_EECN_ERR => WcStatus::InvEecnErr,
        Syndrome::INVALID_EEC_STATE_ERR => WcStatus::InvEecStateErr,
        _ => WcStatus::GeneralErr,
    }
}
