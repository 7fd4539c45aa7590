//! Event, completion and shared receive queues: taking over, giving back, querying, changing.

use std::sync::Arc;

use mlx4_wire::U32;
use mlx4_wire::cmd::Status;
use mlx4_wire::cmd::misc::{MapEqModifier, ModifyCqOp};
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::eq::EqContext;
use mlx4_wire::ctx::srq::SrqContext;
use zerocopy::IntoBytes;

use super::{Command, Outcome, give_back, read_mailbox, write_mailbox};
use crate::hca::Hca;
use crate::hca::cq::Cq;
use crate::hca::eq::Eq;
use crate::hca::running::{Kind, Running};
use crate::hca::srq::Srq;
use crate::hca::table::Table;

/// Sees to it that a number can be given to a new object, before any memory is touched for it.
///
/// # Errors
/// BAD_INDEX beyond the table, BAD_RES_STATE if the number is in hardware ownership already.
fn vacant<T>(table: &Table<T>, number: u32) -> Result<(), Status> {
    match live(table, number) {
        Ok(_) => Err(Status::BAD_RES_STATE),
        Err(Status::BAD_RES_STATE) => Ok(()),
        Err(status) => Err(status),
    }
}

fn live<T>(table: &Table<T>, number: u32) -> Result<Arc<T>, Status> {
    if number >= table.entries() {
        return Err(Status::BAD_INDEX);
    }
    table.get(number).ok_or(Status::BAD_RES_STATE)
}

pub(super) fn sw2hw_eq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    vacant(&running.eqs, command.modifier)?;
    let burst = hca.command_burst(running);
    let context: EqContext = read_mailbox(&burst, command.input)?;
    running.store_context(&burst, Kind::Eq, command.modifier, context.as_bytes())?;
    let eq = Eq::new(&burst, running, command.modifier, &context, hca.interrupts.clone())?;
    running.eqs.insert(command.modifier, Arc::new(eq));
    Ok(0)
}

pub(super) fn hw2sw_eq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let eq = live(&running.eqs, command.modifier)?;
    running.eqs.remove(command.modifier);
    eq.stop();
    give_back(&hca.command_burst(running), command, &eq.context())
}

pub(super) fn query_eq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let eq = live(&running.eqs, command.modifier)?;
    write_mailbox(&hca.command_burst(running), command.output, &eq.context())
}

pub(super) fn map_eq(_hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let modifier = MapEqModifier::from_bits(U32::new(command.modifier));
    if modifier.unmap() {
        running.route_events(command.input, None);
    } else {
        live(&running.eqs, modifier.eqn())?;
        running.route_events(command.input, Some(modifier.eqn()));
    }
    Ok(0)
}

pub(super) fn sw2hw_cq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    vacant(&running.cqs, command.modifier)?;
    let burst = hca.command_burst(running);
    let context: CqContext = read_mailbox(&burst, command.input)?;
    running.store_context(&burst, Kind::Cq, command.modifier, context.as_bytes())?;
    // A CQ whose events nobody takes may name an EQ that isn't there.
    let eq = running.eqs.get(context.completion_eq.eqn().into());
    let cq = Cq::new(&burst, running, command.modifier, &context, eq, command.opmod & 1 != 0)?;
    running.cqs.insert(command.modifier, Arc::new(cq));
    Ok(0)
}

pub(super) fn hw2sw_cq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let cq = live(&running.cqs, command.modifier)?;
    running.cqs.remove(command.modifier);
    cq.stop();
    give_back(&hca.command_burst(running), command, &cq.context())
}

pub(super) fn query_cq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let cq = live(&running.cqs, command.modifier)?;
    write_mailbox(&hca.command_burst(running), command.output, &cq.context())
}

pub(super) fn modify_cq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let cq = live(&running.cqs, command.modifier)?;
    let request: CqContext = read_mailbox(&hca.command_burst(running), command.input)?;
    match ModifyCqOp(command.opmod) {
        ModifyCqOp::RESIZE => {
            // A burst that is under way may complete here next: it must see what was mapped for the new ring.
            hca.dma.quiesce();
            cq.resize(&hca.command_burst(running), running, &request)?;
        }
        ModifyCqOp::MODERATION => {
            if cq.set_moderation(&hca.command_burst(running), &request) {
                hca.engine.ring_cq(cq.cqn);
            }
        }
        _ => return Err(Status::BAD_OP),
    }
    Ok(0)
}

pub(super) fn sw2hw_srq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    vacant(&running.srqs, command.modifier)?;
    let burst = hca.command_burst(running);
    let context: SrqContext = read_mailbox(&burst, command.input)?;
    running.store_context(&burst, Kind::Srq, command.modifier, context.as_bytes())?;
    let srq = Srq::new(&burst, running, command.modifier, &context)?;
    running.srqs.insert(command.modifier, Arc::new(srq));
    Ok(0)
}

pub(super) fn hw2sw_srq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let srq = live(&running.srqs, command.modifier)?;
    running.srqs.remove(command.modifier);
    srq.stop();
    let burst = hca.command_burst(running);
    give_back(&burst, command, &srq.context(&burst))
}

pub(super) fn query_srq(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let srq = live(&running.srqs, command.modifier)?;
    let burst = hca.command_burst(running);
    write_mailbox(&burst, command.output, &srq.context(&burst))
}

pub(super) fn arm_srq(_hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let srq = live(&running.srqs, command.modifier)?;
    srq.arm(u16::try_from(command.input).map_err(|_| Status::BAD_PARAM)?);
    Ok(0)
}
