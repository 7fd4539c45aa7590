//! What a traced command carries in its mailboxes, by opcode.

use std::fmt::Debug;

use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use mlx4_wire::cmd::diag::DiagCounters;
use mlx4_wire::cmd::fw::{MapEntry, ModStatCfg, ModStatCfgOp, QueryAdapter, QueryFw};
use mlx4_wire::cmd::hca::{InitHca, QueryHca};
use mlx4_wire::cmd::misc::SetNode;
use mlx4_wire::cmd::port::{QueryPort, SetPortIb};
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::eq::EqContext;
use mlx4_wire::ctx::mcg::McgHeader;
use mlx4_wire::ctx::mpt::MptEntry;
use mlx4_wire::ctx::qp::QpMailbox;
use mlx4_wire::ctx::srq::SrqContext;
use mlx4_wire::mad::header::MadHeader;
use mlx4_wire::regs::Hcr;
use zerocopy::FromBytes;

use super::Command;
use crate::hca::Hca;

/// How a mailbox is shown: its structure's name, size in bytes, and the decoder.
struct Layout {
    name: &'static str,
    bytes: usize,
    decode: fn(&[u8]) -> String,
}

fn layout<T: FromBytes + Debug>(name: &'static str) -> Option<Layout> {
    let decode =
        |bytes: &[u8]| T::read_from_prefix(bytes).map_or_else(|_| String::new(), |(t, _)| format!("{t:?}"));
    Some(Layout { name, bytes: size_of::<T>(), decode })
}

/// A MAD: its header decoded, all of its bytes shown.
fn mad() -> Option<Layout> {
    layout::<MadHeader>("Mad").map(|header| Layout { bytes: 256, ..header })
}

fn input(command: &Command) -> Option<Layout> {
    match command.opcode {
        Opcode::MAP_FA | Opcode::MAP_ICM | Opcode::MAP_ICM_AUX => layout::<MapEntry>("MapEntry"),
        Opcode::MOD_STAT_CFG if ModStatCfgOp(command.opmod) == ModStatCfgOp::SET => {
            layout::<ModStatCfg>("ModStatCfg")
        }
        Opcode::INIT_HCA => layout::<InitHca>("InitHca"),
        Opcode::SET_PORT => layout::<SetPortIb>("SetPortIb"),
        Opcode::SW2HW_MPT => layout::<MptEntry>("MptEntry"),
        Opcode::SW2HW_EQ => layout::<EqContext>("EqContext"),
        Opcode::SW2HW_CQ | Opcode::MODIFY_CQ => layout::<CqContext>("CqContext"),
        Opcode::SW2HW_SRQ => layout::<SrqContext>("SrqContext"),
        Opcode::RST2INIT_QP
        | Opcode::INIT2INIT_QP
        | Opcode::INIT2RTR_QP
        | Opcode::RTR2RTS_QP
        | Opcode::RTS2RTS_QP
        | Opcode::SQERR2RTS_QP
        | Opcode::SQD2SQD_QP
        | Opcode::SQD2RTS_QP => layout::<QpMailbox>("QpMailbox"),
        Opcode::WRITE_MCG => layout::<McgHeader>("McgHeader"),
        Opcode::MAD_IFC => mad(),
        Opcode::SET_NODE => layout::<SetNode>("SetNode"),
        _ => None,
    }
}

fn output(command: &Command) -> Option<Layout> {
    match command.opcode {
        Opcode::QUERY_FW => layout::<QueryFw>("QueryFw"),
        Opcode::QUERY_DEV_CAP => layout::<QueryDevCap>("QueryDevCap"),
        Opcode::QUERY_ADAPTER => layout::<QueryAdapter>("QueryAdapter"),
        Opcode::MOD_STAT_CFG if ModStatCfgOp(command.opmod) == ModStatCfgOp::QUERY => {
            layout::<ModStatCfg>("ModStatCfg")
        }
        Opcode::QUERY_HCA => layout::<QueryHca>("QueryHca"),
        Opcode::QUERY_PORT => layout::<QueryPort>("QueryPort"),
        Opcode::QUERY_MPT => layout::<MptEntry>("MptEntry"),
        Opcode::QUERY_EQ => layout::<EqContext>("EqContext"),
        Opcode::QUERY_CQ => layout::<CqContext>("CqContext"),
        Opcode::QUERY_SRQ => layout::<SrqContext>("SrqContext"),
        Opcode::QUERY_QP => layout::<QpMailbox>("QpMailbox"),
        Opcode::READ_MCG => layout::<McgHeader>("McgHeader"),
        Opcode::MAD_IFC => mad(),
        Opcode::DIAG_RPRT => layout::<DiagCounters>("DiagCounters"),
        _ => None,
    }
}

/// The lines of a mailbox, which is read from host memory now.
fn show(hca: &Hca, way: &str, address: u64, layout: Option<Layout>) -> Vec<String> {
    let Some(layout) = layout else { return Vec::new() };
    let mut bytes = vec![0; layout.bytes];
    if let Err(fault) = hca.dma.snapshot().read(address, &mut bytes) {
        return vec![format!("{way} {}: {fault}", layout.name)];
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![format!("{way} hex {hex}"), format!("{way} {}", (layout.decode)(&bytes))]
}

/// The lines of a command's input mailbox; taken before the command runs.
pub(super) fn before(hca: &Hca, command: &Command) -> Vec<String> {
    show(hca, "in", command.input, input(command))
}

/// Records a command that has run.
pub(super) fn record(
    hca: &Hca,
    hcr: &Hcr,
    command: &Command,
    outcome: super::Outcome,
    mut below: Vec<String>,
) {
    let Some(trace) = &hca.config.trace else { return };
    let Command { opcode, opmod, modifier, .. } = *command;
    let mode = if hcr.control.event() { "event" } else { "poll" };
    // Bus addresses of mailboxes tell nothing; immediate values do.
    let immediate =
        if input(command).is_none() { format!(" in={:#x}", command.input) } else { String::new() };
    let result = match outcome {
        Ok(result) => format!("OK out={result:#x}"),
        Err(status) => status.to_string(),
    };
    if outcome.is_ok() {
        below.extend(show(hca, "out", command.output, output(command)));
    }
    let what = format!("command {opcode} opmod={opmod} mod={modifier:#x}{immediate} {mode} -> {result}");
    trace.record(hca.config.node_guid, &what, &below);
}
