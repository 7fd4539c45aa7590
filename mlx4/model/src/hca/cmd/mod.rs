//! The command interface: one command at a time, executed on the thread that posted it.
//!
//! A command that was posted for an event is completed in the register first and reported on the EQ
//! afterwards; the driver may post the next one meanwhile.

mod firmware;
mod icm;
mod mcg;
mod port;
mod qp;
mod queues;
mod tpt;
mod trace;

use std::sync::Arc;

use mlx4_wire::cmd::{MAILBOX_BYTES, Opcode, Status};
use mlx4_wire::eqe::{CommandEvent, Eqe, EventType};
use mlx4_wire::regs::Hcr;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Hca;
use super::burst::Burst;
use super::fault::{FAULT_MAILBOX_BYTES, Fault};
use super::running::Running;

/// What a command carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Command {
    opcode: Opcode,
    /// Opcode modifier, 4 bits.
    opmod: u8,
    /// Input modifier.
    modifier: u32,
    /// Immediate input, or the bus address of the input mailbox.
    input: u64,
    /// Bus address of the output mailbox.
    output: u64,
}

/// The immediate result of a command that worked; 0 where it has none.
type Outcome = Result<u64, Status>;

/// How far bring-up has come: what MAP_FA, RUN_FW and SET_ICM_SIZE have set.
#[derive(Debug, Default)]
pub(super) struct Firmware {
    /// Pages of the firmware's own area, of 4 KiB.
    area_pages: u64,
    running: bool,
    icm_bytes: u64,
    /// Pages of auxiliary ICM, of 4 KiB.
    aux_pages: u64,
}

impl Firmware {
    /// Pages given to the firmware: its own area and the auxiliary ICM, in 4 KiB pages.
    pub(super) fn pages(&self) -> (u64, u64) {
        (self.area_pages, self.aux_pages)
    }
}

/// Executes a posted command and completes it.
pub(super) fn run(hca: &Hca, hcr: &Hcr) {
    let command = Command {
        opcode: hcr.control.opcode(),
        opmod: hcr.control.opmod(),
        modifier: hcr.in_modifier.get(),
        input: hcr.in_param.get(),
        output: hcr.out_param.get(),
    };
    // Held until the register says that the command is done, so that a reset by another thread comes before
    // or after the whole of it.
    let mut firmware = hca.firmware();
    if !hca.regs.is_pending() {
        log::debug!("{command:x?} is lost in a reset");
        return;
    }
    let below = if hca.config.trace.is_some() { trace::before(hca, &command) } else { Vec::new() };
    if let Some(fault) = hca.fault.get() {
        tamper(hca, &command, fault);
    }
    let mut outcome = execute(hca, &mut firmware, &command);
    if let (Ok(result), Some(fault)) = (&mut outcome, hca.fault.get()) {
        spoil(hca, &command, fault, result);
    }
    trace::record(hca, hcr, &command, outcome, below);
    let (status, result) = match outcome {
        Ok(result) => (Status::OK, result),
        Err(status) => (status, 0),
    };
    hca.counters.commands.add(1);
    if status == Status::OK {
        log::trace!("{command:x?} -> {result:#x}");
    } else {
        hca.counters.failed_commands.add(1);
        log::debug!("{command:x?} failed: {status}");
    }
    // A command without an immediate result leaves the register as the driver wrote it.
    let out_param = if result == 0 { command.output } else { result };
    hca.regs.complete(status, out_param);
    drop(firmware);
    if hcr.control.event() {
        report(hca, hcr.token.get(), status, result);
    }
}

/// Lets a fault change what a command is given.
fn tamper(hca: &Hca, command: &Command, fault: &Arc<dyn Fault>) {
    let burst = hca.enter_bare();
    let mut mailbox = [0; FAULT_MAILBOX_BYTES];
    let found = trace::has_input(command) && burst.dma.read(command.input, &mut mailbox).is_ok();
    let before = mailbox;
    fault.request(command.opcode, command.modifier, if found { &mut mailbox } else { &mut [] });
    if mailbox != before
        && let Err(error) = burst.dma.write(command.input, &mailbox)
    {
        log::warn!("mailbox of a fault: {error}");
    }
}

/// Lets a fault change the answer of a command.
fn spoil(hca: &Hca, command: &Command, fault: &Arc<dyn Fault>, result: &mut u64) {
    let burst = hca.enter_bare();
    let mut mailbox = [0; FAULT_MAILBOX_BYTES];
    let found = command.output != 0 && burst.dma.read(command.output, &mut mailbox).is_ok();
    fault.answer(command.opcode, if found { &mut mailbox } else { &mut [] }, result);
    if found && let Err(error) = burst.dma.write(command.output, &mailbox) {
        log::warn!("mailbox of a fault: {error}");
    }
}

fn report(hca: &Hca, token: u16, status: Status, result: u64) {
    let Some((burst, running)) = hca.enter() else {
        log::debug!("command {token:#x} wants an event before INIT_HCA");
        return;
    };
    running.raise(&burst, Eqe::new(EventType::COMMAND, 0, CommandEvent::new(token, status.0, result)));
}

fn execute(hca: &Hca, firmware: &mut Firmware, command: &Command) -> Outcome {
    match command.opcode {
        Opcode::QUERY_FW => return firmware::query_fw(hca, command),
        Opcode::MAP_FA => return firmware::map_fa(hca, firmware, command),
        Opcode::UNMAP_FA => return firmware::unmap_fa(hca, firmware),
        Opcode::RUN_FW => return firmware::run_fw(firmware),
        _ if !firmware.running => {
            return if command.opcode.name().is_some() {
                Err(Status::BAD_SYS_STATE)
            } else {
                Err(Status::BAD_OP)
            };
        }
        Opcode::NOP => return Ok(0),
        Opcode::QUERY_DEV_CAP => return firmware::query_dev_cap(hca, command),
        Opcode::QUERY_ADAPTER => return firmware::query_adapter(hca, command),
        Opcode::MOD_STAT_CFG => return firmware::mod_stat_cfg(hca, command),
        Opcode::QUERY_PORT => return port::query_port(hca, command),
        Opcode::SET_ICM_SIZE => return icm::set_icm_size(firmware, command),
        Opcode::MAP_ICM_AUX => return icm::map_icm_aux(hca, firmware, command),
        Opcode::UNMAP_ICM_AUX => return icm::unmap_icm_aux(hca, firmware),
        Opcode::MAP_ICM => return icm::map_icm(hca, firmware, command),
        Opcode::UNMAP_ICM => return icm::unmap_icm(hca, command),
        Opcode::INIT_HCA => return icm::init_hca(hca, firmware, command),
        Opcode::CLOSE_HCA => return icm::close_hca(hca),
        _ => {}
    }
    let running = hca.running.load_full().ok_or(Status::BAD_SYS_STATE);
    object_command(hca, running, command)
}

/// The commands that need a running HCA. An unknown opcode is reported as such in any state.
fn object_command(hca: &Hca, running: Result<Arc<Running>, Status>, command: &Command) -> Outcome {
    let handler: fn(&Hca, &Running, &Command) -> Outcome = match command.opcode {
        Opcode::QUERY_HCA => icm::query_hca,
        Opcode::SW2HW_MPT => tpt::sw2hw_mpt,
        Opcode::QUERY_MPT => tpt::query_mpt,
        Opcode::HW2SW_MPT => tpt::hw2sw_mpt,
        Opcode::WRITE_MTT => tpt::write_mtt,
        Opcode::SYNC_TPT => tpt::sync_tpt,
        Opcode::SW2HW_EQ => queues::sw2hw_eq,
        Opcode::HW2SW_EQ => queues::hw2sw_eq,
        Opcode::QUERY_EQ => queues::query_eq,
        Opcode::MAP_EQ => queues::map_eq,
        Opcode::SW2HW_CQ => queues::sw2hw_cq,
        Opcode::HW2SW_CQ => queues::hw2sw_cq,
        Opcode::QUERY_CQ => queues::query_cq,
        Opcode::MODIFY_CQ => queues::modify_cq,
        Opcode::SW2HW_SRQ => queues::sw2hw_srq,
        Opcode::HW2SW_SRQ => queues::hw2sw_srq,
        Opcode::QUERY_SRQ => queues::query_srq,
        Opcode::ARM_SRQ => queues::arm_srq,
        Opcode::RST2INIT_QP => qp::rst2init,
        Opcode::INIT2INIT_QP
        | Opcode::INIT2RTR_QP
        | Opcode::RTR2RTS_QP
        | Opcode::RTS2RTS_QP
        | Opcode::SQERR2RTS_QP
        | Opcode::RTS2SQD_QP
        | Opcode::SQD2SQD_QP
        | Opcode::SQD2RTS_QP => qp::transition,
        Opcode::TO_ERR_QP => qp::to_err,
        Opcode::TO_RST_QP => qp::to_rst,
        Opcode::QUERY_QP => qp::query,
        Opcode::CONF_SPECIAL_QP => qp::conf_special,
        Opcode::MGID_HASH => mcg::mgid_hash,
        Opcode::READ_MCG => mcg::read_mcg,
        Opcode::WRITE_MCG => mcg::write_mcg,
        Opcode::INIT_PORT => port::init_port,
        Opcode::CLOSE_PORT => port::close_port,
        Opcode::SET_PORT => port::set_port,
        Opcode::MAD_IFC => port::mad_ifc,
        Opcode::SET_NODE => port::set_node,
        Opcode::DIAG_RPRT => port::diag_rprt,
        _ => return Err(Status::BAD_OP),
    };
    handler(hca, &*running?, command)
}

/// Reads a structure from the start of an input mailbox.
///
/// # Errors
/// BAD_PARAM for a mailbox that isn't aligned to 4 KiB or can't be read.
fn read_mailbox<T: FromBytes + IntoBytes>(burst: &Burst, address: u64) -> Result<T, Status> {
    check_mailbox(address)?;
    burst.dma.read_obj(address).map_err(|fault| {
        log::debug!("input mailbox: {fault}");
        Status::BAD_PARAM
    })
}

/// Writes a structure to the start of an output mailbox.
///
/// # Errors
/// As [`read_mailbox`].
fn write_mailbox<T: IntoBytes + Immutable + ?Sized>(
    burst: &Burst,
    address: u64,
    value: &T,
) -> Result<u64, Status> {
    check_mailbox(address)?;
    burst.dma.write_obj(address, value).map_err(|fault| {
        log::debug!("output mailbox: {fault}");
        Status::BAD_PARAM
    })?;
    Ok(0)
}

fn check_mailbox(address: u64) -> Result<(), Status> {
    if address.is_multiple_of(MAILBOX_BYTES as u64) {
        return Ok(());
    }
    log::debug!("mailbox address {address:#x} isn't a multiple of {MAILBOX_BYTES}");
    Err(Status::BAD_PARAM)
}

/// Gives a context back to software: into the output mailbox, if the command asks for it. Linux sets the
/// low bit of the opcode modifier when it wants none, iPXE names no mailbox.
fn give_back<T: IntoBytes + Immutable>(burst: &Burst, command: &Command, context: &T) -> Outcome {
    if command.opmod & 1 != 0 || command.output == 0 {
        return Ok(0);
    }
    write_mailbox(burst, command.output, context)
}

impl Hca {
    /// Snapshots for a command on a running HCA.
    pub(super) fn command_burst(&self, running: &Running) -> Burst {
        Burst::new(self.dma.snapshot(), self.icm.snapshot(), running.icm).with_fault(self.fault.get())
    }
}
