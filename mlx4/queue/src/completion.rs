//! What a completion says.

use mlx4_wire::cqe::{Cqe, CqeOpcode, ErrorCqe, ReceiveOpcode, Syndrome};
use mlx4_wire::wqe::Opcode;

/// What is remembered of a send request from its posting to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostedSend {
    /// The request's.
    pub wr_id: u64,
    /// Its operation.
    pub opcode: Opcode,
    /// Bytes that it can bring: the length of a read's or an atomic's data; 0 for all others.
    pub room: u32,
}

/// What is remembered of a receive request from its posting to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostedReceive {
    /// The request's.
    pub wr_id: u64,
    /// Bytes that it can take.
    pub room: u32,
}

/// A work request has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's.
    pub wr_id: u64,
    /// The QP.
    pub qpn: u32,
    /// How.
    pub outcome: Completed,
}

/// How a work request has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// A send request is done.
    Sent {
        /// Its operation.
        opcode: Opcode,
        /// Bytes that a read or an atomic brought; 0 for all others.
        bytes: u32,
    },
    /// A message was received.
    Received(Received),
    /// The request has failed, or was flushed.
    Failed {
        /// It was a send request; a receive request otherwise.
        send: bool,
        /// Why.
        syndrome: Syndrome,
        /// The device's own code.
        vendor: u8,
    },
}

/// A message that was received. What stands after the payload is valid for datagrams only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes, including 40 for a GRH if it was a datagram. Not more than were posted, but for an RDMA write,
    /// whose bytes lie elsewhere.
    pub bytes: u32,
    /// What came besides.
    pub payload: Payload,
    /// An RDMA write with immediate; a SEND otherwise.
    pub write: bool,
    /// The QP that sent it; of an XRC target the SRQ that took it, whatever the service.
    pub source_qpn: u32,
    /// The LID that it came from.
    pub slid: u16,
    /// Service level.
    pub sl: u8,
    /// Low bits of the destination LID.
    pub path_bits: u8,
    /// There was a GRH; it is in the first 40 bytes.
    pub grh: bool,
    /// QP1: index of the P_Key.
    pub pkey_index: u8,
}

/// What a message carried besides its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    Plain,
    /// Immediate data, whose bytes are as they came.
    Immediate([u8; 4]),
    /// It has invalidated this rkey.
    Invalidated(u32),
}

/// Whether a send request brings bytes of the other end.
pub(crate) fn brings_bytes(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::RDMA_READ
            | Opcode::ATOMIC_CS
            | Opcode::ATOMIC_FA
            | Opcode::MASKED_ATOMIC_CS
            | Opcode::MASKED_ATOMIC_FA
    )
}

/// Bits of the P_Key index in the immediate word.
const PKEY_INDEX: u8 = 0x7f;

impl Completed {
    /// Reads a CQE. `None` if its opcode is none of a completion.
    pub(crate) fn read(cqe: &Cqe) -> Option<Self> {
        if cqe.owner.is_error() {
            let error = ErrorCqe::from(*cqe);
            return Some(Self::Failed {
                send: cqe.owner.is_send(),
                syndrome: error.syndrome(),
                vendor: error.vendor_error().0,
            });
        }
        if cqe.owner.is_send() {
            let opcode = Opcode(cqe.opcode().0);
            let bytes = if brings_bytes(opcode) { cqe.byte_count.get() } else { 0 };
            return opcode.name().map(|_| Self::Sent { opcode, bytes });
        }
        received(cqe).map(Self::Received)
    }
}

fn received(cqe: &Cqe) -> Option<Received> {
    let CqeOpcode(opcode) = cqe.opcode();
    let payload = match ReceiveOpcode(opcode) {
        ReceiveOpcode::SEND => Payload::Plain,
        ReceiveOpcode::SEND_IMM | ReceiveOpcode::RDMA_WRITE_IMM => {
            Payload::Immediate(cqe.immediate.to_bytes())
        }
        ReceiveOpcode::SEND_INVALIDATE => Payload::Invalidated(cqe.immediate.get()),
        _ => return None,
    };
    let [.., pkey] = cqe.immediate.to_bytes();
    Some(Received {
        bytes: cqe.byte_count.get(),
        payload,
        write: ReceiveOpcode(opcode) == ReceiveOpcode::RDMA_WRITE_IMM,
        source_qpn: cqe.source.remote_qpn(),
        slid: cqe.slid.get(),
        sl: cqe.sl.sl(),
        path_bits: cqe.source.path_bits(),
        grh: cqe.source.grh(),
        pkey_index: pkey & PKEY_INDEX,
    })
}
