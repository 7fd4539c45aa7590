//! The fabric: one switch, the packets that cross it, and its built-in subnet manager.
//!
//! An endpoint is plugged into a port of the switch, and gets a link as soon as its port is polling. The
//! subnet manager then takes the link from INIT to ACTIVE, by MADs alone, which the endpoint has to answer.
//!
//! - [`packet`]: what crosses the switch
//! - [`sm`]: the subnet manager and administrator
//!
//! Does not: inject faults, span several switches.

mod datagram;
pub mod packet;
mod plug;
mod sa;
pub mod sm;
mod switch;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::hca::Hca;
use crate::node::switch::SwitchConfig;
use crate::node::{NodeConfig, NodeError, NodeKind};
use packet::Packet;
pub use plug::Plug;
use sm::{SmConfig, SubnetManager};
use switch::Switch;

/// What hangs at the far end of a cable: an HCA's port, or a node without an HCA.
pub trait Endpoint: Send + Sync {
    /// A packet arrives. Runs on the sender's thread; must not block, and must not hold a lock of its own
    /// while it sends.
    fn receive(&self, packet: &Packet<'_>);

    /// The state of the cable changed: whether the far port has a link now.
    fn link_changed(&self, up: bool);

    /// The HCA and its port number (from 1), for transports that reach the far queue pair directly.
    fn hca_port(&self) -> Option<(Arc<Hca>, u8)> {
        None
    }
}

/// Settings of a fabric.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// GUID of the switch and its port 0.
    pub switch_guid: u64,
    /// External ports of the switch, 1 to 254.
    pub ports: u8,
    /// Node description of the switch.
    pub description: String,
    /// Entries of the P_Key table by which each external port can drop packets; 0 for a switch that can't.
    /// The built-in subnet manager turns it on where it can.
    pub partition_enforcement_cap: u16,
    /// How long a link trains before it is up, once both ends are polling. Real ones take about a second,
    /// and drivers count on some time between INIT_PORT and the first packet: Linux registers its agents
    /// after it, and complains of an SMP that comes before.
    pub training: Duration,
    /// The built-in subnet manager; without it every port stays in INIT until another one comes.
    pub subnet_manager: Option<SmConfig>,
}

impl Default for FabricConfig {
    fn default() -> Self {
        Self {
            switch_guid: 0x0002_c903_00f0_0000,
            ports: 36,
            description: "paraverbs model switch".into(),
            partition_enforcement_cap: 0,
            training: Duration::ZERO,
            subnet_manager: Some(SmConfig::default()),
        }
    }
}

impl FabricConfig {
    fn node(&self) -> NodeConfig {
        let kind = NodeKind::Switch(SwitchConfig {
            external_ports: self.ports,
            partition_enforcement_cap: self.partition_enforcement_cap,
            ..SwitchConfig::default()
        });
        NodeConfig { kind, ..NodeConfig::switch(self.switch_guid, self.ports, &self.description) }
    }
}

/// Why a fabric can't do something.
#[derive(Debug, Error)]
pub enum FabricError {
    /// The settings don't make a switch.
    #[error("invalid switch settings")]
    Switch(#[source] NodeError),
    /// The thread of the subnet manager doesn't start.
    #[error("failed to start the subnet manager's thread")]
    Thread(#[source] io::Error),
    /// All ports of the switch are taken.
    #[error("no free port among the {0} of the switch")]
    NoFreePort(u8),
    /// The port isn't there, or is taken.
    #[error("port {0} of the switch doesn't exist or is taken")]
    PortTaken(u8),
    /// The switch hasn't this port.
    #[error("the switch has no external port {0}, only 1 to {1}")]
    NoSuchPort(u8, u8),
}

/// A switch with its subnet manager. The manager stops when the fabric is dropped; the switch lives on as
/// long as something is plugged in.
pub struct Fabric {
    switch: Arc<Switch>,
    training: Duration,
    _manager: Option<SubnetManager>,
}

impl Fabric {
    /// Makes a fabric with nothing plugged in, and starts its subnet manager.
    pub fn new(config: FabricConfig) -> Result<Arc<Self>, FabricError> {
        let switch = Arc::new(Switch::new(&config.node()).map_err(FabricError::Switch)?);
        let connect = |endpoint| {
            switch.set_manager(endpoint);
            let switch = switch.clone();
            move |datagram: &datagram::Datagram| switch.send_from_manager(datagram)
        };
        let start = |config| SubnetManager::start(config, connect).map_err(FabricError::Thread);
        let manager = config.subnet_manager.map(start).transpose()?;
        Ok(Arc::new(Self { switch, training: config.training, _manager: manager }))
    }

    /// Plugs an endpoint into the lowest free port of the switch. There is no link before
    /// [`Plug::set_link`]. The fabric keeps the endpoint until its [`Plug`] is dropped, so an endpoint must
    /// not own its plug.
    pub fn plug(&self, endpoint: Arc<dyn Endpoint>) -> Result<Plug, FabricError> {
        let port = self.switch.plug(&endpoint);
        let port = port.ok_or_else(|| FabricError::NoFreePort(self.switch.node().num_ports()))?;
        Ok(Plug::new(self.switch.clone(), port, self.training))
    }

    /// Plugs an endpoint into a certain port of the switch, from 1.
    pub fn plug_at(&self, port: u8, endpoint: Arc<dyn Endpoint>) -> Result<Plug, FabricError> {
        if !self.switch.plug_at(port, &endpoint) {
            return Err(FabricError::PortTaken(port));
        }
        Ok(Plug::new(self.switch.clone(), port, self.training))
    }

    /// Pulls the cable out of a port of the switch (from 1), or puts it back, as a person would: both ends lose
    /// their link, or get it at once if the far port is polling. The endpoint keeps its place.
    pub fn set_cable(&self, port: u8, plugged: bool) -> Result<(), FabricError> {
        let known = self.switch.set_cable(port, plugged);
        known.then_some(()).ok_or_else(|| FabricError::NoSuchPort(port, self.switch.node().num_ports()))
    }
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fabric").field("switch", self.switch.node()).finish_non_exhaustive()
    }
}
