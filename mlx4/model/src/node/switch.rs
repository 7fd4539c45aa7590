//! What a switch has besides its ports: SwitchInfo and the forwarding tables. Forwarding reads them without
//! a lock.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16,
    Ordering::{AcqRel, Relaxed},
};

use mlx4_wire::mad::attr::{
    LinearForwardingTable, MulticastForwardingTable, SlToVlTable, SwitchAbilities, SwitchInfo, SwitchLife,
    VlPair,
};
use mlx4_wire::mad::header::Status;
use mlx4_wire::mad::smp::Smp;
use mlx4_wire::mad::{LID_MULTICAST_FIRST, LID_MULTICAST_LAST};
use zerocopy::FromZeros;

use super::{NodeError, lock};

/// Entries of a linear forwarding table block.
const LIDS: usize = 64;
/// Entries of a multicast forwarding table block.
const MLIDS: usize = 32;
/// Ports of a multicast forwarding table position.
const PORTS: u8 = 16;

/// A switch to be made.
#[derive(Clone, Copy, Debug)]
pub struct SwitchConfig {
    /// External ports, 1 to 254.
    pub external_ports: u8,
    /// Whether port 0 has link states.
    pub enhanced_port0: bool,
    /// P_Key table entries of each external port; 0 if the switch can't enforce partitions.
    pub partition_enforcement_cap: u16,
    /// Entries of the linear forwarding table, 1 to 49152.
    pub linear_fdb_cap: u16,
    /// Entries of the multicast forwarding table, at most 16383.
    pub multicast_fdb_cap: u16,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        Self {
            external_ports: 36,
            enhanced_port0: false,
            partition_enforcement_cap: 0,
            linear_fdb_cap: LID_MULTICAST_FIRST,
            multicast_fdb_cap: 4096,
        }
    }
}

/// A switch's own tables.
#[derive(Debug)]
pub struct SwitchState {
    config: SwitchConfig,
    /// Egress port of each LID.
    lft: Box<[AtomicU8]>,
    lft_top: AtomicU16,
    /// For each multicast LID, a mask for each position.
    mft: Box<[AtomicU16]>,
    positions: u8,
    default_primary: AtomicU8,
    default_not_primary: AtomicU8,
    port_state_change: AtomicBool,
    settings: Mutex<Settings>,
}

#[derive(Debug)]
struct Settings {
    default_port: u8,
    life_time: u8,
    /// By ingress and egress port, where it isn't the default.
    sl_to_vl: BTreeMap<(u8, u8), SlToVlTable>,
}

const POWER_ON: Settings = Settings { default_port: NO_PORT, life_time: 18, sl_to_vl: BTreeMap::new() };

/// The port of a LID that leads nowhere.
const NO_PORT: u8 = LinearForwardingTable::DROP;

impl SwitchState {
    pub(super) fn new(config: &SwitchConfig) -> Result<Self, NodeError> {
        let (linear, multicast) = (config.linear_fdb_cap, config.multicast_fdb_cap);
        let multicast_lids = LID_MULTICAST_LAST - LID_MULTICAST_FIRST + 1;
        if linear == 0 || linear > LID_MULTICAST_FIRST || multicast > multicast_lids {
            return Err(NodeError::ForwardingTables { linear, multicast });
        }
        let positions = config.external_ports / PORTS + 1;
        let masks = usize::from(multicast) * usize::from(positions);
        let state = Self {
            config: *config,
            lft: std::iter::repeat_with(AtomicU8::default).take(linear.into()).collect(),
            lft_top: AtomicU16::default(),
            mft: std::iter::repeat_with(AtomicU16::default).take(masks).collect(),
            positions,
            default_primary: AtomicU8::default(),
            default_not_primary: AtomicU8::default(),
            port_state_change: AtomicBool::default(),
            settings: Mutex::new(POWER_ON),
        };
        state.reset();
        Ok(state)
    }

    pub(super) fn reset(&self) {
        let mut settings = lock(&self.settings);
        *settings = POWER_ON;
        self.lft_top.store(0, Relaxed);
        self.lft.iter().for_each(|port| port.store(NO_PORT, Relaxed));
        self.mft.iter().for_each(|mask| mask.store(0, Relaxed));
        self.default_primary.store(NO_PORT, Relaxed);
        self.default_not_primary.store(NO_PORT, Relaxed);
        self.port_state_change.store(false, Relaxed);
    }

    /// Where a packet to a unicast LID leaves the switch; port 0 is the switch itself.
    pub fn unicast_port(&self, lid: u16) -> Option<u8> {
        if lid == 0 || lid > self.lft_top.load(Relaxed) {
            return None;
        }
        let port = self.lft.get(usize::from(lid))?.load(Relaxed);
        (port <= self.config.external_ports).then_some(port)
    }

    /// Where a packet to a multicast LID leaves the switch, if it came in at a port. That port is among them
    /// if it is a member: forwarding leaves it out.
    pub fn multicast_ports(&self, mlid: u16, ingress: u8) -> impl Iterator<Item = u8> + '_ {
        let index = mlid.checked_sub(LID_MULTICAST_FIRST);
        let known = index.filter(|&index| index < self.config.multicast_fdb_cap);
        let first = usize::from(known.unwrap_or(0)) * usize::from(self.positions);
        let masks = match known {
            Some(_) => self.mft.get(first..first + usize::from(self.positions)).unwrap_or_default(),
            None => &[],
        };
        let unknown = match (index, known) {
            (Some(_), None) => self.default_multicast_port(ingress),
            _ => None,
        };
        let in_table = (0..=self.config.external_ports).filter(move |port| {
            let mask = masks.get(usize::from(port / PORTS)).map_or(0, |mask| mask.load(Relaxed));
            mask >> (port % PORTS) & 1 != 0
        });
        in_table.chain(unknown)
    }

    /// Where multicast LIDs beyond the table go.
    fn default_multicast_port(&self, ingress: u8) -> Option<u8> {
        let primary = self.default_primary.load(Relaxed);
        let port = if ingress == primary { self.default_not_primary.load(Relaxed) } else { primary };
        (1..=self.config.external_ports).contains(&port).then_some(port)
    }

    /// Notes that an external port's state changed for another reason than a Set here.
    pub(super) fn port_state_changed(&self) {
        self.port_state_change.store(true, Relaxed);
    }

    /// Whether a port's state changed since the subnet manager cleared this.
    pub fn port_state_change(&self) -> bool {
        self.port_state_change.load(Relaxed)
    }

    /// SwitchInfo.
    pub(super) fn switch_info(&self, smp: &mut Smp, set: bool) -> Status {
        let mut settings = lock(&self.settings);
        let mut status = Status::GOOD;
        if set {
            let request: SwitchInfo = smp.attribute();
            if request.linear_fdb_top.get() < self.config.linear_fdb_cap {
                self.lft_top.store(request.linear_fdb_top.get(), Relaxed);
            } else {
                status = Status::INVALID_VALUE;
            }
            settings.default_port = request.default_port;
            settings.life_time = request.life.life_time_value();
            self.default_primary.store(request.default_multicast_primary_port, Relaxed);
            self.default_not_primary.store(request.default_multicast_not_primary_port, Relaxed);
            if request.life.port_state_change() {
                self.port_state_change.swap(false, AcqRel);
            }
        }
        let enforces = self.config.partition_enforcement_cap != 0;
        let mut info = SwitchInfo::new_zeroed();
        info.linear_fdb_cap.set(self.config.linear_fdb_cap);
        info.multicast_fdb_cap.set(self.config.multicast_fdb_cap);
        info.linear_fdb_top.set(self.lft_top.load(Relaxed));
        info.default_port = settings.default_port;
        info.default_multicast_primary_port = self.default_primary.load(Relaxed);
        info.default_multicast_not_primary_port = self.default_not_primary.load(Relaxed);
        info.life = SwitchLife::new()
            .with_life_time_value(settings.life_time)
            .with_port_state_change(self.port_state_change());
        info.partition_enforcement_cap.set(self.config.partition_enforcement_cap);
        info.abilities = SwitchAbilities::new()
            .with_inbound_enforcement_cap(enforces)
            .with_outbound_enforcement_cap(enforces)
            .with_enhanced_port0(self.config.enhanced_port0);
        smp.set_attribute(&info);
        status
    }

    /// A block of the linear forwarding table.
    pub(super) fn linear_forwarding_table(&self, smp: &mut Smp, set: bool) -> Status {
        let block = smp.header.attribute_modifier.get();
        let entries = usize::try_from(block).ok().and_then(|block| self.lft.chunks(LIDS).nth(block));
        let Some(entries) = entries else { return Status::INVALID_VALUE };
        if set {
            let request: LinearForwardingTable = smp.attribute();
            for (entry, port) in entries.iter().zip(request.ports) {
                entry.store(port, Relaxed);
            }
        }
        let mut reply = LinearForwardingTable { ports: [NO_PORT; LIDS] };
        for (port, entry) in reply.ports.iter_mut().zip(entries) {
            *port = entry.load(Relaxed);
        }
        smp.set_attribute(&reply);
        Status::GOOD
    }

    /// A block of the multicast forwarding table, of 16 ports.
    pub(super) fn multicast_forwarding_table(&self, smp: &mut Smp, set: bool) -> Status {
        let modifier = smp.header.attribute_modifier.get();
        let (position, block) = ((modifier >> 28) as usize, (modifier & 0x1ff) as usize);
        let positions = usize::from(self.positions);
        let Some(lids) = self.mft.chunks(MLIDS * positions).nth(block).filter(|_| position < positions)
        else {
            return Status::INVALID_VALUE;
        };
        let masks = lids.iter().skip(position).step_by(positions);
        if set {
            let request: MulticastForwardingTable = smp.attribute();
            for (mask, new) in masks.clone().zip(request.port_masks) {
                mask.store(new.get(), Relaxed);
            }
        }
        let mut reply = MulticastForwardingTable::new_zeroed();
        for (shown, mask) in reply.port_masks.iter_mut().zip(masks) {
            shown.set(mask.load(Relaxed));
        }
        smp.set_attribute(&reply);
        Status::GOOD
    }

    /// SLtoVLMappingTable of an ingress and an egress port. The optimized forms aren't offered.
    pub(super) fn sl_to_vl_mapping(&self, smp: &mut Smp, set: bool) -> Status {
        let [optimized, form, ingress, egress] = smp.header.attribute_modifier.get().to_be_bytes();
        let last = self.config.external_ports;
        if optimized != 0 || form != 0 || ingress > last || egress > last {
            return Status::INVALID_VALUE;
        }
        let mut settings = lock(&self.settings);
        if set {
            settings.sl_to_vl.insert((ingress, egress), smp.attribute());
        }
        let default =
            SlToVlTable { pairs: [0x01, 0x23, 0x45, 0x67, 0x01, 0x23, 0x45, 0x67].map(VlPair::from_bits) };
        smp.set_attribute(settings.sl_to_vl.get(&(ingress, egress)).unwrap_or(&default));
        Status::GOOD
    }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::mad::header::Method;
    use mlx4_wire::mad::smp::SmpAttribute;

    use super::super::testing::{ask, ca, smp, switch};
    use super::super::{NodeConfig, NodeKind, NodeState};
    use super::*;

    fn set_info(node: &NodeState, change: impl FnOnce(&mut SwitchInfo)) -> (Status, SwitchInfo) {
        let get = smp(Method::GET, SmpAttribute::SWITCH_INFO, 0);
        let mut info: SwitchInfo = ask(node, 1, &get).attribute();
        info.life.set_port_state_change(false);
        change(&mut info);
        let mut request = smp(Method::SET, SmpAttribute::SWITCH_INFO, 0);
        request.set_attribute(&info);
        let reply = ask(node, 1, &request);
        (reply.status(), reply.attribute())
    }

    fn set_route(node: &NodeState, lid: u16, port: u8) {
        let mut request = smp(Method::SET, SmpAttribute::LINEAR_FORWARDING_TABLE, u32::from(lid) / 64);
        request.data = [NO_PORT; 64];
        request.data[usize::from(lid) % 64] = port;
        let reply = ask(node, 1, &request);
        assert_eq!(reply.status(), Status::GOOD);
        assert_eq!(reply.data, request.data);
    }

    fn state(node: &NodeState) -> &SwitchState {
        node.switch().expect("switch")
    }

    #[test]
    fn lids_are_routed_up_to_the_top() {
        let node = switch();
        set_route(&node, 3, 5);
        set_route(&node, 200, 36);
        assert_eq!(state(&node).unicast_port(3), None, "above the top");
        set_info(&node, |info| info.linear_fdb_top.set(199));
        assert_eq!(state(&node).unicast_port(3), Some(5));
        assert_eq!(state(&node).unicast_port(200), None);
        set_info(&node, |info| info.linear_fdb_top.set(200));
        assert_eq!(state(&node).unicast_port(200), Some(36));
        assert_eq!((state(&node).unicast_port(4), state(&node).unicast_port(0)), (None, None));
    }

    #[test]
    fn route_to_a_port_that_is_not_there_drops() {
        let node = switch();
        set_route(&node, 3, 37);
        set_info(&node, |info| info.linear_fdb_top.set(3));
        assert_eq!(state(&node).unicast_port(3), None);
    }

    #[test]
    fn top_beyond_the_table_is_refused_and_the_rest_set() {
        let node = switch();
        let (status, info) = set_info(&node, |info| {
            info.linear_fdb_top.set(0xc000);
            info.life.set_life_time_value(12);
        });
        assert_eq!(status, Status::INVALID_VALUE);
        assert_eq!((info.linear_fdb_top.get(), info.life.life_time_value()), (0, 12));
        assert_eq!((info.linear_fdb_cap.get(), info.multicast_fdb_cap.get()), (0xc000, 4096));
    }

    #[test]
    fn port_state_change_is_set_by_links_and_cleared_by_a_one() {
        let node = switch();
        node.link_up(3);
        assert!(state(&node).port_state_change());
        assert!(set_info(&node, |_| {}).1.life.port_state_change());
        let (_, info) = set_info(&node, |info| info.life.set_port_state_change(true));
        assert!(!info.life.port_state_change());
        node.link_up(3);
        assert!(!state(&node).port_state_change(), "the link was up");
        node.link_down(3);
        assert!(state(&node).port_state_change());
    }

    #[test]
    fn multicast_goes_to_the_ports_of_all_positions() {
        let node = switch();
        for (position, mask) in [(0u32, 0x8002u16), (2, 0x0010)] {
            let mut request = smp(Method::SET, SmpAttribute::MULTICAST_FORWARDING_TABLE, position << 28 | 1);
            let mut block = MulticastForwardingTable::new_zeroed();
            block.port_masks[1].set(mask);
            request.set_attribute(&block);
            let reply = ask(&node, 1, &request);
            assert_eq!(reply.status(), Status::GOOD);
            assert_eq!(reply.attribute::<MulticastForwardingTable>(), block);
        }
        assert_eq!(state(&node).multicast_ports(0xc021, 1).collect::<Vec<_>>(), [1, 15, 36]);
        assert_eq!(state(&node).multicast_ports(0xc020, 1).count(), 0);
        assert_eq!(state(&node).multicast_ports(0x0021, 1).count(), 0);
    }

    #[test]
    fn multicast_beyond_the_table_goes_to_the_default_ports() {
        let node = switch();
        assert_eq!(state(&node).multicast_ports(0xd000, 1).count(), 0);
        set_info(&node, |info| {
            info.default_multicast_primary_port = 4;
            info.default_multicast_not_primary_port = 5;
        });
        assert_eq!(state(&node).multicast_ports(0xd000, 1).collect::<Vec<_>>(), [4]);
        assert_eq!(state(&node).multicast_ports(0xd000, 4).collect::<Vec<_>>(), [5]);
        assert_eq!(state(&node).multicast_ports(0xcfff, 1).count(), 0);
    }

    #[test]
    fn blocks_beyond_the_tables_are_refused() {
        let node = switch();
        for (attribute, modifier) in [
            (SmpAttribute::LINEAR_FORWARDING_TABLE, 768),
            (SmpAttribute::LINEAR_FORWARDING_TABLE, u32::MAX),
            (SmpAttribute::MULTICAST_FORWARDING_TABLE, 128),
            (SmpAttribute::MULTICAST_FORWARDING_TABLE, 3 << 28),
            (SmpAttribute::SL_TO_VL_MAPPING_TABLE, 37),
            (SmpAttribute::SL_TO_VL_MAPPING_TABLE, 0x0001_0101),
        ] {
            for method in [Method::GET, Method::SET] {
                let reply = ask(&node, 1, &smp(method, attribute, modifier));
                assert_eq!(reply.status(), Status::INVALID_VALUE, "{attribute} {modifier:#x}");
            }
        }
    }

    #[test]
    fn service_levels_are_mapped_for_each_pair_of_ports() {
        let node = switch();
        let mut request = smp(Method::SET, SmpAttribute::SL_TO_VL_MAPPING_TABLE, 0x0203);
        request.set_attribute(&[0u8; 8]);
        assert_eq!(ask(&node, 1, &request).status(), Status::GOOD);
        let get = |modifier| {
            ask(&node, 1, &smp(Method::GET, SmpAttribute::SL_TO_VL_MAPPING_TABLE, modifier)).data[..2]
                .to_vec()
        };
        assert_eq!(get(0x0203), [0, 0]);
        assert_eq!(get(0x0302), [0x01, 0x23]);
    }

    #[test]
    fn channel_adapter_has_no_switch_attributes() {
        for attribute in [
            SmpAttribute::SWITCH_INFO,
            SmpAttribute::LINEAR_FORWARDING_TABLE,
            SmpAttribute::MULTICAST_FORWARDING_TABLE,
        ] {
            let reply = ask(&ca(), 1, &smp(Method::GET, attribute, 0));
            assert_eq!(reply.status(), Status::UNSUPPORTED_METHOD_ATTRIBUTE);
        }
    }

    #[test]
    fn impossible_tables_are_refused() {
        for (linear_fdb_cap, multicast_fdb_cap) in [(0, 0), (0xc001, 0), (64, 0x4000)] {
            let mut config = NodeConfig::switch(1, 8, "");
            config.kind =
                NodeKind::Switch(SwitchConfig { linear_fdb_cap, multicast_fdb_cap, ..Default::default() });
            assert!(matches!(NodeState::new(&config), Err(NodeError::ForwardingTables { .. })));
        }
    }

    #[test]
    fn switch_without_multicast_refuses_its_table() {
        let mut config = NodeConfig::switch(1, 8, "");
        config.kind = NodeKind::Switch(SwitchConfig { multicast_fdb_cap: 0, ..Default::default() });
        let node = NodeState::new(&config).expect("node");
        let reply = ask(&node, 1, &smp(Method::GET, SmpAttribute::MULTICAST_FORWARDING_TABLE, 0));
        assert_eq!(reply.status(), Status::INVALID_VALUE);
    }
}
