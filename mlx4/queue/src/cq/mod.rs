//! The completion queue: polling and arming.

mod resize;
mod ring;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mlx4_wire::Number24;
use mlx4_wire::cqe::Cqe;
use mlx4_wire::doorbell::{CqArm, CqArmCommand, CqArmRecord, CqDoorbell};
use mlx4_wire::wqe::Opcode;
use zerocopy::transmute;

use self::resize::Resize;
pub use self::resize::ResizeError;
use self::ring::Ring;

use crate::completion::{Completed, Completion, PostedReceive, PostedSend, Received};
use crate::geometry::CqGeometry;
use crate::record::{CompletionRecord, Place, PlaceError};
use crate::{Doorbell, RingMemory};

/// The bit of a QP number that an XRC target has, and only it.
pub const XRC_TARGET: u32 = 1 << 23;

/// What an armed CQ notifies of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The next completion.
    Next,
    /// The next completion that is solicited or a failure.
    Solicited,
}

/// The sequence number by which the HCA tells a stale arm request from a new one.
///
/// It counts the completion events of the CQ; whoever takes them from the event queue counts, without the
/// CQ's lock.
#[derive(Debug)]
pub struct ArmSequence(AtomicU32);

impl ArmSequence {
    /// A completion event of the CQ was taken.
    pub fn event_taken(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire) & 3
    }
}

/// The queues whose requests complete in a CQ.
pub trait WorkQueues {
    /// A send request of a QP has completed, with all unsignalled ones before it. `None` if it isn't
    /// outstanding.
    fn send_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedSend>;

    /// A receive request of a QP, or of its SRQ, has completed. `None` if it isn't outstanding.
    fn receive_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedReceive>;

    /// A receive request of an XRC SRQ has completed. `None` if it isn't outstanding.
    fn xrc_completed(&mut self, srqn: u32, wqe_index: u16) -> Option<PostedReceive> {
        let _none_has_such = (srqn, wqe_index);
        None
    }
}

/// Bytes of the longest message (IBTA vol. 1, 9.7.7.1).
const MAX_MESSAGE: u32 = 1 << 31;

/// The HCA has written a completion that can't be. It is passed over, and its request with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CqError {
    /// An opcode that is none of a completion.
    #[error("completion of QP {qpn:#x} with opcode byte {opcode:#04x}")]
    Opcode {
        /// The QP.
        qpn: u32,
        /// Last byte of the CQE.
        opcode: u8,
    },
    /// The opcode isn't that of the request.
    #[error("completion of QP {qpn:#x} with opcode {opcode}, but {posted} was posted")]
    Operation {
        /// The QP.
        qpn: u32,
        /// What the CQE says.
        opcode: Opcode,
        /// What the request was.
        posted: Opcode,
    },
    /// More bytes than the request has room for.
    #[error("completion of QP {qpn:#x} with byte_count {byte_count:#x}, but there is room for {room:#x}")]
    ByteCount {
        /// The QP.
        qpn: u32,
        /// What the CQE says, in bytes.
        byte_count: u32,
        /// Bytes that were posted; of an RDMA write, those of the longest message.
        room: u32,
    },
    /// No such request is outstanding.
    #[error("completion with qpn {qpn:#x}, wqe_index {wqe_index:#x} and is_send {send}: no such request")]
    NotOutstanding {
        /// The QP.
        qpn: u32,
        /// Counter or index of the request.
        wqe_index: u16,
        /// Whether it would have been a send request.
        send: bool,
    },
}

/// A completion queue.
pub struct CompletionQueue<M, D> {
    ring: Ring<M>,
    resize: Resize<M>,
    record: CompletionRecord<M>,
    cqn: u32,
    doorbell: D,
    sequence: Arc<ArmSequence>,
    /// Consumer index, modulo 2^32.
    consumer: u32,
}

impl<M: RingMemory, D: Doorbell> CompletionQueue<M, D> {
    /// CQ `cqn` (24 bits, the rest is cut off) at a place, with its doorbell record. Writes nothing:
    /// [`CompletionQueue::reset`] does.
    ///
    /// # Errors
    /// The ring isn't inside its memory or not aligned to an entry, or the record is not in its own.
    pub fn new(
        place: Place<M>,
        record: Place<M>,
        geometry: CqGeometry,
        cqn: u32,
        doorbell: D,
    ) -> Result<Self, PlaceError> {
        Ok(Self {
            ring: Ring::new(place, geometry)?,
            resize: Resize::None,
            record: CompletionRecord::new(record)?,
            cqn: cqn & Number24::MAX,
            doorbell,
            sequence: Arc::new(ArmSequence(AtomicU32::new(1))),
            consumer: 0,
        })
    }

    /// The geometry.
    pub fn geometry(&self) -> &CqGeometry {
        self.ring.geometry()
    }

    /// The sequence number of arm requests, for whoever takes events.
    pub fn sequence(&self) -> Arc<ArmSequence> {
        Arc::clone(&self.sequence)
    }

    /// Zeroes the record and marks every entry as not valid: before the CQ goes to the HCA.
    pub fn reset(&mut self) {
        self.consumer = 0;
        self.record.set_consumer_index(0);
        self.record.set_arm(CqArmRecord::new());
        self.resize = Resize::None;
        self.ring.fill();
    }

    /// Takes the next completion; `None` if there is none. The HCA may reuse its entry after
    /// [`CompletionQueue::commit`].
    pub fn poll(&mut self, queues: &mut impl WorkQueues) -> Option<Result<Completion, CqError>> {
        let mut cqe = self.ring.entry(self.consumer)?;
        if cqe.owner.is_resize() && self.turn() {
            cqe = self.ring.entry(self.consumer)?;
        }
        self.consumer = self.consumer.wrapping_add(1);
        Some(resolve(&cqe, queues))
    }

    /// Gives the entries of all completions that were polled back to the HCA.
    pub fn commit(&self) {
        self.record.set_consumer_index(self.consumer);
    }

    /// Asks for an event; if a completion is there that wasn't polled, the event comes at once.
    pub fn arm(&mut self, notify: Notify) {
        let (sequence, index) = (self.sequence.get(), self.consumer & Number24::MAX);
        let command = match notify {
            Notify::Next => CqArmCommand::NEXT,
            Notify::Solicited => CqArmCommand::SOLICITED,
        };
        let arm = CqArmRecord::new().with_sequence(sequence).with_command(command);
        self.record.set_arm(arm.with_consumer_index(index));
        let doorbell = CqDoorbell {
            arm: CqArm::new().with_sequence(sequence).with_command(command).with_cqn(self.cqn),
            consumer_index: Number24::wrapping(index),
        };
        self.doorbell.ring(u64::from_be_bytes(transmute!(doorbell)));
    }

    /// Takes all completions of a QP out, which was destroyed or reset: the HCA writes no more of them.
    /// `dropped` is told the entry of each, newest first.
    pub fn clean(&mut self, qpn: u32, mut dropped: impl FnMut(&Cqe)) {
        self.take_out(|cqe| {
            let its = cqe.qp.qpn() == qpn;
            if its {
                dropped(cqe);
            }
            its
        });
    }

    /// Takes all completions of an XRC SRQ out, which was destroyed: the HCA writes no more of them.
    pub fn clean_xrc(&mut self, srqn: u32) {
        self.take_out(|cqe| xrc_srqn(cqe) == Some(srqn));
    }

    fn take_out(&mut self, mut its: impl FnMut(&Cqe) -> bool) {
        self.turn();
        let mut at = self.ring.end(self.consumer, |_| false);
        let mut gone = 0;
        while at != self.consumer {
            at = at.wrapping_sub(1);
            let Some(cqe) = self.ring.entry(at) else { continue };
            if its(&cqe) {
                gone += 1;
            } else if gone != 0 {
                self.ring.replace(at.wrapping_add(gone), cqe);
            }
        }
        self.consumer = self.consumer.wrapping_add(gone);
        self.commit();
    }
}

/// The SRQ of a completion of an XRC target.
fn xrc_srqn(cqe: &Cqe) -> Option<u32> {
    let target = cqe.qp.qpn() & XRC_TARGET != 0 && !cqe.owner.is_send();
    target.then(|| cqe.source.remote_qpn())
}

fn resolve(cqe: &Cqe, queues: &mut impl WorkQueues) -> Result<Completion, CqError> {
    let (qpn, wqe_index, send) = (cqe.qp.qpn(), cqe.wqe_index.get(), cqe.owner.is_send());
    let outcome = Completed::read(cqe).ok_or(CqError::Opcode { qpn, opcode: cqe.owner.into_bits() })?;
    let missing = CqError::NotOutstanding { qpn, wqe_index, send };
    let (wr_id, room) = if send {
        let posted = queues.send_completed(qpn, wqe_index).ok_or(missing)?;
        if let Completed::Sent { opcode, .. } = outcome
            && opcode != posted.opcode
        {
            return Err(CqError::Operation { qpn, opcode, posted: posted.opcode });
        }
        (posted.wr_id, posted.room)
    } else {
        let posted = match xrc_srqn(cqe) {
            Some(srqn) => queues.xrc_completed(srqn, wqe_index),
            None => queues.receive_completed(qpn, wqe_index),
        };
        let posted = posted.ok_or(missing)?;
        (posted.wr_id, posted.room)
    };
    let (byte_count, room) = match outcome {
        Completed::Sent { bytes, .. } => (bytes, room),
        // The bytes of an RDMA write aren't in the receive request.
        Completed::Received(Received { bytes, write: true, .. }) => (bytes, MAX_MESSAGE),
        Completed::Received(Received { bytes, .. }) => (bytes, room),
        Completed::Failed { .. } => (0, 0),
    };
    if byte_count > room {
        return Err(CqError::ByteCount { qpn, byte_count, room });
    }
    Ok(Completion { wr_id, qpn, outcome })
}

impl<M, D> std::fmt::Debug for CompletionQueue<M, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("cqn", &self.cqn)
            .field("geometry", self.ring.geometry())
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}
