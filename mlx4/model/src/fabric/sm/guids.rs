//! Alias GUIDs: the GUID tables of ports, as far as they name GUIDs that no other port has.

use mlx4_wire::U64;
use mlx4_wire::mad::attr::GuidInfo;

use super::manager::Manager;

/// GUID table entries in a block.
const GUIDS_PER_BLOCK: usize = 8;

impl Manager {
    /// Takes in a block of a port's GUID table. A GUID that another port has stays that port's.
    pub(super) fn learn_guids(&mut self, port: u8, block: u8, info: &GuidInfo) {
        let mut guids = info.guids.map(U64::get);
        for guid in &mut guids {
            if self.subnet.by_guid(*guid).is_some_and(|(other, _)| other != port) {
                log::debug!("port {port}: GUID {guid:016x} belongs to another port");
                *guid = 0;
            }
        }
        let Some(end) = self.subnet.ends.get_mut(usize::from(port)).and_then(Option::as_mut) else { return };
        let from = usize::from(block) * GUIDS_PER_BLOCK;
        if end.guids.len() < from + GUIDS_PER_BLOCK {
            end.guids.resize(from + GUIDS_PER_BLOCK, 0);
        }
        end.guids[from..from + GUIDS_PER_BLOCK].copy_from_slice(&guids);
        end.guids[0] = end.node_info.port_guid.get();
    }
}
