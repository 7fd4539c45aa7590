//! ICM and the start and end of operation: SET_ICM_SIZE, MAP_ICM, INIT_HCA, CLOSE_HCA.

use std::sync::Arc;

use mlx4_wire::cmd::Status;
use mlx4_wire::cmd::hca::{INIT_HCA_VERSION, InitHca, QueryHca};
use zerocopy::FromZeros;

use super::firmware::{map_entries, pages, reachable};
use super::{Command, Firmware, Outcome, read_mailbox, write_mailbox};
use crate::hca::running::Running;
use crate::hca::{Hca, caps, regs};

pub(super) fn set_icm_size(firmware: &mut Firmware, command: &Command) -> Outcome {
    if command.input == 0 || command.input > caps::MAX_ICM_BYTES {
        log::debug!("ICM of {:#x} bytes asked for; at most {:#x}", command.input, caps::MAX_ICM_BYTES);
        return Err(Status::EXCEED_LIM);
    }
    firmware.icm_bytes = command.input;
    Ok(aux_pages(command.input))
}

/// Auxiliary pages for ICM of a size: its page table, one word of 8 bytes for each ICM page.
fn aux_pages(icm_bytes: u64) -> u64 {
    icm_bytes.div_ceil(4096 * 512).div_ceil(4) + 64
}

pub(super) fn map_icm_aux(hca: &Hca, firmware: &mut Firmware, command: &Command) -> Outcome {
    if firmware.icm_bytes == 0 {
        return Err(Status::BAD_SYS_STATE);
    }
    let burst = hca.enter_bare();
    let entries = map_entries(&burst, command)?;
    reachable(&burst, &entries)?;
    firmware.aux_pages = firmware.aux_pages.saturating_add(pages(&entries));
    Ok(0)
}

pub(super) fn unmap_icm_aux(hca: &Hca, firmware: &mut Firmware) -> Outcome {
    if hca.running.load().is_some() {
        return Err(Status::BAD_SYS_STATE);
    }
    firmware.aux_pages = 0;
    firmware.icm_bytes = 0;
    Ok(0)
}

pub(super) fn map_icm(hca: &Hca, firmware: &Firmware, command: &Command) -> Outcome {
    let aux = firmware.aux_pages;
    if aux < aux_pages(firmware.icm_bytes.max(1)) {
        log::debug!("MAP_ICM with {aux} auxiliary pages of {}", aux_pages(firmware.icm_bytes));
        return Err(Status::BAD_SYS_STATE);
    }
    let burst = hca.enter_bare();
    let entries = map_entries(&burst, command)?;
    reachable(&burst, &entries)?;
    let ranges: Vec<_> = entries.iter().map(|e| (e.va(), e.pa(), u32::from(e.log2_pages()))).collect();
    hca.icm.map(&ranges).map_err(|error| {
        log::debug!("MAP_ICM: {error}");
        Status::EXCEED_LIM
    })?;
    Ok(0)
}

pub(super) fn unmap_icm(hca: &Hca, command: &Command) -> Outcome {
    hca.icm.unmap(command.input, u64::from(command.modifier));
    hca.dma.quiesce();
    Ok(0)
}

pub(super) fn init_hca(hca: &Hca, firmware: &Firmware, command: &Command) -> Outcome {
    if hca.running.load().is_some() || firmware.icm_bytes == 0 {
        return Err(Status::BAD_SYS_STATE);
    }
    let init: InitHca = read_mailbox(&hca.enter_bare(), command.input)?;
    if init.version != INIT_HCA_VERSION {
        log::debug!("INIT_HCA of version {}; this device takes {INIT_HCA_VERSION}", init.version);
        return Err(Status::BAD_PARAM);
    }
    let running = Arc::new(Running::new(&init)?);
    super::mcg::clear(&hca.command_burst(&running));
    hca.running.store(Some(running));
    Ok(0)
}

pub(super) fn close_hca(hca: &Hca) -> Outcome {
    if hca.running.load().is_none() {
        return Err(Status::BAD_SYS_STATE);
    }
    hca.stop_running();
    Ok(0)
}

pub(super) fn query_hca(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let mut query = QueryHca::new_zeroed();
    query.params = running.init.params;
    query.core_clock.set(regs::CLOCK_MHZ);
    write_mailbox(&hca.enter_bare(), command.output, &query)
}
