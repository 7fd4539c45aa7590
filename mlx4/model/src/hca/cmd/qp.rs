//! Queue pairs: the transitions, QUERY_QP and CONF_SPECIAL_QP.

use std::sync::Arc;

use mlx4_wire::cmd::misc::SqdModifier;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::qp::{QpMailbox, QpState};
use mlx4_wire::{Number24, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::{Command, Outcome, read_mailbox, write_mailbox};
use crate::hca::Hca;
use crate::hca::caps;
use crate::hca::qp::Qp;
use crate::hca::running::{Kind, Running};

fn number(command: &Command) -> u32 {
    command.modifier & Number24::MAX
}

fn live(running: &Running, command: &Command) -> Result<Arc<Qp>, Status> {
    running.qps.get(number(command)).filter(|qp| qp.qpn == number(command)).ok_or(Status::BAD_QP_STATE)
}

pub(super) fn rst2init(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let qpn = number(command);
    let index = qpn & (running.qps.entries() - 1);
    if index < 1 << caps::LOG2_RESERVED_QPS {
        log::debug!("QP {qpn:#x} is reserved for the firmware");
        return Err(Status::BAD_RESOURCE);
    }
    if running.qps.get(qpn).is_some() {
        return Err(Status::BAD_QP_STATE);
    }
    let burst = hca.command_burst(running);
    let mailbox: QpMailbox = read_mailbox(&burst, command.input)?;
    running.store_context(&burst, Kind::Qp, index, mailbox.context.as_bytes())?;
    let qp = Qp::new(&burst, running, qpn, &mailbox)?;
    running.qps.insert(qpn, Arc::new(qp));
    Ok(0)
}

pub(super) fn transition(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let burst = hca.command_burst(running);
    let qp = live(running, command)?;
    let mailbox: QpMailbox = match command.opcode {
        Opcode::RTS2SQD_QP => QpMailbox::new_zeroed(),
        _ => read_mailbox(&burst, command.input)?,
    };
    let drain_event = SqdModifier::from_bits(U32::new(command.modifier)).event();
    qp.transition(&burst, running, command.opcode, &mailbox, drain_event)?;
    // Whatever was posted or is to be drained meanwhile runs now.
    hca.engine.ring(qp.qpn);
    Ok(0)
}

/// Moves a queue pair to ERR. One in RST has nothing to flush.
pub(super) fn to_err(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    if let Ok(qp) = live(running, command) {
        qp.error();
        hca.engine.ring(qp.qpn);
    }
    Ok(0)
}

/// Moves a queue pair to RST, from any state. When this is done, its queues aren't touched any more.
pub(super) fn to_rst(_hca: &Hca, running: &Running, command: &Command) -> Outcome {
    if let Ok(qp) = live(running, command) {
        running.qps.remove(qp.qpn);
        qp.reset();
    }
    Ok(0)
}

pub(super) fn query(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let mut mailbox = QpMailbox::new_zeroed();
    match live(running, command) {
        Ok(qp) => mailbox.context = qp.query(),
        Err(_) => mailbox.context.flags.set_state(QpState::RST),
    }
    write_mailbox(&hca.command_burst(running), command.output, &mailbox)
}

/// Names the special queue pairs: QP0 of both ports, then QP1 of both ports; 0 takes them back.
pub(super) fn conf_special(_hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let base = number(command);
    if !base.is_multiple_of(8) || base >= running.qps.entries() {
        return Err(Status::BAD_PARAM);
    }
    running.set_special_base(base);
    Ok(0)
}
