//! Multicast groups: hashing, reading and writing entries of the table in ICM.

use mlx4_wire::cmd::Status;

use super::{Command, Outcome, check_mailbox};
use crate::hca::Hca;
use crate::hca::burst::Burst;
use crate::hca::mcg::{entry_addr, entry_bytes, hash};
use crate::hca::running::Running;

pub(super) fn mgid_hash(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let burst = hca.command_burst(running);
    check_mailbox(command.input)?;
    let mut gid = [0; 16];
    burst.dma.read(command.input, &mut gid).map_err(|_| Status::BAD_PARAM)?;
    Ok(hash(&gid, burst.tables.log2_mc_hash).into())
}

pub(super) fn read_mcg(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let burst = hca.command_burst(running);
    check_mailbox(command.output)?;
    let mut entry = vec![0; entry_bytes(&burst)];
    let addr = entry_addr(&burst, command.modifier)?;
    burst.icm_read(addr, &mut entry).map_err(|_| Status::ICM_ERROR)?;
    burst.dma.write(command.output, &entry).map_err(|_| Status::BAD_PARAM)?;
    Ok(0)
}

pub(super) fn write_mcg(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let burst = hca.command_burst(running);
    check_mailbox(command.input)?;
    let mut entry = vec![0; entry_bytes(&burst)];
    burst.dma.read(command.input, &mut entry).map_err(|_| Status::BAD_PARAM)?;
    let addr = entry_addr(&burst, command.modifier)?;
    burst.icm_write(addr, &entry).map_err(|_| Status::ICM_ERROR)?;
    Ok(0)
}

/// Empties the table. Entries whose ICM isn't mapped yet are left to the driver, which maps them zeroed.
pub(super) fn clear(burst: &Burst) {
    let zeros = vec![0; entry_bytes(burst)];
    for index in 0..1u32 << burst.tables.log2_mc_entries {
        let Ok(addr) = entry_addr(burst, index) else { return };
        if burst.icm_write(addr, &zeros).is_err() {
            return;
        }
    }
}
