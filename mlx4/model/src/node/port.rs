//! A port: what the data path reads of it, its PortInfo, and its link.
//!
//! The PortInfo behind the mutex is the truth; each change of it publishes the atomics that the data path
//! reads. P_Keys, GUIDs, violations and counters are in atomics alone.

use std::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use mlx4_wire::mad::attr::{ArbitratedVl, PKeyTable, VlArbitrationEntry};
use mlx4_wire::mad::portinfo::{
    self, CapabilityMask, ErrorThresholds, ExtendedSpeed, LinkLanes, LinkLimits, LinkState, Mtu, PhysState,
    PortInfo, VlCap, link_speed, link_speed_ext, link_width,
};
use mlx4_wire::mad::{DEFAULT_GID_PREFIX, DEFAULT_PKEY};
use mlx4_wire::{U32, U64};
use zerocopy::FromZeros;

use super::counters::{Counter, Counters};
use super::{LinkEffect, lock};

/// P_Key and GUID table entries of a channel adapter's port.
pub const TABLE_ENTRIES: u8 = 128;
/// Entries of each VL arbitration table.
pub const VL_ARBITRATION_ENTRIES: u8 = 8;
/// The capability mask of a ConnectX-3.
pub const CONNECTX3_CAPABILITY_MASK: u32 = 0x0251_4868;

/// Trap, SL mapping, system image GUID, extended speeds, capability mask notice, client reregistration.
const SWITCH_CAPABILITY_MASK: u32 = 0x0240_4848;
const MTU_CAP: Mtu = Mtu::B4096;
const VL_CAP: VlCap = VlCap::VL0_7;
const WIDTHS: u8 = link_width::X1 | link_width::X4;
const SPEEDS: u8 = link_speed::SDR | link_speed::DDR | link_speed::QDR;

/// What kind of node a port belongs to decides which of its fields can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Port of a channel adapter.
    ChannelAdapter,
    /// Port 0 of a switch, which has neither a link nor link states.
    SwitchBase,
    /// Enhanced port 0 of a switch: it has no link, but is armed and activated as others are.
    SwitchEnhanced,
    /// Port of a switch that can have a cable.
    SwitchExternal,
}

impl PortKind {
    /// Whether the port has addresses, keys and a subnet manager of its own.
    pub fn is_addressed(self) -> bool {
        self != Self::SwitchExternal
    }

    /// Whether the port can have a cable.
    pub fn has_link(self) -> bool {
        matches!(self, Self::ChannelAdapter | Self::SwitchExternal)
    }
}

/// What management keeps of a port besides the tables.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) info: PortInfo,
    /// When the M_Key's protection lapses, once the lease runs.
    pub(super) lease_end: Option<Instant>,
    pub(super) vl_low: [VlArbitrationEntry; VL_ARBITRATION_ENTRIES as usize],
    pub(super) vl_high: [VlArbitrationEntry; VL_ARBITRATION_ENTRIES as usize],
}

/// A 16-bit counter that stops at its greatest value.
#[derive(Debug, Default)]
pub struct Violations(AtomicU16);

impl Violations {
    /// Counts a violation.
    pub fn count(&self) {
        // Fails only at the greatest value, where the counter is to stay.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |n| n.checked_add(1));
    }

    /// Violations since the counter was last cleared.
    pub fn get(&self) -> u16 {
        self.0.load(Relaxed)
    }

    /// Clears the counter.
    pub fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// A port.
#[derive(Debug)]
pub struct PortState {
    kind: PortKind,
    guid: u64,
    state: AtomicU8,
    phys_state: AtomicU8,
    /// LID, LMC.
    lid_lmc: AtomicU32,
    /// LID and service level of the subnet manager.
    sm: AtomicU32,
    gid_prefix: AtomicU64,
    m_key: AtomicU64,
    capability_mask: AtomicU32,
    neighbor_mtu: AtomicU8,
    operational_vls: AtomicU8,
    subnet_timeout: AtomicU8,
    /// Active width, speed, extended speed.
    link_rate: AtomicU32,
    /// Enforcement of P_Keys inbound (bit 1) and outbound (bit 0).
    enforcement: AtomicU8,
    /// SL n in nibble n, counted from the top.
    pub(super) sl_to_vl: AtomicU64,
    pub(super) guids: Box<[AtomicU64]>,
    pub(super) p_keys: Box<[AtomicU16]>,
    /// SMPs with a wrong M_Key.
    pub m_key_violations: Violations,
    /// Packets with a wrong P_Key.
    pub p_key_violations: Violations,
    /// Packets with a wrong Q_Key.
    pub q_key_violations: Violations,
    /// Performance counters.
    pub counters: Counters,
    settings: Mutex<Settings>,
}

/// Whether two P_Keys let their owners talk: the same partition, and at least one full member (IBTA vol. 1,
/// 10.9.3).
pub fn p_keys_match(a: u16, b: u16) -> bool {
    let partition = !PKeyTable::FULL_MEMBER;
    a & partition == b & partition && a & partition != 0 && (a | b) & PKeyTable::FULL_MEMBER != 0
}

/// SL n on VL n mod 8.
const DEFAULT_SL_TO_VL: u64 = 0x0123_4567_0123_4567;

impl PortState {
    pub(super) fn channel_adapter(guid: u64) -> Self {
        Self::new(PortKind::ChannelAdapter, guid, usize::from(TABLE_ENTRIES), usize::from(TABLE_ENTRIES))
    }

    pub(super) fn switch_management(guid: u64, enhanced: bool) -> Self {
        let kind = if enhanced { PortKind::SwitchEnhanced } else { PortKind::SwitchBase };
        Self::new(kind, guid, 1, 32)
    }

    pub(super) fn switch_external(p_keys: u16) -> Self {
        Self::new(PortKind::SwitchExternal, 0, 0, usize::from(p_keys))
    }

    fn new(kind: PortKind, guid: u64, guids: usize, p_keys: usize) -> Self {
        let port = Self {
            kind,
            guid,
            state: AtomicU8::default(),
            phys_state: AtomicU8::default(),
            lid_lmc: AtomicU32::default(),
            sm: AtomicU32::default(),
            gid_prefix: AtomicU64::default(),
            m_key: AtomicU64::default(),
            capability_mask: AtomicU32::default(),
            neighbor_mtu: AtomicU8::default(),
            operational_vls: AtomicU8::default(),
            subnet_timeout: AtomicU8::default(),
            link_rate: AtomicU32::default(),
            enforcement: AtomicU8::default(),
            sl_to_vl: AtomicU64::default(),
            guids: std::iter::repeat_with(AtomicU64::default).take(guids).collect(),
            p_keys: std::iter::repeat_with(AtomicU16::default).take(p_keys).collect(),
            m_key_violations: Violations::default(),
            p_key_violations: Violations::default(),
            q_key_violations: Violations::default(),
            counters: Counters::default(),
            settings: Mutex::new(power_on(kind)),
        };
        port.reset();
        port
    }

    pub(super) fn reset(&self) {
        let mut settings = self.settings();
        *settings = power_on(self.kind);
        for (index, guid) in self.guids.iter().enumerate() {
            guid.store(if index == 0 { self.guid } else { 0 }, Relaxed);
        }
        for (index, p_key) in self.p_keys.iter().enumerate() {
            p_key.store(if index == 0 { DEFAULT_PKEY } else { 0 }, Relaxed);
        }
        self.sl_to_vl.store(DEFAULT_SL_TO_VL, Relaxed);
        self.m_key_violations.clear();
        self.p_key_violations.clear();
        self.q_key_violations.clear();
        self.counters.reset();
        self.publish(&settings.info);
    }

    /// Takes the settings, to read or change them.
    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    /// Shows the data path what the settings say. Whoever changes them does this before letting them go.
    pub(super) fn publish(&self, info: &PortInfo) {
        let pair = |high: u16, low: u8| u32::from(high) << 8 | u32::from(low);
        self.phys_state.store(info.link.port_physical_state().0, Relaxed);
        self.lid_lmc.store(pair(info.lid.get(), info.link.lmc()), Relaxed);
        self.sm.store(pair(info.master_sm_lid.get(), info.lanes.master_sm_sl()), Relaxed);
        self.gid_prefix.store(info.gid_prefix.get(), Relaxed);
        self.m_key.store(info.m_key.get(), Relaxed);
        self.capability_mask.store(info.capability_mask.into_bits().get(), Relaxed);
        self.neighbor_mtu.store(info.lanes.neighbor_mtu().0, Relaxed);
        self.operational_vls.store(info.limits.operational_vls().0, Relaxed);
        self.subnet_timeout.store(info.timeout.subnet_timeout(), Relaxed);
        let rate = [
            0,
            info.link_width_active,
            info.link.link_speed_active(),
            info.extended_speed.link_speed_ext_active(),
        ];
        self.link_rate.store(u32::from_be_bytes(rate), Relaxed);
        let inbound = u8::from(info.limits.partition_enforcement_inbound());
        let outbound = u8::from(info.limits.partition_enforcement_outbound());
        self.enforcement.store(inbound << 1 | outbound, Relaxed);
        // Last, so that who sees an active port sees the address that goes with it.
        self.state.store(info.link.port_state().0, Release);
    }

    /// What kind of port it is.
    pub fn kind(&self) -> PortKind {
        self.kind
    }

    /// Logical state.
    pub fn state(&self) -> portinfo::PortState {
        portinfo::PortState(self.state.load(Acquire))
    }

    /// Whether the port carries data.
    pub fn is_active(&self) -> bool {
        self.state() == portinfo::PortState::ACTIVE
    }

    /// Physical state.
    pub fn phys_state(&self) -> PhysState {
        PhysState(self.phys_state.load(Relaxed))
    }

    /// Whether the port would get a link from a far end that trains.
    pub fn can_train(&self) -> bool {
        self.kind.has_link() && self.phys_state() != PhysState::DISABLED
    }

    /// Base LID; 0 for none.
    pub fn lid(&self) -> u16 {
        self.lid_and_lmc().0
    }

    /// LID mask control: the low bits of the LID that don't count.
    pub fn lmc(&self) -> u8 {
        self.lid_and_lmc().1
    }

    /// Base LID and LMC, of one moment.
    pub fn lid_and_lmc(&self) -> (u16, u8) {
        let [_, high, low, lmc] = self.lid_lmc.load(Relaxed).to_be_bytes();
        (u16::from_be_bytes([high, low]), lmc)
    }

    /// Whether a unicast LID is one of the port's.
    pub fn has_lid(&self, lid: u16) -> bool {
        let (base, lmc) = self.lid_and_lmc();
        base != 0 && base >> lmc == lid >> lmc
    }

    /// LID of the master subnet manager; 0 for none.
    pub fn sm_lid(&self) -> u16 {
        let [_, high, low, _] = self.sm.load(Relaxed).to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// Service level towards the master subnet manager.
    pub fn sm_sl(&self) -> u8 {
        let [.., sl] = self.sm.load(Relaxed).to_be_bytes();
        sl
    }

    /// Subnet prefix.
    pub fn gid_prefix(&self) -> u64 {
        self.gid_prefix.load(Relaxed)
    }

    /// Entries of the GUID table.
    pub fn guid_count(&self) -> usize {
        self.guids.len()
    }

    /// An entry of the GUID table; 0 for an empty one.
    pub fn guid(&self, index: usize) -> Option<u64> {
        Some(self.guids.get(index)?.load(Relaxed))
    }

    /// The GID of an entry of the GUID table; none for an empty one.
    pub fn gid(&self, index: usize) -> Option<[u8; 16]> {
        let guid = self.guid(index).filter(|&guid| guid != 0)?;
        Some((u128::from(self.gid_prefix()) << 64 | u128::from(guid)).to_be_bytes())
    }

    /// Which entry of the GUID table has a GID, with the subnet's prefix or the default one.
    pub fn find_gid(&self, gid: &[u8; 16]) -> Option<usize> {
        let (prefix, guid) = gid.split_at(8);
        let prefixes = [self.gid_prefix().to_be_bytes(), DEFAULT_GID_PREFIX.to_be_bytes()];
        if !prefixes.iter().any(|known| known == prefix) || guid == [0; 8] {
            return None;
        }
        self.guids.iter().position(|entry| entry.load(Relaxed).to_be_bytes() == guid)
    }

    /// Entries of the P_Key table.
    pub fn pkey_count(&self) -> usize {
        self.p_keys.len()
    }

    /// An entry of the P_Key table.
    pub fn pkey(&self, index: usize) -> Option<u16> {
        Some(self.p_keys.get(index)?.load(Relaxed))
    }

    /// Which entry of the P_Key table lets in a packet with a P_Key.
    pub fn find_pkey(&self, pkey: u16) -> Option<usize> {
        self.p_keys.iter().position(|entry| p_keys_match(entry.load(Relaxed), pkey))
    }

    /// The greatest MTU towards the far end.
    pub fn mtu(&self) -> Mtu {
        Mtu(self.neighbor_mtu.load(Relaxed))
    }

    /// Virtual lanes in use.
    pub fn operational_vls(&self) -> VlCap {
        VlCap(self.operational_vls.load(Relaxed))
    }

    /// The virtual lane of a service level; 15 for "drop".
    pub fn vl(&self, sl: u8) -> u8 {
        let [.., vl] = (self.sl_to_vl.load(Relaxed) >> (60 - 4 * u32::from(sl & 0xf))).to_be_bytes();
        vl & 0xf
    }

    /// SLtoVLMappingTable as it stands in its attribute: the lower service level of a pair in the upper half.
    pub fn sl_to_vl_pairs(&self) -> [u8; 8] {
        self.sl_to_vl.load(Relaxed).to_be_bytes()
    }

    /// Management key.
    pub fn m_key(&self) -> u64 {
        self.m_key.load(Relaxed)
    }

    /// Capability mask.
    pub fn capability_mask(&self) -> u32 {
        self.capability_mask.load(Relaxed)
    }

    /// Traps are sent no more often than every 4.096 µs × 2^n.
    pub fn subnet_timeout(&self) -> u8 {
        self.subnet_timeout.load(Relaxed)
    }

    /// Width of the link, one of [`link_width`].
    pub fn link_width(&self) -> u8 {
        self.link_rate.load(Relaxed).to_be_bytes()[1]
    }

    /// Speed of the link, one of [`link_speed`].
    pub fn link_speed(&self) -> u8 {
        self.link_rate.load(Relaxed).to_be_bytes()[2]
    }

    /// Extended speed of the link, one of [`link_speed_ext`]; 0 if it runs no faster than QDR.
    pub fn link_speed_ext(&self) -> u8 {
        self.link_rate.load(Relaxed).to_be_bytes()[3]
    }

    /// Whether the port of a switch drops packets whose P_Key isn't in its table: inbound, outbound.
    pub fn partition_enforcement(&self) -> (bool, bool) {
        let bits = self.enforcement.load(Relaxed);
        (bits & 2 != 0, bits & 1 != 0)
    }

    /// PortInfo, except for the port number and with the M_Key in clear.
    pub fn port_info(&self) -> PortInfo {
        let mut info = self.settings().info;
        info.m_key_violations.set(self.m_key_violations.get());
        info.p_key_violations.set(self.p_key_violations.get());
        info.q_key_violations.set(self.q_key_violations.get());
        info
    }

    /// Sets the capability mask. If it is another than before, the port shall send trap 144, from
    /// [`NodeState::local_changes`](super::NodeState::local_changes).
    pub fn set_capability_mask(&self, mask: u32) -> bool {
        let mut settings = self.settings();
        let mask = CapabilityMask::from_bits(U32::new(mask));
        let changed = settings.info.capability_mask != mask;
        settings.info.capability_mask = mask;
        self.publish(&settings.info);
        changed
    }

    /// Limits MTU and virtual lanes below what the hardware can do. False, and no change, for a value that
    /// it can't do. A link that is up keeps its values until it trains again.
    pub fn set_caps(&self, mtu: Mtu, vls: VlCap) -> bool {
        if !(Mtu::B256..=MTU_CAP).contains(&mtu) || !(VlCap::VL0..=VL_CAP).contains(&vls) {
            return false;
        }
        let mut settings = self.settings();
        settings.info.limits.set_mtu_cap(mtu);
        settings.info.lanes.set_vl_cap(vls);
        true
    }

    pub(super) fn link_up(&self) -> LinkEffect {
        let mut settings = self.settings();
        let phys_state = settings.info.link.port_physical_state();
        if !self.kind.has_link() || [PhysState::DISABLED, PhysState::LINK_UP].contains(&phys_state) {
            return LinkEffect::default();
        }
        train(&mut settings.info);
        self.publish(&settings.info);
        LinkEffect { changed: true, left_active: false }
    }

    pub(super) fn link_down(&self) -> LinkEffect {
        let mut settings = self.settings();
        let link = &mut settings.info.link;
        if !self.kind.has_link() || link.port_physical_state() != PhysState::LINK_UP {
            return LinkEffect::default();
        }
        let left_active = link.port_state() == portinfo::PortState::ACTIVE;
        let default = link.link_down_default_state();
        go_down(&mut settings.info, default);
        self.publish(&settings.info);
        self.counters.add(Counter::LinkDowned, 1);
        LinkEffect { changed: true, left_active }
    }
}

/// The link is trained: at the best width and speed that are enabled, the greatest MTU and most lanes.
pub(super) fn train(info: &mut PortInfo) {
    let best = |enabled: u8| enabled.checked_ilog2().map_or(0, |bit| 1 << bit);
    info.link_width_active = best(info.link_width_enabled);
    let extended = best(info.extended_speed.link_speed_ext_enabled() & 0xf);
    info.extended_speed.set_link_speed_ext_active(extended);
    let enabled = if extended == 0 { info.link.link_speed_enabled() } else { link_speed::QDR };
    info.link.set_link_speed_active(best(enabled));
    info.lanes.set_neighbor_mtu(info.limits.mtu_cap());
    info.limits.set_operational_vls(info.lanes.vl_cap());
    info.link.set_port_physical_state(PhysState::LINK_UP);
    info.link.set_port_state(portinfo::PortState::INIT);
}

/// The link is down. Speed and width read as a card shows them without a cable: 4X SDR.
pub(super) fn go_down(info: &mut PortInfo, phys_state: PhysState) {
    info.link.set_port_state(portinfo::PortState::DOWN);
    info.link.set_port_physical_state(phys_state);
    info.link_width_active = link_width::X4;
    info.link.set_link_speed_active(link_speed::SDR);
    info.extended_speed.set_link_speed_ext_active(0);
}

fn power_on(kind: PortKind) -> Settings {
    let mut info = PortInfo::new_zeroed();
    info.lanes = LinkLanes::new().with_neighbor_mtu(MTU_CAP).with_vl_cap(VL_CAP);
    info.limits = LinkLimits::new().with_mtu_cap(MTU_CAP).with_operational_vls(VL_CAP);
    info.thresholds = ErrorThresholds::new().with_local_phy_errors(8).with_overrun_errors(8);
    if kind.is_addressed() {
        info.gid_prefix = U64::new(DEFAULT_GID_PREFIX);
        info.thresholds.set_resp_time_value(16);
        let mask =
            if kind == PortKind::ChannelAdapter { CONNECTX3_CAPABILITY_MASK } else { SWITCH_CAPABILITY_MASK };
        info.capability_mask = CapabilityMask::from_bits(U32::new(mask));
        info.guid_cap = if kind == PortKind::ChannelAdapter { TABLE_ENTRIES } else { 1 };
    }
    if kind.has_link() {
        info.link_width_supported = WIDTHS;
        info.link_width_enabled = WIDTHS;
        info.link = LinkState::new()
            .with_link_speed_supported(SPEEDS)
            .with_link_speed_enabled(SPEEDS)
            .with_link_down_default_state(PhysState::POLLING);
        info.extended_speed = ExtendedSpeed::new()
            .with_link_speed_ext_supported(link_speed_ext::FDR)
            .with_link_speed_ext_enabled(link_speed_ext::FDR);
        info.lanes.set_vl_arbitration_high_cap(VL_ARBITRATION_ENTRIES);
        info.limits.set_vl_arbitration_low_cap(VL_ARBITRATION_ENTRIES);
        go_down(&mut info, PhysState::POLLING);
    } else {
        info.lanes.set_vl_cap(VlCap::VL0);
        info.limits.set_operational_vls(VlCap::VL0);
        info.link.set_port_physical_state(PhysState::LINK_UP);
        info.link.set_port_state(match kind {
            PortKind::SwitchEnhanced => portinfo::PortState::INIT,
            _ => portinfo::PortState::ACTIVE,
        });
    }
    Settings { info, lease_end: None, vl_low: arbitrate_evenly(64), vl_high: arbitrate_evenly(0) }
}

fn arbitrate_evenly(weight: u8) -> [VlArbitrationEntry; VL_ARBITRATION_ENTRIES as usize] {
    let lanes = [0, 1, 2, 3, 4, 5, 6, 7];
    lanes.map(|vl| VlArbitrationEntry { vl: ArbitratedVl::new().with_vl(vl), weight })
}
