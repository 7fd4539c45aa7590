//! What a traced command carries in its mailboxes, by opcode.

use std::fmt::Debug;

use mlx4_wire::U64;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use mlx4_wire::cmd::diag::DiagCounters;
use mlx4_wire::cmd::fw::{MapEntry, ModStatCfg, ModStatCfgOp, QueryAdapter, QueryFw};
use mlx4_wire::cmd::hca::{InitHca, QueryHca};
use mlx4_wire::cmd::mad_ifc::{MadExtInfo, MadIfc, MadIfcOp};
use mlx4_wire::cmd::misc::SetNode;
use mlx4_wire::cmd::port::{QueryPort, SetPortIb};
use mlx4_wire::cmd::{MAILBOX_BYTES, Opcode};
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::eq::EqContext;
use mlx4_wire::ctx::mcg::{McgHeader, McgMember};
use mlx4_wire::ctx::mpt::MptEntry;
use mlx4_wire::ctx::qp::QpMailbox;
use mlx4_wire::ctx::srq::SrqContext;
use mlx4_wire::mad::MAD_SIZE;
use mlx4_wire::mad::header::MadHeader;
use mlx4_wire::regs::Hcr;
use zerocopy::FromBytes;

use super::Command;
use crate::hca::Hca;
use crate::trace::hex;

/// How a mailbox is shown: its structure's name, size in bytes, and the decoder.
struct Layout {
    name: &'static str,
    bytes: usize,
    /// How many bytes more follow, by the first `bytes`.
    tail: fn(&[u8]) -> usize,
    decode: fn(&[u8]) -> String,
}

fn decode<T: FromBytes + Debug>(bytes: &[u8]) -> String {
    T::read_from_prefix(bytes).map_or_else(|_| String::new(), |(t, _)| format!("{t:?}"))
}

fn layout<T: FromBytes + Debug>(name: &'static str) -> Option<Layout> {
    Some(Layout { name, bytes: size_of::<T>(), tail: |_| 0, decode: decode::<T> })
}

/// `count` structures, no more than a mailbox holds.
fn array<T: FromBytes + Debug>(name: &'static str, count: u32) -> Option<Layout> {
    let most = MAILBOX_BYTES / size_of::<T>();
    let count = usize::try_from(count).unwrap_or(most).min(most);
    let decode = |bytes: &[u8]| {
        let each: Vec<String> = bytes.chunks_exact(size_of::<T>()).map(decode::<T>).collect();
        each.join(", ")
    };
    Some(Layout { name, bytes: count * size_of::<T>(), tail: |_| 0, decode })
}

/// A MAD: its header decoded, all of its bytes shown, with the extended information if there is some.
fn mad(command: &Command) -> Option<Layout> {
    if !MadIfcOp::from_bits(command.opmod).ext_info() {
        return layout::<MadHeader>("Mad").map(|header| Layout { bytes: MAD_SIZE, ..header });
    }
    let decode = |bytes: &[u8]| {
        let (mad, ext) = bytes.split_at(MAD_SIZE.min(bytes.len()));
        format!("{}, {}", decode::<MadHeader>(mad), decode::<MadExtInfo>(ext))
    };
    Some(Layout { name: "MadIfc", bytes: size_of::<MadIfc>(), tail: |_| 0, decode })
}

/// An entry of the multicast table: the head, and as many members as it says.
fn group() -> Option<Layout> {
    const HEAD: usize = size_of::<McgHeader>();
    let tail = |head: &[u8]| {
        let count = McgHeader::read_from_prefix(head).map_or(0, |(head, _)| head.members.count());
        let most = (MAILBOX_BYTES - HEAD) / size_of::<McgMember>();
        usize::try_from(count).unwrap_or(most).min(most) * size_of::<McgMember>()
    };
    let decode = |bytes: &[u8]| {
        let (head, members) = bytes.split_at(HEAD.min(bytes.len()));
        let members: Vec<String> =
            members.chunks_exact(size_of::<McgMember>()).map(decode::<McgMember>).collect();
        format!("{} [{}]", decode::<McgHeader>(head), members.join(", "))
    };
    Some(Layout { name: "Mcg", bytes: HEAD, tail, decode })
}

fn input(command: &Command) -> Option<Layout> {
    match command.opcode {
        Opcode::MAP_FA | Opcode::MAP_ICM | Opcode::MAP_ICM_AUX => {
            array::<MapEntry>("MapEntry", command.modifier)
        }
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
        Opcode::WRITE_MTT => array::<U64>("WriteMtt", command.modifier.saturating_add(2)),
        Opcode::WRITE_MCG => group(),
        Opcode::MGID_HASH => layout::<[u8; 16]>("Gid"),
        Opcode::MAD_IFC => mad(command),
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
        Opcode::READ_MCG => group(),
        Opcode::MAD_IFC => layout::<MadHeader>("Mad").map(|header| Layout { bytes: MAD_SIZE, ..header }),
        Opcode::DIAG_RPRT => layout::<DiagCounters>("DiagCounters"),
        _ => None,
    }
}

/// The lines of a mailbox, which is read from host memory now.
fn show(hca: &Hca, way: &str, address: u64, layout: Option<Layout>) -> Vec<String> {
    let Some(layout) = layout else { return Vec::new() };
    let mut bytes = vec![0; layout.bytes];
    let memory = hca.dma.snapshot();
    let read = memory.read(address, &mut bytes).and_then(|()| {
        let head = bytes.len();
        bytes.resize(head + (layout.tail)(&bytes), 0);
        memory.read(address + head as u64, &mut bytes[head..])
    });
    if let Err(fault) = read {
        return vec![format!("{way} {}: {fault}", layout.name)];
    }
    vec![format!("{way} hex {}", hex(&bytes)), format!("{way} {}", (layout.decode)(&bytes))]
}

/// Whether a command has an input mailbox of a known layout.
pub(super) fn has_input(command: &Command) -> bool {
    input(command).is_some()
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
