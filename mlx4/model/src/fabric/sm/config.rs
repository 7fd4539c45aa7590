//! Settings of the subnet manager, and what they make of a port.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mlx4_wire::mad::attr::PKeyTable;
use mlx4_wire::mad::portinfo::{PhysState, PortInfo, PortState};
use mlx4_wire::mad::{DEFAULT_GID_PREFIX, DEFAULT_PKEY};
use mlx4_wire::{U16, U64};

/// P_Key table entries in a block.
const PKEYS_PER_BLOCK: usize = 32;

/// Settings of the built-in subnet manager and administrator.
#[derive(Clone, Debug)]
pub struct SmConfig {
    /// Priority among subnet managers, 0 to 15, as SMInfo tells it.
    pub priority: u8,
    /// Subnet prefix.
    pub gid_prefix: u64,
    /// Between sweeps while no trap asks for one.
    pub sweep_interval: Duration,
    /// How long to wait for the answer to an SMP.
    pub smp_timeout: Duration,
    /// How often an SMP is sent before its node counts as silent.
    pub smp_tries: u32,
    /// Subnet timeout and packet lifetime: 4.096 µs × 2^n, n up to 31.
    pub subnet_timeout: u8,
    /// P_Key table of each port that [`port_pkeys`](Self::port_pkeys) doesn't name.
    pub pkeys: Vec<u16>,
    /// P_Key tables by port GUID.
    pub port_pkeys: BTreeMap<u64, Vec<u16>>,
}

impl Default for SmConfig {
    fn default() -> Self {
        Self {
            priority: 0,
            gid_prefix: DEFAULT_GID_PREFIX,
            sweep_interval: Duration::from_secs(3),
            smp_timeout: Duration::from_millis(200),
            smp_tries: 4,
            subnet_timeout: 18,
            pkeys: vec![DEFAULT_PKEY],
            port_pkeys: BTreeMap::new(),
        }
    }
}

impl SmConfig {
    /// The P_Keys that a port shall have in a block of its table.
    pub(super) fn pkey_block(&self, port_guid: u64, block: u16) -> [u16; PKEYS_PER_BLOCK] {
        let table = self.table(port_guid);
        let from = usize::from(block) * PKEYS_PER_BLOCK;
        let mut wanted = [0; PKEYS_PER_BLOCK];
        for (entry, pkey) in wanted.iter_mut().zip(table.iter().skip(from)) {
            *entry = *pkey;
        }
        wanted
    }

    /// How many P_Keys a port shall have.
    pub(super) fn pkey_count(&self, port_guid: u64) -> usize {
        self.table(port_guid).len()
    }

    fn table(&self, port_guid: u64) -> &[u16] {
        self.port_pkeys.get(&port_guid).unwrap_or(&self.pkeys)
    }

    /// All partitions, as the P_Keys of full members.
    pub(super) fn partitions(&self) -> BTreeSet<u16> {
        let tables = self.port_pkeys.values().chain([&self.pkeys]);
        let is_pkey = |pkey: &u16| pkey & !PKeyTable::FULL_MEMBER != 0;
        tables.flatten().copied().filter(is_pkey).map(|pkey| pkey | PKeyTable::FULL_MEMBER).collect()
    }

    /// What to set in a port's PortInfo: it belongs to this subnet, and its state stays as it is. A switch's
    /// external port has no LIDs.
    pub(super) fn managed(&self, known: &PortInfo, lid: u16, sm_lid: u16) -> PortInfo {
        let mut info = *known;
        info.m_key = U64::new(0);
        info.gid_prefix = U64::new(self.gid_prefix);
        info.lid = U16::new(lid);
        info.master_sm_lid = U16::new(sm_lid);
        info.m_key_lease_period = U16::new(0);
        info.link_width_enabled = 0;
        info.link = info
            .link
            .with_port_state(PortState::NO_CHANGE)
            .with_port_physical_state(PhysState::NO_CHANGE)
            .with_link_down_default_state(PhysState::NO_CHANGE)
            .with_m_key_protect_bits(0)
            .with_lmc(0)
            .with_link_speed_enabled(0);
        info.lanes.set_master_sm_sl(0);
        info.timeout =
            info.timeout.with_client_reregister(false).with_subnet_timeout(self.subnet_timeout.min(0x1f));
        info.extended_speed.set_link_speed_ext_enabled(0);
        info
    }
}
