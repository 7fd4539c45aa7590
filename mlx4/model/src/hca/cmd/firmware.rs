//! QUERY_FW, the firmware area, and what the device says of itself.

use mlx4_wire::cmd::Status;
use mlx4_wire::cmd::fw::{MAP_ENTRIES_MAX, MapEntry, ModStatCfg, ModStatCfgOp, QueryAdapter, QueryFw};
use zerocopy::{FromZeros, IntoBytes};

use super::{Command, Firmware, Outcome, check_mailbox, write_mailbox};
use crate::hca::burst::Burst;
use crate::hca::{Hca, caps, regs};

/// Board id (PSID) of a dual-port FDR card, MCX354A-FCBT.
const BOARD_ID: &[u8; 16] = b"MT_1090120019\0\0\0";

pub(super) fn query_fw(hca: &Hca, command: &Command) -> Outcome {
    let mut fw = QueryFw::new_zeroed();
    let (major, minor, subminor) = caps::FIRMWARE;
    fw.fw_pages.set(caps::FIRMWARE_PAGES);
    fw.fw_rev_major.set(major);
    fw.fw_rev_minor.set(minor);
    fw.fw_rev_subminor.set(subminor);
    fw.cmd_interface_rev.set(3);
    fw.log2_max_outstanding_cmd = caps::LOG2_MAX_COMMANDS;
    fw.clr_int_base.set(regs::CLR_INT_OFFSET);
    fw.error_buf_offset.set(regs::ERROR_BUFFER_OFFSET);
    fw.error_buf_size.set(u32::try_from(regs::ERROR_BUFFER_WORDS).unwrap_or(0));
    fw.comm_base.set(regs::COMM_OFFSET);
    fw.clock_offset.set(regs::CLOCK_OFFSET);
    write_mailbox(&hca.enter_bare(), command.output, &fw)
}

/// Bytes of a page of the firmware's, whatever the host's page size.
const PAGE_BYTES: u64 = 4096;

/// Reads the entries of a MAP_FA, MAP_ICM or MAP_ICM_AUX mailbox.
///
/// # Errors
/// BAD_PARAM for too many entries, or one that isn't aligned to its size or is larger than 2^40 bytes.
pub(super) fn map_entries(burst: &Burst, command: &Command) -> Result<Vec<MapEntry>, Status> {
    let count = usize::try_from(command.modifier).unwrap_or(usize::MAX);
    check_mailbox(command.input)?;
    if count > MAP_ENTRIES_MAX {
        log::debug!("{:?} names {count} ranges; a mailbox holds {MAP_ENTRIES_MAX}", command.opcode);
        return Err(Status::BAD_PARAM);
    }
    let mut entries = vec![MapEntry::new_zeroed(); count];
    burst.dma.read(command.input, entries.as_mut_bytes()).map_err(|_| Status::BAD_PARAM)?;
    for entry in &entries {
        let aligned = entry.log2_pages() <= 28
            && (entry.va() | entry.pa()).is_multiple_of(PAGE_BYTES << entry.log2_pages());
        if !aligned {
            log::debug!(
                "{:?}: range {:#x} at {:#x} of 2^{} pages isn't aligned to its size",
                command.opcode,
                entry.va(),
                entry.pa(),
                entry.log2_pages()
            );
            return Err(Status::BAD_PARAM);
        }
    }
    Ok(entries)
}

pub(super) fn map_fa(hca: &Hca, firmware: &mut Firmware, command: &Command) -> Outcome {
    if firmware.running {
        return Err(Status::BAD_SYS_STATE);
    }
    let burst = hca.enter_bare();
    let entries = map_entries(&burst, command)?;
    reachable(&burst, &entries)?;
    firmware.area_pages = firmware.area_pages.saturating_add(pages(&entries));
    Ok(0)
}

/// Number of 4 KiB pages in all ranges.
pub(super) fn pages(entries: &[MapEntry]) -> u64 {
    entries.iter().map(|entry| 1u64 << entry.log2_pages()).sum()
}

/// Pages given to the firmware must be there, as a real one writes to them. Looks at the first and the last
/// of each range: what isn't there in between is noticed when it is used.
pub(super) fn reachable(burst: &Burst, entries: &[MapEntry]) -> Result<(), Status> {
    for entry in entries {
        let last = entry.pa() + ((PAGE_BYTES << entry.log2_pages()) - PAGE_BYTES);
        for page in [entry.pa(), last] {
            burst.dma.for_each(page, PAGE_BYTES, crate::mem::Access::Write, |_| {}).map_err(|fault| {
                log::debug!("pages given to the firmware: {fault}");
                Status::BAD_PARAM
            })?;
        }
    }
    Ok(())
}

pub(super) fn run_fw(firmware: &mut Firmware) -> Outcome {
    let given = firmware.area_pages;
    if firmware.running || given < u64::from(caps::FIRMWARE_PAGES) {
        log::debug!("RUN_FW with {given} pages of firmware area, running: {}", firmware.running);
        return Err(Status::BAD_SYS_STATE);
    }
    firmware.running = true;
    Ok(0)
}

pub(super) fn unmap_fa(hca: &Hca, firmware: &mut Firmware) -> Outcome {
    if hca.running.load().is_some() || firmware.aux_pages != 0 {
        return Err(Status::BAD_SYS_STATE);
    }
    *firmware = Firmware::default();
    Ok(0)
}

pub(super) fn query_dev_cap(hca: &Hca, command: &Command) -> Outcome {
    write_mailbox(&hca.enter_bare(), command.output, &caps::query_dev_cap(hca.config.ports))
}

pub(super) fn query_adapter(hca: &Hca, command: &Command) -> Outcome {
    let mut adapter = QueryAdapter::new_zeroed();
    adapter.set_board_id(BOARD_ID);
    write_mailbox(&hca.enter_bare(), command.output, &adapter)
}

/// Page size and GUIDs. The page size is 4 KiB and can be set to nothing else.
pub(super) fn mod_stat_cfg(hca: &Hca, command: &Command) -> Outcome {
    let burst = hca.enter_bare();
    match ModStatCfgOp(command.opmod) {
        ModStatCfgOp::SET => {
            let asked: ModStatCfg = super::read_mailbox(&burst, command.input)?;
            let other_page = asked.page.log_pg_sz_m() && asked.page.log2_pg_sz() != 0;
            if other_page { Err(Status::BAD_PARAM) } else { Ok(0) }
        }
        ModStatCfgOp::QUERY => {
            let port = u8::try_from(command.modifier >> 8 & 0xff).unwrap_or(0);
            let guid = hca.node.port(port).and_then(|port| port.guid(0)).ok_or(Status::BAD_PARAM)?;
            let mut cfg = ModStatCfg::new_zeroed();
            cfg.guid_hi.set(u32::try_from(guid >> 32).unwrap_or(0));
            cfg.guid_lo.set(u32::try_from(guid & 0xffff_ffff).unwrap_or(0));
            write_mailbox(&burst, command.output, &cfg)
        }
        _ => Err(Status::BAD_OP),
    }
}
