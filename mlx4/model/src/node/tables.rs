//! Tables of a port: GUIDs, P_Keys, service levels, VL arbitration.

use std::sync::atomic::Ordering::Relaxed;

use mlx4_wire::mad::attr::{GuidInfo, PKeyTable, SlToVlTable, VlArbitrationTable};
use mlx4_wire::mad::header::Status;
use mlx4_wire::mad::portinfo::VlCap;
use mlx4_wire::mad::smp::Smp;
use zerocopy::FromZeros;

use super::port::PortState;
use super::{BlockChange, PortChanges};

/// Entries of a GUID table block.
const GUIDS: usize = 8;
/// Entries of a P_Key table block.
const P_KEYS: usize = 32;

impl PortState {
    /// GUIDInfo. The first GUID of all is the port's own and stays.
    pub(super) fn guid_info(&self, smp: &mut Smp, set: bool, changes: &mut PortChanges) -> Status {
        let block = smp.header.attribute_modifier.get();
        let Some(entries) = block_of(&self.guids, block, GUIDS) else { return Status::INVALID_VALUE };
        if set {
            let request: GuidInfo = smp.attribute();
            let mut changed = 0;
            for (index, (entry, guid)) in entries.iter().zip(request.guids).enumerate() {
                let own = block == 0 && index == 0;
                if !own && entry.swap(guid.get(), Relaxed) != guid.get() {
                    changed |= 1 << index;
                }
            }
            changes.guids = block_change(block, changed);
        }
        let mut reply = GuidInfo::new_zeroed();
        for (guid, entry) in reply.guids.iter_mut().zip(entries) {
            guid.set(entry.load(Relaxed));
        }
        smp.set_attribute(&reply);
        Status::GOOD
    }

    /// A block of the P_Key table.
    pub(super) fn p_key_table(&self, smp: &mut Smp, set: bool, changes: &mut PortChanges) -> Status {
        let block = smp.header.attribute_modifier.get() & 0xffff;
        let Some(entries) = block_of(&self.p_keys, block, P_KEYS) else { return Status::INVALID_VALUE };
        if set {
            let request: PKeyTable = smp.attribute();
            let mut changed = 0;
            for (index, (entry, p_key)) in entries.iter().zip(request.p_keys).enumerate() {
                if entry.swap(p_key.get(), Relaxed) != p_key.get() {
                    changed |= 1 << index;
                }
            }
            changes.p_keys = block_change(block, changed);
        }
        let mut reply = PKeyTable::new_zeroed();
        for (p_key, entry) in reply.p_keys.iter_mut().zip(entries) {
            p_key.set(entry.load(Relaxed));
        }
        smp.set_attribute(&reply);
        Status::GOOD
    }

    /// SLtoVLMappingTable of a channel adapter.
    pub(super) fn sl_to_vl_table(&self, smp: &mut Smp, set: bool, changes: &mut PortChanges) -> Status {
        if set {
            let request: SlToVlTable = smp.attribute();
            let table = u64::from_be_bytes(request.pairs.map(|pair| pair.into_bits()));
            changes.sl_to_vl = self.sl_to_vl.swap(table, Relaxed) != table;
        }
        smp.set_attribute(&self.sl_to_vl.load(Relaxed).to_be_bytes());
        Status::GOOD
    }

    /// The lower or the higher VL arbitration table; each fits in its first block.
    pub(super) fn vl_arbitration(&self, smp: &mut Smp, set: bool) -> Status {
        const LOW: u32 = 1;
        const HIGH: u32 = 3;
        let mut settings = self.settings();
        if settings.info.lanes.vl_cap() <= VlCap::VL0 {
            return Status::UNSUPPORTED_METHOD_ATTRIBUTE;
        }
        let entries = match smp.header.attribute_modifier.get() >> 16 {
            LOW => &mut settings.vl_low,
            HIGH => &mut settings.vl_high,
            _ => return Status::INVALID_VALUE,
        };
        if set {
            let request: VlArbitrationTable = smp.attribute();
            for (entry, new) in entries.iter_mut().zip(request.entries) {
                entry.vl.set_vl(new.vl.vl());
                entry.weight = new.weight;
            }
        }
        smp.set_attribute(&*entries);
        Status::GOOD
    }
}

/// The entries of a block, of which the last may be short.
fn block_of<T>(table: &[T], block: u32, size: usize) -> Option<&[T]> {
    table.chunks(size).nth(usize::try_from(block).ok()?)
}

fn block_change(block: u32, entries: u32) -> Option<BlockChange> {
    let block = u16::try_from(block).ok()?;
    (entries != 0).then_some(BlockChange { block, entries })
}
