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
    pub(super) fn sl_to_vl_table(&self, smp: &mut Smp, set: bool) -> Status {
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
