//! Alias GUIDs: the GUID tables of ports, as far as they name GUIDs that no other port has.

use mlx4_wire::U64;
use mlx4_wire::mad::attr::GuidInfo;
use mlx4_wire::mad::smp::{Smp, SmpAttribute};

use super::bring_up::PortAsk;
use super::manager::Manager;
use super::sweep::set;

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
        let known = &mut end.guids[from..from + GUIDS_PER_BLOCK];
        let dropped: Vec<_> = known.iter().copied().filter(|guid| !guids.contains(guid)).collect();
        known.copy_from_slice(&guids);
        end.guids[0] = end.node_info.port_guid.get();
        let dropped: Vec<_> = dropped.into_iter().filter(|guid| !end.guids.contains(guid)).collect();
        self.administrator.guids_are_gone(&dropped);
    }

    /// Writes the blocks that the administrator was asked for.
    pub(super) fn write_guids(&mut self) {
        for write in self.administrator.take_guid_writes() {
            let question = set(SmpAttribute::GUID_INFO, u32::from(write.block), &write.guids);
            self.ask_port(write.port, write.port, question, PortAsk::SetGuids(write.block));
        }
    }

    /// A port answered such a write, or didn't.
    pub(super) fn guids_written(&mut self, port: u8, block: u8, good: Option<&Smp>) {
        if let Some(smp) = good {
            self.learn_guids(port, block, &smp.attribute());
        }
        self.administrator.guids_written(port, block, good.is_some(), &self.subnet);
    }
}
