//! What a command's input mailbox carries, as fields.

use std::fmt::Debug;

use mlx4_wire::U64;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::fw::{MapEntry, ModStatCfg, ModStatCfgOp};
use mlx4_wire::cmd::hca::InitHca;
use mlx4_wire::cmd::mad_ifc::MadExtInfo;
use mlx4_wire::cmd::misc::SetNode;
use mlx4_wire::cmd::port::SetPortIb;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::eq::EqContext;
use mlx4_wire::ctx::mcg::{McgHeader, McgMember};
use mlx4_wire::ctx::mpt::MptEntry;
use mlx4_wire::ctx::qp::QpMailbox;
use mlx4_wire::ctx::srq::SrqContext;
use mlx4_wire::mad::MAD_SIZE;
use mlx4_wire::mad::header::MadHeader;
use zerocopy::FromBytes;

use super::Command;
use super::fields::{self, Field};

/// The fields of the input mailbox; none if it has none.
pub(super) fn input(command: &Command) -> Vec<Field> {
    let bytes = &command.input;
    match command.opcode {
        Opcode::MAP_FA | Opcode::MAP_ICM | Opcode::MAP_ICM_AUX => map_entries(bytes),
        Opcode::MOD_STAT_CFG if ModStatCfgOp(command.opmod) == ModStatCfgOp::SET => one::<ModStatCfg>(bytes),
        Opcode::INIT_HCA => init_hca(bytes),
        Opcode::SET_PORT => one::<SetPortIb>(bytes),
        Opcode::SW2HW_MPT => one::<MptEntry>(bytes),
        Opcode::SW2HW_EQ => one::<EqContext>(bytes),
        Opcode::SW2HW_CQ | Opcode::MODIFY_CQ => one::<CqContext>(bytes),
        Opcode::SW2HW_SRQ => one::<SrqContext>(bytes),
        Opcode::WRITE_MCG => group(bytes),
        Opcode::MAD_IFC => mad(bytes),
        Opcode::SET_NODE => one::<SetNode>(bytes),
        Opcode::WRITE_MTT => many::<U64>("entry", bytes),
        _ if is_transition(command.opcode) => one::<QpMailbox>(bytes),
        _ => Vec::new(),
    }
}

/// Whether the command takes a QP from one state to another with a mailbox.
pub(super) fn is_transition(opcode: Opcode) -> bool {
    [
        Opcode::RST2INIT_QP,
        Opcode::INIT2INIT_QP,
        Opcode::INIT2RTR_QP,
        Opcode::RTR2RTS_QP,
        Opcode::RTS2RTS_QP,
        Opcode::SQERR2RTS_QP,
        Opcode::SQD2SQD_QP,
        Opcode::SQD2RTS_QP,
    ]
    .contains(&opcode)
}

fn one<T: FromBytes + Debug>(bytes: &[u8]) -> Vec<Field> {
    T::read_from_prefix(bytes).map_or_else(|_| Vec::new(), |(value, _)| fields::of(&value))
}

fn many<T: FromBytes + Debug>(name: &str, bytes: &[u8]) -> Vec<Field> {
    let prefix = |(field, value): Field| {
        (if field.is_empty() { name.to_owned() } else { format!("{name}.{field}") }, value)
    };
    bytes.chunks_exact(size_of::<T>()).flat_map(one::<T>).map(prefix).collect()
}

fn field(name: &str, value: impl ToString) -> Field {
    (name.to_owned(), value.to_string())
}

fn map_entries(bytes: &[u8]) -> Vec<Field> {
    let entries = bytes.chunks_exact(size_of::<MapEntry>()).flat_map(MapEntry::read_from_bytes);
    let parts = |e: MapEntry| [field("va", e.va()), field("pa", e.pa()), field("log2_pages", e.log2_pages())];
    entries.flat_map(parts).collect()
}

/// INIT_HCA, with the tables' words taken apart.
fn init_hca(bytes: &[u8]) -> Vec<Field> {
    let Ok((init, _)) = InitHca::read_from_prefix(bytes) else { return Vec::new() };
    let mut found = fields::of(&init);
    found.retain(|(name, _)| !name.ends_with(".base_log2"));
    let p = &init.params;
    for (name, table) in [("qpc", p.qpc), ("srqc", p.srqc), ("cqc", p.cqc), ("eqc", p.eqc)] {
        found.push(field(&format!("params.{name}.base"), table.base()));
        found.push(field(&format!("params.{name}.log2_entries"), table.log2_entries()));
    }
    found.push(field("params.rdmarc.base", p.rdmarc.base()));
    found.push(field("params.rdmarc.log2_per_qp", p.rdmarc.log2_per_qp()));
    found
}

fn group(bytes: &[u8]) -> Vec<Field> {
    let (head, members) = bytes.split_at(size_of::<McgHeader>().min(bytes.len()));
    let mut found = one::<McgHeader>(head);
    found.extend(many::<McgMember>("member", members));
    found
}

/// The header of a MAD and, where there is some, the extended information.
fn mad(bytes: &[u8]) -> Vec<Field> {
    let (mad, ext) = bytes.split_at(MAD_SIZE.min(bytes.len()));
    let mut found = one::<MadHeader>(mad);
    found.extend(many::<MadExtInfo>("ext", ext));
    found
}
