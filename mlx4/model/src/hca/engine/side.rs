//! One side of the work at hand: a queue pair with its HCA, for one burst. Completions and events go
//! through it.

use mlx4_wire::cqe::{Cqe, CqeOwner, CqeQp, ErrorCqe, Syndrome, VendorError};
use mlx4_wire::ctx::qp::QpState;
use mlx4_wire::eqe::{Eqe, EventType, QpEvent};
use mlx4_wire::wqe::Opcode;
use mlx4_wire::{Number24, U16, U32};
use zerocopy::FromZeros;

use crate::hca::Hca;
use crate::hca::burst::Burst;
use crate::hca::cq::{self, Cq};
use crate::hca::qp::{Attrs, Qp};
use crate::hca::running::Running;
use crate::hca::tpt::{KeyFault, User};
use crate::node::port::PortState;

/// A queue pair at work. Whoever has one holds the lock of one of the queue pair's halves.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) hca: &'a Hca,
    pub(super) burst: &'a Burst,
    pub(super) running: &'a Running,
    pub(super) qp: &'a Qp,
    pub(super) attrs: &'a Attrs,
}

impl<'a> Side<'a> {
    /// The port of the queue pair.
    pub(super) fn port(&self) -> Option<&'a PortState> {
        self.hca.node.port(self.attrs.port)
    }

    /// Whose keys the queue pair's own work requests, and remote requests to it, use.
    pub(super) fn user(&self) -> User {
        User { pd: self.attrs.pd, qpn: self.attrs.qpn & Number24::MAX }
    }

    /// The first word of this queue pair's completions.
    fn cqe_qp(&self) -> CqeQp {
        CqeQp::new().with_qpn(self.attrs.qpn & Number24::MAX)
    }

    /// An empty completion of this queue pair.
    pub(super) fn cqe(&self, wqe_index: u16, owner: CqeOwner) -> Cqe {
        let mut cqe = Cqe::new_zeroed();
        cqe.qp = self.cqe_qp();
        cqe.wqe_index = U16::new(wqe_index);
        cqe.owner = owner;
        cqe
    }

    /// Completes a send work request.
    pub(super) fn send_done(&self, counter: u16, opcode: Opcode, bytes: u32) {
        let mut cqe = self.cqe(counter, CqeOwner::send(opcode));
        cqe.byte_count = U32::new(bytes);
        self.complete(&self.attrs.send_cq, &cqe, false);
    }

    /// Completes a work request of the queue pair's own queues with an error.
    pub(super) fn error(&self, is_send: bool, wqe_index: u16, syndrome: Syndrome) {
        let cq = if is_send { &self.attrs.send_cq } else { &self.attrs.receive_cq };
        self.complete(cq, &self.failed(is_send, wqe_index, syndrome), true);
    }

    /// The completion of a work request with an error.
    pub(super) fn failed(&self, is_send: bool, wqe_index: u16, syndrome: Syndrome) -> Cqe {
        ErrorCqe::new(self.cqe_qp(), wqe_index, is_send, syndrome, vendor_error(syndrome)).into()
    }

    /// Writes a completion. A queue that can't take it is fatal to the queue pair, and to the CQ.
    pub(super) fn complete(&self, cq: &Cq, cqe: &Cqe, solicited: bool) {
        let failed = match cq.push(self.burst, cqe, solicited) {
            Ok(false) => return,
            Ok(true) => return self.hca.engine.ring_cq(cq.cqn),
            Err(failed) => failed,
        };
        if let Some(syndrome) = failed.first {
            log::info!("CQ {:#x} failed: {syndrome:?}", cq.cqn);
            self.hca.counters.cq_overruns.add(1);
            self.running.raise(self.burst, cq::error_event(cq.cqn, syndrome));
        }
        if self.fail(QpState::ERR) {
            self.raise(EventType::WQ_CATASTROPHIC);
        }
    }

    /// Raises an event of this queue pair.
    pub(super) fn raise(&self, event: EventType) {
        self.running.raise(self.burst, Eqe::new(event, 0, QpEvent::new(self.attrs.qpn)));
    }

    /// Moves the queue pair to an error state and has its engine flush what is posted. Says whether the
    /// state changed.
    pub(super) fn fail(&self, to: QpState) -> bool {
        let changed = self.qp.fail(to);
        if changed {
            log::debug!("QP {:#x} goes to {to:?}", self.attrs.qpn);
            self.hca.engine.ring(self.attrs.qpn);
        }
        changed
    }

    /// Counts an access that a local key refused.
    pub(super) fn refused_lkey(&self, fault: &KeyFault) {
        log::debug!("QP {:#x}: local access refused: {fault}", self.attrs.qpn);
        self.hca.counters.rejected_lkeys.add(1);
    }

    /// Counts an access that a remote key refused; this side is the owner of the memory.
    pub(super) fn refused_rkey(&self, fault: &KeyFault) {
        log::debug!("QP {:#x}: remote access refused: {fault}", self.attrs.qpn);
        self.hca.counters.rejected_rkeys.add(1);
    }
}

/// The vendor code that goes with a syndrome; any value does, zero looks like none.
fn vendor_error(syndrome: Syndrome) -> VendorError {
    match syndrome {
        Syndrome::REMOTE_ACCESS_ERR => VendorError::REMOTE_ACCESS_ERR,
        Syndrome::TRANSPORT_RETRY_EXC_ERR => VendorError::TRANSPORT_RETRY_EXC_ERR,
        Syndrome::RNR_RETRY_EXC_ERR => VendorError::RNR_RETRY_EXC_ERR,
        Syndrome::REMOTE_OP_ERR => VendorError::REMOTE_OP_ERR,
        Syndrome::REMOTE_INVAL_REQ_ERR => VendorError::REMOTE_INVAL_REQ_ERR,
        Syndrome::WR_FLUSH_ERR => VendorError::WR_FLUSH_ERR,
        other => VendorError(other.0 | 0x30),
    }
}
