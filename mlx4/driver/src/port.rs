//! Ports: what subnet management has set, and what is remembered of it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mlx4_wire::cmd::port::SetPortIb;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::mad::attr::{GuidInfo, NodeInfo, NodeType, PKeyTable, SlToVlTable};
use mlx4_wire::mad::portinfo::{Mtu, PortInfo, PortState, VlCap};
use mlx4_wire::mad::smp::SmpAttribute;
use zerocopy::FromZeros;

use crate::caps::{Capabilities, PortCapabilities};
use crate::cmd::Commands;
use crate::error::{Error, FieldError, Fields, Result};
use crate::event::PortEvent;
use crate::mad::ifc;

/// A global identifier: subnet prefix and GUID.
pub type Gid = [u8; 16];

/// P_Keys that one answer of the agent carries.
const PKEYS_PER_BLOCK: u16 = 32;
/// Data virtual lanes that a port of the family has at most.
const MAX_LANES: u8 = 8;
/// Virtual lane of service levels that have none.
const VL_NONE: u8 = 15;
/// LIDs behind it are for multicast.
pub(crate) const LAST_UNICAST_LID: u16 = 0xbfff;
/// GUIDs that one answer of the agent carries.
const GUIDS_PER_BLOCK: u16 = 8;

/// NodeInfo of the device, checked.
pub(crate) fn node_info(commands: &Commands, caps: &Capabilities) -> Result<NodeInfo> {
    let info: NodeInfo = ifc::get(commands, 1, SmpAttribute::NODE_INFO, 0)?;
    let fields = Fields("NodeInfo");
    fields.is("node_type", info.node_type.0, NodeType::CHANNEL_ADAPTER.0.into())?;
    let ports = caps.ports.len() as u64;
    fields.is("num_ports", info.num_ports, ports)?;
    fields.between("local_port_num", info.local_port_vendor.local_port_num(), 1, ports)?;
    let pkeys = caps.ports.iter().map(|port| port.pkeys).max().unwrap_or(0);
    fields.between("partition_cap", info.partition_cap.get(), 1, pkeys.into())?;
    Ok(info)
}

/// What is remembered; each piece until the device says that it has changed.
#[derive(Debug, Default)]
struct Memory {
    /// Counts changes, so that what was asked for before a change isn't remembered after it.
    changes: u64,
    info: Option<PortInfo>,
    pkeys: Option<Vec<u16>>,
    gids: Option<Vec<Gid>>,
    lanes: Option<SlToVlTable>,
}

impl Memory {
    /// Forgets everything.
    fn forget(&mut self) {
        *self = Self { changes: self.changes + 1, ..Self::default() };
    }
}

/// A port of the device.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u8,
    pub(crate) caps: PortCapabilities,
    memory: Mutex<Memory>,
}

/// What a port is like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAttributes {
    /// State: 1 DOWN, 2 INIT, 3 ARMED, 4 ACTIVE.
    pub state: PortState,
    /// Physical state, as IBTA numbers it: 2 polling, 3 disabled, 5 link up.
    pub physical_state: u8,
    /// LID; 0 before the subnet manager has given one.
    pub lid: u16,
    /// log2 of the LIDs that the port has.
    pub lmc: u8,
    /// LID of the subnet manager.
    pub sm_lid: u16,
    /// Service level to the subnet manager.
    pub sm_sl: u8,
    /// Subnet prefix.
    pub gid_prefix: u64,
    /// MTU in use.
    pub active_mtu: Mtu,
    /// The greatest MTU.
    pub max_mtu: Mtu,
    /// Capability mask, as IBTA numbers its bits.
    pub capability_mask: u32,
    /// Second capability mask; 0 if the port has none.
    pub capability_mask2: u16,
    /// Greatest virtual lane, as IBTA numbers it: 1 is VL0 only, 4 is VL0 to VL7.
    pub max_vls: u8,
    /// Kind of initialisation that the subnet manager did.
    pub init_type_reply: u8,
    /// Link width in use, as IBTA numbers it.
    pub width: u8,
    /// Link speed in use, as IBTA numbers it, up to QDR.
    pub speed: u8,
    /// Link speed in use beyond QDR, as IBTA numbers it; 0 if it isn't.
    pub speed_ext: u8,
    /// Entries of the GID table.
    pub gids: u16,
    /// Entries of the P_Key table.
    pub pkeys: u16,
    /// P_Key violations.
    pub pkey_violations: u16,
    /// Q_Key violations.
    pub qkey_violations: u16,
    /// How long packets live in the subnet: 4.096 µs × 2^n.
    pub subnet_timeout: u8,
}

impl Port {
    /// Asks for a piece that isn't remembered, and remembers it.
    fn piece<T: Clone>(
        &self,
        place: impl Fn(&mut Memory) -> &mut Option<T>,
        ask: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let changes = {
            let mut memory = self.memory();
            if let Some(piece) = place(&mut memory) {
                return Ok(piece.clone());
            }
            memory.changes
        };
        let piece = ask()?;
        let mut memory = self.memory();
        if memory.changes == changes {
            *place(&mut memory) = Some(piece.clone());
        }
        Ok(piece)
    }

    /// PortInfo as it is now. Counters and state change without notice, so it is asked for each time.
    pub(crate) fn fresh_info(&self, commands: &Commands) -> Result<PortInfo> {
        let info = ifc::get(commands, self.number, SmpAttribute::PORT_INFO, self.number.into())?;
        check(&info)?;
        Ok(info)
    }

    /// PortInfo as far as it changes with notice: LIDs, prefix, service level of the subnet manager.
    pub(crate) fn info(&self, commands: &Commands) -> Result<PortInfo> {
        self.piece(|memory| &mut memory.info, || self.fresh_info(commands))
    }

    pub(crate) fn attributes(&self, commands: &Commands) -> Result<PortAttributes> {
        let info = self.fresh_info(commands)?;
        Ok(PortAttributes {
            state: info.link.port_state(),
            physical_state: info.link.port_physical_state().0,
            lid: info.lid.get(),
            lmc: info.link.lmc(),
            sm_lid: info.master_sm_lid.get(),
            sm_sl: info.lanes.master_sm_sl(),
            gid_prefix: info.gid_prefix.get(),
            active_mtu: info.lanes.neighbor_mtu(),
            max_mtu: info.limits.mtu_cap(),
            capability_mask: info.capability_mask.into_bits().get(),
            capability_mask2: match info.capability_mask.capability_mask2() {
                true => info.capability_mask2.get(),
                false => 0,
            },
            max_vls: info.lanes.vl_cap().0,
            init_type_reply: info.limits.init_type_reply(),
            width: info.link_width_active,
            speed: info.link.link_speed_active(),
            speed_ext: info.extended_speed.link_speed_ext_active(),
            gids: self.caps.gids,
            pkeys: self.caps.pkeys,
            pkey_violations: info.p_key_violations.get(),
            qkey_violations: info.q_key_violations.get(),
            subnet_timeout: info.timeout.subnet_timeout(),
        })
    }

    /// The P_Key table.
    pub(crate) fn pkeys(&self, commands: &Commands) -> Result<Vec<u16>> {
        self.piece(
            |memory| &mut memory.pkeys,
            || {
                let mut pkeys = Vec::new();
                for block in 0..self.caps.pkeys.div_ceil(PKEYS_PER_BLOCK) {
                    let table: PKeyTable =
                        ifc::get(commands, self.number, SmpAttribute::P_KEY_TABLE, block.into())?;
                    pkeys.extend(table.p_keys.iter().map(|pkey| pkey.get()));
                }
                pkeys.truncate(self.caps.pkeys.into());
                Ok(pkeys)
            },
        )
    }

    /// The GID table: the subnet prefix and each GUID.
    pub(crate) fn gids(&self, commands: &Commands) -> Result<Vec<Gid>> {
        self.piece(
            |memory| &mut memory.gids,
            || {
                let prefix = self.info(commands)?.gid_prefix.to_bytes();
                let mut gids = Vec::new();
                for block in 0..self.caps.gids.div_ceil(GUIDS_PER_BLOCK) {
                    let table: GuidInfo =
                        ifc::get(commands, self.number, SmpAttribute::GUID_INFO, block.into())?;
                    gids.extend(table.guids.iter().map(|guid| {
                        let mut gid = [0; 16];
                        gid[..8].copy_from_slice(&prefix);
                        gid[8..].copy_from_slice(&guid.to_bytes());
                        gid
                    }));
                }
                gids.truncate(self.caps.gids.into());
                Ok(gids)
            },
        )
    }

    /// The virtual lane of a service level.
    pub(crate) fn lane(&self, commands: &Commands, sl: u8) -> Result<u8> {
        let table: SlToVlTable = self.piece(
            |memory| &mut memory.lanes,
            || ifc::get(commands, self.number, SmpAttribute::SL_TO_VL_MAPPING_TABLE, 0),
        )?;
        let pair = table.pairs[usize::from(sl & 0xf) / 2];
        let lane = if sl.is_multiple_of(2) { pair.even() } else { pair.odd() };
        let there = lane < MAX_LANES || lane == VL_NONE;
        Ok(Fields("SLtoVLMappingTable").holds("pairs", lane, there, "data lanes of the family, or 15")?)
    }

    /// Forgets what has changed.
    fn changed(&self, event: PortEvent) {
        let mut memory = self.memory();
        memory.changes += 1;
        match event {
            PortEvent::Pkeys => memory.pkeys = None,
            PortEvent::VirtualLanes => memory.lanes = None,
            PortEvent::Gids => (memory.gids, memory.info) = (None, None),
            PortEvent::Lid | PortEvent::Sm => memory.info = None,
            PortEvent::Active | PortEvent::Down | PortEvent::Reregister => memory.forget(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks what others count on. LIDs may be 0 before the subnet manager has given one.
fn check(info: &PortInfo) -> Result<(), FieldError> {
    let fields = Fields("PortInfo");
    fields.between("port_state", info.link.port_state().0, PortState::DOWN.0.into(), 5)?;
    let lid = fields.at_most("lid", info.lid.get(), LAST_UNICAST_LID.into())?;
    // The LIDs of a port share all but their low bits, which the first has as zeros.
    fields.at_most("lmc", info.link.lmc(), lid.trailing_zeros().into())?;
    fields.at_most("master_sm_lid", info.master_sm_lid.get(), LAST_UNICAST_LID.into())?;
    fields.between("mtu_cap", info.limits.mtu_cap().0, Mtu::B256.0.into(), Mtu::B4096.0.into())?;
    // Subnet management sets it while the port is INIT.
    let least = if info.link.port_state().0 > PortState::INIT.0 { Mtu::B256.0 } else { 0 };
    fields.between("neighbor_mtu", info.lanes.neighbor_mtu().0, least.into(), Mtu::B4096.0.into())?;
    fields.between("vl_cap", info.lanes.vl_cap().0, VlCap::VL0.0.into(), VlCap::VL0_14.0.into())?;
    Ok(())
}

/// The ports of the device.
#[derive(Debug)]
pub(crate) struct Ports(Vec<Port>);

impl Ports {
    pub(crate) fn new(caps: &Capabilities) -> Self {
        let port =
            |(number, caps): (u8, &PortCapabilities)| Port { number, caps: *caps, memory: Mutex::default() };
        Self((1..).zip(&caps.ports).map(port).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Port> {
        self.0.iter()
    }

    /// A port by its number, from 1.
    pub(crate) fn get(&self, number: u8) -> Result<&Port> {
        let index = number.checked_sub(1).map(usize::from);
        index.and_then(|index| self.0.get(index)).ok_or(Error::argument("port", number))
    }

    /// Forgets everything of all ports.
    pub(crate) fn forget(&self) {
        self.0.iter().for_each(|port| port.memory().forget());
    }

    /// Forgets what has changed.
    pub(crate) fn changed(&self, number: u8, event: PortEvent) {
        if let Ok(port) = self.get(number) {
            port.changed(event);
        }
    }

    /// Sets the greatest MTU, and as many virtual lanes as there are buffers for with it.
    pub(crate) fn configure(&self, commands: &Commands, number: u8) -> Result<()> {
        let port = self.get(number)?;
        let mut set = SetPortIb::new_zeroed();
        // The mask is always set, so it has to be the one that is there.
        set.cap_mask = port.fresh_info(commands)?.capability_mask.into_bits();
        set.flags.set_change_mtu(true);
        set.flags.set_change_vl(true);
        set.flags.set_mtu_cap(port.caps.max_mtu);
        let mut lanes = MAX_LANES;
        loop {
            set.flags.set_vl_cap(lanes);
            match commands.give(Opcode::SET_PORT, number.into(), &set) {
                Err(error) if error.status() == Some(Status::BAD_SIZE) && lanes > 1 => lanes /= 2,
                other => return Ok(other?),
            }
        }
    }

    /// Starts the link of a port.
    pub(crate) fn init(commands: &Commands, number: u8) -> Result<()> {
        Ok(commands.simple(Opcode::INIT_PORT, number.into())?)
    }

    /// Takes the link of a port down.
    pub(crate) fn close(commands: &Commands, number: u8) -> Result<()> {
        Ok(commands.simple(Opcode::CLOSE_PORT, number.into())?)
    }
}
