//! Memory regions and translations. The truth is in ICM: these commands write and read it there.

use mlx4_wire::cmd::Status;
use mlx4_wire::ctx::mpt::{MptEntry, MptStatus};
use mlx4_wire::ctx::mtt::MTT_ENTRY_BYTES;
use mlx4_wire::{Number24, U32, U64};

use super::{Command, Outcome, check_mailbox, give_back, read_mailbox, write_mailbox};
use crate::hca::Hca;
use crate::hca::burst::Burst;
use crate::hca::running::Running;
use crate::hca::tpt::{Changes, read_mpt};

/// MTT entries that one WRITE_MTT mailbox holds: what is left behind its header of 16 bytes.
const MTTS_MAX: u32 = (4096 - 16) / 8;

fn check_index(burst: &Burst, index: u32) -> Result<(), Status> {
    if u64::from(index) < 1 << burst.tables.log2_mpts { Ok(()) } else { Err(Status::BAD_INDEX) }
}

fn icm_error(fault: impl std::fmt::Display) -> Status {
    log::debug!("translation table: {fault}");
    Status::ICM_ERROR
}

/// Hands an MPT entry to the device. A region becomes valid; an entry given as free stays free. A window
/// comes without range and rights: a work request binds it.
pub(super) fn sw2hw_mpt(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let burst = hca.command_burst(running);
    check_index(&burst, command.modifier)?;
    let mut entry: MptEntry = read_mailbox(&burst, command.input)?;
    let changes = Changes::begin(&burst, running);
    let before = changes.read(command.modifier).map_err(icm_error)?;
    if running.mpts.contains(command.modifier) && before.flags.status() == MptStatus::VALID {
        return Err(Status::BAD_RES_STATE);
    }
    if !entry.flags.region() {
        check_window(running, &entry)?;
    }
    (entry.lkey, entry.window_count) = (U32::ZERO, Number24::new());
    if entry.flags.status() != MptStatus::FREE {
        entry.flags.set_status(MptStatus::VALID);
    }
    changes.write(command.modifier, &entry).map_err(icm_error)?;
    running.mpts.insert(command.modifier);
    Ok(0)
}

fn check_window(running: &Running, entry: &MptEntry) -> Result<(), Status> {
    let flags = entry.flags;
    let rights = flags.remote_read() || flags.remote_write() || flags.remote_atomic();
    let local = flags.local_read() || flags.local_write() || flags.physical();
    let type_2 = entry.qp.bound_to_qp();
    let free = flags.status() == MptStatus::FREE;
    if !running.windows_enabled() || rights || local || entry.length != U64::ZERO || type_2 != free {
        log::debug!("{entry:?} is no unbound window");
        return Err(Status::BAD_PARAM);
    }
    Ok(())
}

pub(super) fn query_mpt(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let burst = hca.command_burst(running);
    check_index(&burst, command.modifier)?;
    let entry = read_mpt(&burst, command.modifier).map_err(icm_error)?;
    write_mailbox(&burst, command.output, &entry)
}

/// Takes an MPT entry back: when this is done, no access through it is under way. A region that has windows
/// stays.
pub(super) fn hw2sw_mpt(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let index = command.modifier;
    let entry = {
        let burst = hca.command_burst(running);
        check_index(&burst, index)?;
        let changes = Changes::begin(&burst, running);
        let mut entry = changes.read(index).map_err(icm_error)?;
        if !running.mpts.contains(index) && !made_valid_in_memory(&burst, index, &entry) {
            log::debug!("HW2SW_MPT of entry {index:#x}, which the device doesn't own: {entry:?}");
            return Err(Status::BAD_RES_STATE);
        }
        if entry.flags.region() && entry.window_count.number() != 0 {
            return Err(Status::REG_BOUND);
        }
        running.mpts.remove(index);
        let lkey = entry.lkey;
        changes.release(&mut entry).map_err(icm_error)?;
        entry.lkey = lkey;
        entry.flags.set_status(MptStatus::SOFTWARE);
        changes.write(index, &entry).map_err(icm_error)?;
        entry
    };
    hca.dma.quiesce();
    give_back(&hca.command_burst(running), command, &entry)
}

/// Whether the driver has given an entry back by its status alone, as Linux does when it registers a region
/// anew. A key in index form may have bits above those that name the entry.
fn made_valid_in_memory(burst: &Burst, index: u32, entry: &MptEntry) -> bool {
    let same = u64::from(entry.key.get() ^ index) & ((1 << burst.tables.log2_mpts) - 1) == 0;
    entry.flags.region() && entry.flags.status() == MptStatus::VALID && same
}

/// Writes MTT entries from a mailbox: the byte offset in the table, eight reserved bytes, the entries.
pub(super) fn write_mtt(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let burst = hca.command_burst(running);
    let count = command.modifier;
    check_mailbox(command.input)?;
    if count > MTTS_MAX {
        log::debug!("WRITE_MTT of {count} entries; a mailbox holds {MTTS_MAX}");
        return Err(Status::BAD_PARAM);
    }
    let bad_mailbox = |_| Status::BAD_PARAM;
    let mut start = [0; 8];
    burst.dma.read(command.input, &mut start).map_err(bad_mailbox)?;
    let mut entries = vec![0; count as usize * 8];
    burst.dma.read(command.input + 16, &mut entries).map_err(bad_mailbox)?;
    let offset = u64::from_be_bytes(start) & !(MTT_ENTRY_BYTES - 1);
    burst.icm_write(burst.tables.mtt_base.wrapping_add(offset), &entries).map_err(icm_error)?;
    Ok(0)
}

/// Makes sure that no stale translation is used. Nothing is cached beyond a burst, so that is waited for.
pub(super) fn sync_tpt(hca: &Hca, _running: &Running, _command: &Command) -> Outcome {
    hca.dma.quiesce();
    Ok(0)
}
