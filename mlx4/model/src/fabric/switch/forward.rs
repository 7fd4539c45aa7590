//! The data path: where a packet leaves the switch (IBTA vol. 1, 18.2). No locks.

use std::sync::Arc;

use mlx4_wire::mad::LID_PERMISSIVE;
use mlx4_wire::mad::portinfo::{PhysState, PortState as State};

use super::Switch;
use crate::fabric::Endpoint;
use crate::fabric::packet::{Packet, is_multicast};
use crate::node::counters::Counter;
use crate::node::port::PortState;

impl Switch {
    /// A packet arrives at a port. From port 0 come those of the switch's agents and manager.
    pub(in crate::fabric) fn receive(&self, ingress: u8, packet: &Packet<'_>) {
        let Some(port) = self.node.port(ingress) else { return };
        if ingress != 0 && port.phys_state() != PhysState::LINK_UP {
            return;
        }
        let multicast = packet.headers.is_multicast();
        port.counters.received(packet.words(), 1, multicast);
        if packet.headers.vl15 {
            self.receive_smp(ingress, packet);
        } else if ingress == 0 || may_send(port.state()) {
            let enforced = port.partition_enforcement().0 && port.find_pkey(packet.headers.pkey).is_none();
            if enforced {
                port.counters.add(Counter::RcvConstraint, 1);
            } else if multicast {
                self.forward_multicast(ingress, packet);
            } else {
                self.forward_unicast(port, packet);
            }
        }
    }

    /// Where a connected transport finds the far end of a path; the same rules as for packets.
    pub(in crate::fabric) fn route(&self, ingress: u8, dlid: u16) -> Option<(u8, Arc<dyn Endpoint>)> {
        let from = self.node.port(ingress)?;
        if from.phys_state() != PhysState::LINK_UP || !may_send(from.state()) || is_multicast(dlid) {
            return None;
        }
        let egress = self.node.switch()?.unicast_port(dlid)?;
        let to = self.node.port(egress)?;
        if egress == 0 || !to.is_active() {
            return None;
        }
        let far = self.cable(egress)?.far();
        Some((egress, far.as_deref()?.clone()))
    }

    /// Counts packets that took such a route, at both ports.
    pub(in crate::fabric) fn count_direct(&self, ingress: u8, dlid: u16, words: u64, packets: u64) {
        let egress = self.node.switch().and_then(|switch| switch.unicast_port(dlid));
        let Some(to) = egress.and_then(|egress| self.node.port(egress)) else { return };
        if let Some(from) = self.node.port(ingress) {
            from.counters.received(words, packets, false);
            to.counters.sent(words, packets, false);
        }
    }

    fn forward_unicast(&self, from: &PortState, packet: &Packet<'_>) {
        match self.unicast_port(packet.headers.dlid) {
            Some(0) => self.receive_gmp(packet),
            Some(egress) => self.emit(egress, packet),
            None => from.counters.add(Counter::RcvSwitchRelay, 1),
        }
    }

    fn forward_multicast(&self, ingress: u8, packet: &Packet<'_>) {
        let Some(switch) = self.node.switch() else { return };
        for egress in switch.multicast_ports(packet.headers.dlid, ingress) {
            if egress == 0 {
                self.receive_gmp(packet);
            } else if egress != ingress {
                self.emit(egress, packet);
            }
        }
    }

    /// The port that a unicast LID leads to; 0 for the switch itself.
    pub(super) fn unicast_port(&self, dlid: u16) -> Option<u8> {
        let own = dlid == LID_PERMISSIVE || self.node.port(0).is_some_and(|port| port.has_lid(dlid));
        if own { Some(0) } else { self.node.switch()?.unicast_port(dlid) }
    }

    /// Sends a packet out of an external port: management whenever there is a link, data if it is ACTIVE.
    pub(super) fn emit(&self, egress: u8, packet: &Packet<'_>) {
        let Some(port) = self.node.port(egress) else { return };
        let vl15 = packet.headers.vl15;
        let passes = if vl15 { port.phys_state() == PhysState::LINK_UP } else { port.is_active() };
        if !passes {
            port.counters.add(if vl15 { Counter::Vl15Dropped } else { Counter::XmitDiscards }, 1);
            return;
        }
        if !vl15 && port.partition_enforcement().1 && port.find_pkey(packet.headers.pkey).is_none() {
            port.counters.add(Counter::XmitConstraint, 1);
            return;
        }
        let Some(far) = self.cable(egress).and_then(|cable| cable.far().as_deref().cloned()) else { return };
        port.counters.sent(packet.words(), 1, packet.headers.is_multicast());
        far.receive(packet);
    }
}

/// Whether data may enter the switch at a port. The far end of an armed port may be active already.
fn may_send(state: State) -> bool {
    matches!(state, State::ARMED | State::ACTIVE)
}
