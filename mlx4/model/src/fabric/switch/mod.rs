//! The switch: forwards packets between its ports, and is a managed node itself.
//!
//! Packets cross it on their sender's thread and without a lock. What arrives for port 0 goes to the
//! switch's own agents (see [`management`]), or to the subnet manager that sits there.
//!
//! Does not: model lanes, credits or time; packets are neither delayed nor reordered.

mod cable;
mod forward;
mod management;
mod smi;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use mlx4_wire::U32;
use mlx4_wire::mad::portinfo::CapabilityMask;

use super::Endpoint;
use super::datagram::Datagram;
use crate::node::{LinkEffect, LinkRequest, NodeConfig, NodeError, NodeState};
use cable::{Cable, Event};

/// A switch.
pub(super) struct Switch {
    node: NodeState,
    /// Of external port n at index n - 1.
    cables: Box<[Cable]>,
    /// The subnet manager at port 0.
    manager: OnceLock<Arc<dyn Endpoint>>,
    traps: AtomicU64,
}

impl Switch {
    /// A switch with nothing plugged in.
    pub(super) fn new(config: &NodeConfig) -> Result<Self, NodeError> {
        let node = NodeState::new(config)?;
        let cables = (0..node.num_ports()).map(|_| Cable::default()).collect();
        Ok(Self { node, cables, manager: OnceLock::new(), traps: AtomicU64::new(0) })
    }

    /// What management sees of the switch.
    pub(super) fn node(&self) -> &NodeState {
        &self.node
    }

    /// Puts a subnet manager at port 0; there can be one.
    pub(super) fn set_manager(&self, endpoint: Arc<dyn Endpoint>) {
        if self.manager.set(endpoint).is_ok()
            && let Some(port) = self.node.port(0)
        {
            let mask = CapabilityMask::from_bits(U32::new(port.capability_mask())).with_is_sm(true);
            port.set_capability_mask(mask.into_bits().get());
        }
    }

    /// Sends from port 0.
    pub(super) fn send_from_manager(&self, datagram: &Datagram) {
        datagram.with_packet(|packet| self.receive(0, packet));
    }

    /// Plugs an endpoint into the lowest free port.
    pub(super) fn plug(&self, endpoint: &Arc<dyn Endpoint>) -> Option<u8> {
        (1..=self.node.num_ports()).find(|port| self.plug_at(*port, endpoint))
    }

    /// Plugs an endpoint into a port, if that is there and free.
    pub(super) fn plug_at(&self, port: u8, endpoint: &Arc<dyn Endpoint>) -> bool {
        self.cable(port).is_some_and(|cable| cable.plug(endpoint.clone()))
    }

    /// Takes the endpoint out of a port.
    pub(super) fn unplug(&self, port: u8) {
        let Some(cable) = self.cable(port) else { return };
        if cable.unplug(|up| self.follow(port, up)) {
            self.announce_link_change();
        }
    }

    /// The port of the endpoint at `port` is polling, or not any more.
    pub(super) fn set_polling(&self, port: u8, polling: bool) {
        self.work_link(port, Event::Polling(polling));
    }

    /// Pulls the cable out of an external port, or puts it back. False if there is no such port.
    pub(super) fn set_cable(&self, port: u8, plugged: bool) -> bool {
        self.work_link(port, Event::Pulled(!plugged));
        self.cable(port).is_some()
    }

    fn cable(&self, port: u8) -> Option<&Cable> {
        self.cables.get(usize::from(port).checked_sub(1)?)
    }

    /// Does to the link of a port what a Set of its PortInfo asked for.
    fn obey(&self, port: u8, request: LinkRequest) {
        match request {
            LinkRequest::Stop => self.work_link(port, Event::Disabled(true)),
            LinkRequest::Retrain => {
                self.work_link(port, Event::Disabled(false));
                self.work_link(port, Event::Reset);
            }
        }
    }

    fn work_link(&self, port: u8, event: Event) {
        let Some(cable) = self.cable(port) else { return };
        if cable.apply(event, |up| self.follow(port, up)) {
            self.announce_link_change();
        }
    }

    /// The switch's side of a link goes with it.
    fn follow(&self, port: u8, up: bool) {
        let effect: LinkEffect = if up { self.node.link_up(port) } else { self.node.link_down(port) };
        log::debug!("switch port {port}: link {}: {effect:?}", if up { "up" } else { "down" });
    }
}
