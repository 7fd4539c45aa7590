//! What subnet management sees of a node: port state, tables and counters, and the agents that answer
//! subnet management (SMA) and performance management (PMA) datagrams.
//!
//! A node is a channel adapter, with ports from 1, or a switch, with its port 0 and external ports from 1.
//! All that forwarding and the data path ask for is held in atomics and read without a lock; each port's
//! full PortInfo is behind a mutex that only management takes.
//!
//! Does not: route directed-route SMPs or count their hops, act as subnet manager (SMInfo is refused),
//! send anything. The owner puts replies and traps on the wire, raises events, and works the link, as
//! [`PortChanges`] and [`LinkEffect`] tell.

pub mod counters;
mod m_key;
pub mod pma;
pub mod port;
mod port_info;
mod sma;
pub mod switch;
mod tables;
pub mod trap;

#[cfg(test)]
mod testing;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mlx4_wire::mad::attr::{NodeDescription, NodeType};
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::notice::Notice;
use mlx4_wire::mad::smp::Smp;
use thiserror::Error;
use zerocopy::FromBytes;

use port::{PortKind, PortState};
use switch::SwitchState;

/// The greatest port number; 255 means "all ports" or "drop" in management.
pub const MAX_PORT: u8 = 254;

/// Why a node can't be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    /// The number of ports isn't from 1 to 254.
    #[error("node with {0} ports")]
    Ports(usize),
    /// A node or port GUID is zero, which subnet managers refuse.
    #[error("node or port guid is zero")]
    ZeroGuid,
    /// The vendor id has more than 24 bits.
    #[error("vendor id {0:#x} has more than 24 bits")]
    VendorId(u32),
    /// A forwarding table has no entry, or more than there are LIDs.
    #[error("forwarding tables of {linear} unicast and {multicast} multicast entries")]
    ForwardingTables {
        /// Entries of the linear forwarding table.
        linear: u16,
        /// Entries of the multicast forwarding table.
        multicast: u16,
    },
}

/// What kind of node to make.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// A channel adapter.
    ChannelAdapter {
        /// GUID of each port, from port 1.
        port_guids: Vec<u64>,
    },
    /// A switch.
    Switch(switch::SwitchConfig),
}

/// A node to be made.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// GUID of the system that the node is part of.
    pub system_image_guid: u64,
    /// GUID of the node; of a switch's port 0, too.
    pub node_guid: u64,
    /// Device id.
    pub device_id: u16,
    /// Hardware revision.
    pub revision: u32,
    /// Vendor id, 24 bits.
    pub vendor_id: u32,
    /// Node description; what doesn't fit in 64 bytes is cut off.
    pub description: String,
    /// Its kind.
    pub kind: NodeKind,
}

/// Mellanox's vendor id.
pub const VENDOR_MELLANOX: u32 = 0x2c9;

impl NodeConfig {
    /// A ConnectX-3. The ports' GUIDs follow the node's, the system's comes after two ports, as on the card.
    pub fn connectx3(node_guid: u64, ports: u8, description: &str) -> Self {
        Self {
            system_image_guid: node_guid.wrapping_add(3),
            node_guid,
            device_id: 0x1003,
            revision: 1,
            vendor_id: VENDOR_MELLANOX,
            description: description.to_owned(),
            kind: NodeKind::ChannelAdapter {
                port_guids: (1..=u64::from(ports)).map(|n| node_guid.wrapping_add(n)).collect(),
            },
        }
    }

    /// A SwitchX-2 with its base port 0 and the given number of external ports.
    pub fn switch(guid: u64, external_ports: u8, description: &str) -> Self {
        Self {
            system_image_guid: guid,
            node_guid: guid,
            device_id: 0xc738,
            revision: 0,
            vendor_id: VENDOR_MELLANOX,
            description: description.to_owned(),
            kind: NodeKind::Switch(switch::SwitchConfig { external_ports, ..Default::default() }),
        }
    }
}

/// What the agents have to know of a datagram besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MadInput {
    /// The M_Key isn't checked: the datagram comes from the node's own host.
    pub ignore_mkey: bool,
    /// LID that the datagram came from, for traps.
    pub slid: u16,
}

/// Entries of a table block that a Set changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockChange {
    /// Number of the block.
    pub block: u16,
    /// Bit n stands for entry n of the block.
    pub entries: u32,
}

/// What the owner has to do with the link after a Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRequest {
    /// Both ends go down, then train again. The port itself has done so already if its link was up.
    Retrain,
    /// The port is disabled: the far end goes down, and the link stays down.
    Stop,
}

/// What a datagram changed, so that the owner can raise events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortChanges {
    /// The port that changed; the receiving port if nothing did.
    pub port: u8,
    /// LID or LMC.
    pub lid: bool,
    /// LID of the subnet manager.
    pub sm_lid: bool,
    /// Service level towards the subnet manager.
    pub sm_sl: bool,
    /// GID prefix.
    pub gid_prefix: bool,
    /// Clients are asked to register again.
    pub client_reregister: bool,
    /// P_Key table.
    pub p_keys: Option<BlockChange>,
    /// GUID table.
    pub guids: Option<BlockChange>,
    /// SLtoVLMappingTable.
    pub sl_to_vl: bool,
    /// The port's state became active.
    pub became_active: bool,
    /// The port's state was active and isn't any more.
    pub left_active: bool,
    /// The link has to be worked.
    pub link: Option<LinkRequest>,
    /// A trap to be sent from the receiving port with [`trap::trap`].
    pub trap: Option<Notice>,
    /// The subnet manager has the trap with this transaction id; it needn't be repeated.
    pub trap_repressed: Option<u64>,
}

/// The agents' answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MadReply {
    /// The response, if the datagram gets one. The D bit of a directed-route response is clear, as in what
    /// ConnectX firmware returns (Linux takes a non-zero status word for an error, then sets the bit): who
    /// puts the response on the wire sets it, with [`Smp::set_returning`]. Hop pointer and paths are as they
    /// came.
    pub reply: Option<[u8; 256]>,
    /// What changed.
    pub changes: PortChanges,
}

/// What a change of the link did to a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkEffect {
    /// The port's state changed. A switch has set its PortStateChange, and shall send trap 128.
    pub changed: bool,
    /// The port's state was active and isn't any more.
    pub left_active: bool,
}

/// A node.
#[derive(Debug)]
pub struct NodeState {
    node_type: NodeType,
    system_image_guid: u64,
    node_guid: u64,
    device_id: u16,
    revision: u32,
    vendor_id: u32,
    description: Mutex<NodeDescription>,
    ports: Box<[PortState]>,
    switch: Option<SwitchState>,
}

/// Text as a node description.
pub fn node_description(text: &str) -> NodeDescription {
    let mut description = [0; 64];
    let len = text.len().min(description.len());
    description[..len].copy_from_slice(&text.as_bytes()[..len]);
    description
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeState {
    /// Makes a node with the tables and port settings that it has after power-on, all links down.
    pub fn new(config: &NodeConfig) -> Result<Self, NodeError> {
        if config.vendor_id >> 24 != 0 {
            return Err(NodeError::VendorId(config.vendor_id));
        }
        let (node_type, ports, switch) = match &config.kind {
            NodeKind::ChannelAdapter { port_guids } => {
                let ports =
                    port_guids.iter().map(|&guid| PortState::channel_adapter(guid)).collect::<Vec<_>>();
                check_ports(ports.len())?;
                (NodeType::CHANNEL_ADAPTER, ports, None)
            }
            NodeKind::Switch(kind) => {
                check_ports(usize::from(kind.external_ports))?;
                let mut ports = vec![PortState::switch_management(config.node_guid, kind.enhanced_port0)];
                ports.resize_with(usize::from(kind.external_ports) + 1, || {
                    PortState::switch_external(kind.partition_enforcement_cap)
                });
                (NodeType::SWITCH, ports, Some(SwitchState::new(kind)?))
            }
        };
        let zero_port_guid = ports.iter().any(|port| port.guid(0) == Some(0));
        if config.node_guid == 0 || zero_port_guid {
            return Err(NodeError::ZeroGuid);
        }
        Ok(Self {
            node_type,
            system_image_guid: config.system_image_guid,
            node_guid: config.node_guid,
            device_id: config.device_id,
            revision: config.revision,
            vendor_id: config.vendor_id,
            description: Mutex::new(node_description(&config.description)),
            ports: ports.into_boxed_slice(),
            switch,
        })
    }

    /// Node type.
    pub fn node_type(&self) -> NodeType {
        self.node_type
    }

    /// GUID of the system that the node is part of.
    pub fn system_image_guid(&self) -> u64 {
        self.system_image_guid
    }

    /// GUID of the node.
    pub fn node_guid(&self) -> u64 {
        self.node_guid
    }

    /// The port with a number: from 1 on a channel adapter, from 0 on a switch.
    pub fn port(&self, number: u8) -> Option<&PortState> {
        let index = usize::from(number);
        self.ports.get(if self.switch.is_some() { index } else { index.checked_sub(1)? })
    }

    /// Physical ports; a switch doesn't count its port 0.
    pub fn num_ports(&self) -> u8 {
        let count = self.ports.len() - usize::from(self.switch.is_some());
        u8::try_from(count).unwrap_or(MAX_PORT)
    }

    /// The switch's forwarding tables.
    pub fn switch(&self) -> Option<&SwitchState> {
        self.switch.as_ref()
    }

    /// Node description.
    pub fn description(&self) -> NodeDescription {
        *lock(&self.description)
    }

    /// Changes the node description. If the text is another than before, each active port shall send trap
    /// 144, from [`local_changes`](Self::local_changes).
    pub fn set_description(&self, description: &NodeDescription) -> bool {
        let mut current = lock(&self.description);
        let changed = *current != *description;
        *current = *description;
        changed
    }

    /// The far end of a port's cable is there, and trains: the port gets a link, in state INIT. Nothing
    /// happens if it has one, or if it is disabled.
    pub fn link_up(&self, port: u8) -> LinkEffect {
        self.link_changed(port, PortState::link_up)
    }

    /// The far end of a port's cable went away.
    pub fn link_down(&self, port: u8) -> LinkEffect {
        self.link_changed(port, PortState::link_down)
    }

    fn link_changed(&self, number: u8, change: impl Fn(&PortState) -> LinkEffect) -> LinkEffect {
        let Some(port) = self.port(number) else { return LinkEffect::default() };
        let effect = change(port);
        if let Some(switch) = &self.switch
            && effect.changed
            && port.kind() == PortKind::SwitchExternal
        {
            switch.port_state_changed();
        }
        effect
    }

    /// Everything as it was after power-on: addresses, keys, tables, counters; all links down.
    pub fn reset(&self) {
        for port in &self.ports {
            port.reset();
        }
        if let Some(switch) = &self.switch {
            switch.reset();
        }
    }

    /// Answers a management datagram that arrived at a port, or that the host handed over on its behalf.
    /// Nothing in the datagram can do worse than earn an error status.
    pub fn process_mad(&self, port: u8, mad: &[u8; 256], input: &MadInput) -> MadReply {
        self.process_mad_at(port, mad, input, Instant::now())
    }

    fn process_mad_at(&self, port: u8, mad: &[u8; 256], input: &MadInput, now: Instant) -> MadReply {
        let mut changes = PortChanges { port, ..Default::default() };
        let Some(receiver) = self.port(port) else { return MadReply { reply: None, changes } };
        let Ok((header, _)) = MadHeader::read_from_prefix(mad) else {
            return MadReply { reply: None, changes };
        };
        let never_answered = [Method::TRAP, Method::REPORT];
        if header.method.is_response() || never_answered.contains(&header.method) {
            return MadReply { reply: None, changes };
        }
        let reply = match header.mgmt_class {
            MgmtClass::SUBN_LID_ROUTED | MgmtClass::SUBN_DIRECTED_ROUTE => {
                let request = sma::Request { port, receiver, input, now };
                self.process_smp(&request, Smp::from_mad(mad), &mut changes)
            }
            MgmtClass::PERF_MGT => Some(self.process_perf(port, mad)),
            _ if [Method::GET, Method::SET].contains(&header.method) => {
                Some(refuse(mad, Status::BAD_VERSION))
            }
            _ => None,
        };
        MadReply { reply, changes }
    }
}

fn check_ports(count: usize) -> Result<(), NodeError> {
    if (1..=usize::from(MAX_PORT)).contains(&count) { Ok(()) } else { Err(NodeError::Ports(count)) }
}

/// The datagram as a response with an error status.
fn refuse(mad: &[u8; 256], status: Status) -> [u8; 256] {
    let mut smp = Smp::from_mad(mad);
    smp.header.method = Method::GET_RESP;
    smp.header.status.set(status.0);
    smp.to_mad()
}

#[cfg(test)]
mod tests {
    use super::testing::{CA_GUID, active_ca, ca, switch};
    use super::*;

    #[test]
    fn impossible_nodes_are_refused() {
        let make = |change: &dyn Fn(&mut NodeConfig)| {
            let mut config = NodeConfig::connectx3(CA_GUID, 1, "");
            change(&mut config);
            NodeState::new(&config).err()
        };
        let ports = |port_guids: Vec<u64>| NodeKind::ChannelAdapter { port_guids };
        assert_eq!(make(&|config| config.kind = ports(vec![])), Some(NodeError::Ports(0)));
        assert_eq!(make(&|config| config.kind = ports(vec![1; 255])), Some(NodeError::Ports(255)));
        assert_eq!(make(&|config| config.kind = ports(vec![0])), Some(NodeError::ZeroGuid));
        assert_eq!(make(&|config| config.node_guid = 0), Some(NodeError::ZeroGuid));
        assert_eq!(make(&|config| config.vendor_id = 1 << 24), Some(NodeError::VendorId(1 << 24)));
        assert_eq!(make(&|_| {}), None);
    }

    #[test]
    fn link_down_takes_an_active_port_down_and_counts() {
        let node = active_ca();
        assert_eq!(node.link_down(1), LinkEffect { changed: true, left_active: true });
        assert_eq!(node.link_down(1), LinkEffect::default());
        let port = node.port(1).expect("port");
        assert_eq!(port.counters.get(counters::View::Classic, counters::Counter::LinkDowned), 1);
        assert_eq!((port.lid(), port.is_active()), (7, false));
        assert_eq!(node.link_down(9), LinkEffect::default());
    }

    #[test]
    fn reset_forgets_what_management_set() {
        let node = active_ca();
        node.port(1).expect("port").counters.sent(1, 1, false);
        node.reset();
        let port = node.port(1).expect("port");
        assert_eq!((port.lid(), port.sm_lid(), port.is_active()), (0, 0, false));
        assert_eq!(port.counters.get(counters::View::Extended, counters::Counter::XmitPkts), 0);
        assert_eq!(port.guid(0), Some(CA_GUID + 1));
    }

    #[test]
    fn description_is_cut_to_its_field_and_changes_are_told() {
        let node = ca();
        let long = node_description(&"x".repeat(80));
        assert_eq!(long, [b'x'; 64]);
        assert!(node.set_description(&long));
        assert!(!node.set_description(&long));
        assert_eq!(node.description(), long);
    }

    #[test]
    fn capability_mask_change_is_told_once() {
        let node = ca();
        let port = node.port(1).expect("port");
        assert!(port.set_capability_mask(0x0251_486a));
        assert!(!port.set_capability_mask(0x0251_486a));
        assert_eq!(port.capability_mask(), 0x0251_486a);
    }

    #[test]
    fn ports_are_numbered_from_one_or_zero() {
        assert!(ca().port(0).is_none() && ca().port(2).is_some() && ca().port(3).is_none());
        assert!(switch().port(0).is_some() && switch().port(36).is_some() && switch().port(37).is_none());
        assert_eq!((ca().num_ports(), switch().num_ports()), (2, 36));
    }
}
