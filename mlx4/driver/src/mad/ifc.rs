//! MAD_IFC: management datagrams that the firmware's agents answer.

use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::mad_ifc::{MadIfc, MadIfcModifier, MadIfcOp, MadPath};
use mlx4_wire::mad::MAD_SIZE;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{Number24, U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Arrival;
use crate::cmd::{Command, Commands, Input};
use crate::error::{Error, Fields, Result};

/// Hands a datagram that came from the wire to the firmware's agents of a port; returns their answer.
pub(crate) fn process(
    commands: &Commands,
    port: u8,
    mad: &[u8; MAD_SIZE],
    arrival: &Arrival,
) -> Result<[u8; MAD_SIZE]> {
    let mut mailbox = MadIfc::new_zeroed();
    mailbox.mad = *mad;
    mailbox.ext.my_qpn = Number24::wrapping(arrival.qpn);
    mailbox.ext.rqpn = Number24::wrapping(arrival.source_qpn);
    mailbox.ext.path = MadPath::new()
        .with_sl(arrival.sl & 0xf)
        .with_grh(arrival.grh.is_some())
        .with_path_bits(arrival.path_bits & 0x7f);
    mailbox.ext.pkey_index = U16::new(arrival.pkey_index.into());
    if let Some(grh) = arrival.grh {
        mailbox.ext.grh = grh;
    }
    let op = MadIfcOp::new().with_ext_info(true);
    let modifier = MadIfcModifier::new().with_rlid(arrival.slid).with_port(port);
    run(commands, op, modifier, mailbox.as_bytes())
}

/// Asks the firmware's subnet management agent of a port for an attribute.
///
/// # Errors
/// The agent answers with a status, or with something else.
pub(crate) fn get<T: FromBytes + IntoBytes>(
    commands: &Commands,
    port: u8,
    attribute: SmpAttribute,
    attribute_modifier: u32,
) -> Result<T> {
    let mut smp = Smp::new_zeroed();
    smp.header.base_version = MadHeader::BASE_VERSION;
    smp.header.mgmt_class = MgmtClass::SUBN_LID_ROUTED;
    smp.header.class_version = Smp::CLASS_VERSION;
    smp.header.method = Method::GET;
    smp.header.attribute_id = U16::new(attribute.0);
    smp.header.attribute_modifier = U32::new(attribute_modifier);
    let op = MadIfcOp::new().with_ignore_mkey(true).with_ignore_bkey(true);
    let modifier = MadIfcModifier::new().with_port(port);
    let answer = Smp::from_mad(&run(commands, op, modifier, smp.as_bytes())?);
    if answer.status() != Status::GOOD {
        return Err(Error::Mad { attribute: attribute.0, status: answer.status().0 });
    }
    let fields = Fields("answer of MAD_IFC");
    fields.is("method", answer.header.method.0, Method::GET_RESP.0.into())?;
    fields.is("attribute_id", answer.attribute_id().0, attribute.0.into())?;
    Ok(answer.attribute())
}

fn run(commands: &Commands, op: MadIfcOp, modifier: MadIfcModifier, input: &[u8]) -> Result<[u8; MAD_SIZE]> {
    let command = Command {
        opmod: op.into_bits(),
        input: Input::Mailbox(input),
        ..Command::new(Opcode::MAD_IFC, modifier.into_bits().get())
    };
    let mut answer = [0; MAD_SIZE];
    commands.execute(&command, &mut answer)?;
    Ok(answer)
}
