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
    pub(super) fn sl_to_vl_mapping(&self, smp: &mut Smp, set: bool, changes: &mut PortChanges) -> Status {
        if set {
            let request: SlToVlTable = smp.attribute();
            let table = u64::from_be_bytes(request.pairs.map(|pair| pair.into_bits()));
            changes.sl_to_vl = self.sl_to_vl.swap(table, Relaxed) != table;
        }
        smp.set_attribute(&self.sl_to_vl_pairs());
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

#[cfg(test)]
mod tests {
    use mlx4_wire::mad::header::Method;
    use mlx4_wire::mad::smp::SmpAttribute;

    use super::super::testing::{CA_GUID, active_ca, ask, ca, send, smp, switch};
    use super::super::{BlockChange, NodeConfig, NodeKind, NodeState};
    use super::*;

    fn status(node: &super::super::NodeState, smp: &Smp) -> Status {
        ask(node, 1, smp).status()
    }

    #[test]
    fn new_table_has_the_default_p_key_first() {
        let node = ca();
        let block: PKeyTable = ask(&node, 1, &smp(Method::GET, SmpAttribute::P_KEY_TABLE, 0)).attribute();
        assert_eq!(block.p_keys[0].get(), 0xffff);
        assert!(block.p_keys[1..].iter().all(|p_key| p_key.get() == 0));
        let port = node.port(1).expect("port");
        assert_eq!(
            (port.find_pkey(0x7fff), port.find_pkey(0x8001), port.find_pkey(0)),
            (Some(0), None, None)
        );
    }

    #[test]
    fn p_key_block_is_set_and_the_change_told() {
        let node = active_ca();
        let mut request = smp(Method::SET, SmpAttribute::P_KEY_TABLE, 3);
        let mut block = PKeyTable::new_zeroed();
        block.p_keys[0].set(0x8001);
        block.p_keys[31].set(0x0002);
        request.set_attribute(&block);
        let answer = send(&node, 1, &request);
        assert_eq!(answer.changes.p_keys, Some(BlockChange { block: 3, entries: 0x8000_0001 }));
        assert_eq!(Smp::from_mad(&answer.reply.expect("reply")).attribute::<PKeyTable>(), block);
        let port = node.port(1).expect("port");
        assert_eq!((port.pkey(96), port.pkey(127), port.pkey(128)), (Some(0x8001), Some(2), None));
        assert_eq!(
            (port.find_pkey(0x0001), port.find_pkey(0x8002), port.find_pkey(2)),
            (Some(96), Some(127), None)
        );
        assert_eq!(send(&node, 1, &request).changes.p_keys, None);
        assert_eq!(node.port(2).expect("port").pkey(96), Some(0));
    }

    #[test]
    fn blocks_beyond_the_tables_are_refused() {
        let node = ca();
        assert_eq!(status(&node, &smp(Method::GET, SmpAttribute::P_KEY_TABLE, 4)), Status::INVALID_VALUE);
        assert_eq!(
            status(&node, &smp(Method::GET, SmpAttribute::P_KEY_TABLE, 0xffff)),
            Status::INVALID_VALUE
        );
        assert_eq!(status(&node, &smp(Method::GET, SmpAttribute::GUID_INFO, 16)), Status::INVALID_VALUE);
        assert_eq!(
            status(&node, &smp(Method::SET, SmpAttribute::GUID_INFO, u32::MAX)),
            Status::INVALID_VALUE
        );
    }

    #[test]
    fn alias_guids_are_set_and_the_first_stays() {
        let node = active_ca();
        let mut request = smp(Method::SET, SmpAttribute::GUID_INFO, 0);
        let mut block = GuidInfo::new_zeroed();
        block.guids[0].set(1);
        block.guids[2].set(0xabc);
        request.set_attribute(&block);
        let answer = send(&node, 1, &request);
        assert_eq!(answer.changes.guids, Some(BlockChange { block: 0, entries: 4 }));
        let port = node.port(1).expect("port");
        assert_eq!((port.guid(0), port.guid(2), port.guid(128)), (Some(CA_GUID + 1), Some(0xabc), None));
        let gid = port.gid(2).expect("gid");
        assert_eq!(gid, [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 0xbc]);
        assert_eq!((port.find_gid(&gid), port.gid(1)), (Some(2), None));
        assert_eq!(port.find_gid(&[0; 16]), None);
    }

    #[test]
    fn service_levels_map_to_lanes() {
        let node = active_ca();
        let port = node.port(1).expect("port");
        assert_eq!((port.vl(0), port.vl(7), port.vl(9)), (0, 7, 1));
        let mut request = smp(Method::SET, SmpAttribute::SL_TO_VL_MAPPING_TABLE, 0);
        request.set_attribute(&[0x1fu8, 0, 0, 0, 0, 0, 0, 0x02]);
        let answer = send(&node, 1, &request);
        assert!(answer.changes.sl_to_vl);
        assert_eq!((port.vl(0), port.vl(1), port.vl(15)), (1, 15, 2));
        assert_eq!(port.sl_to_vl_pairs()[0], 0x1f);
        assert!(!send(&node, 1, &request).changes.sl_to_vl);
    }

    #[test]
    fn vl_arbitration_has_two_tables_of_eight() {
        let node = ca();
        let mut request = smp(Method::SET, SmpAttribute::VL_ARBITRATION_TABLE, 3 << 16);
        request.data = [0x11; 64];
        let high: VlArbitrationTable = ask(&node, 1, &request).attribute();
        assert_eq!((high.entries[7].vl.vl(), high.entries[7].weight), (1, 0x11));
        assert_eq!(high.entries[8], FromZeros::new_zeroed());
        let low: VlArbitrationTable =
            ask(&node, 1, &smp(Method::GET, SmpAttribute::VL_ARBITRATION_TABLE, 1 << 16)).attribute();
        assert_eq!((low.entries[3].vl.vl(), low.entries[3].weight), (3, 64));
        for absent in [0, 2 << 16, 4 << 16] {
            let get = smp(Method::GET, SmpAttribute::VL_ARBITRATION_TABLE, absent);
            assert_eq!(status(&node, &get), Status::INVALID_VALUE);
        }
        let base_port_0 = smp(Method::GET, SmpAttribute::VL_ARBITRATION_TABLE, 1 << 16);
        assert_eq!(status(&switch(), &base_port_0), Status::UNSUPPORTED_METHOD_ATTRIBUTE);
    }

    #[test]
    fn switch_has_p_keys_of_external_ports_if_it_enforces() {
        let get = smp(Method::GET, SmpAttribute::P_KEY_TABLE, 5 << 16);
        assert_eq!(status(&switch(), &get), Status::INVALID_VALUE);
        let mut config = NodeConfig::switch(1, 8, "enforcing");
        let NodeKind::Switch(kind) = &mut config.kind else { panic!("not a switch") };
        kind.partition_enforcement_cap = 16;
        let node = NodeState::new(&config).expect("node");
        assert_eq!(status(&node, &get), Status::GOOD);
        assert_eq!(node.port(5).expect("port").pkey(0), Some(0xffff));
        assert_eq!(
            status(&node, &smp(Method::GET, SmpAttribute::P_KEY_TABLE, 9 << 16)),
            Status::INVALID_VALUE
        );
        assert_eq!(
            status(&node, &smp(Method::GET, SmpAttribute::P_KEY_TABLE, 0x105 << 16)),
            Status::INVALID_VALUE
        );
    }
}
