//! Management at the switch: SMPs on VL15, its own agents behind port 0, and the traps that it sends.

use std::sync::atomic::Ordering;

use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass};
use mlx4_wire::mad::notice::Notice;
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::mad::{LID_PERMISSIVE, QP1_QKEY};
use zerocopy::FromBytes;

use super::Switch;
use super::smi::{self, Step};
use crate::fabric::datagram::Datagram;
use crate::fabric::packet::Packet;
use crate::node::counters::Counter;
use crate::node::{MadInput, trap};

/// The queue pair of subnet management.
const QP0: u32 = 0;
/// The queue pair of all other management.
const QP1: u32 = 1;

impl Switch {
    /// An SMP arrives at a port, or comes from port 0.
    pub(super) fn receive_smp(&self, ingress: u8, packet: &Packet<'_>) {
        let datagram = Datagram::read(packet).filter(|datagram| datagram.headers.dest_qp == QP0);
        let Some(datagram) = datagram else { return };
        let smp = Smp::from_mad(&datagram.mad);
        if smp.header.base_version != MadHeader::BASE_VERSION {
            return;
        }
        let here = self.unicast_port(datagram.headers.dlid) == Some(0);
        match smp.header.mgmt_class {
            MgmtClass::SUBN_DIRECTED_ROUTE if here => {
                self.step(ingress, smp, |smp| smi::route(smp, ingress, self.node.num_ports()));
            }
            MgmtClass::SUBN_LID_ROUTED if here => self.serve_smp(ingress, &datagram),
            MgmtClass::SUBN_DIRECTED_ROUTE | MgmtClass::SUBN_LID_ROUTED => self.send_by_lid(&datagram),
            _ => (),
        }
    }

    /// A packet for QP1 of port 0.
    pub(super) fn receive_gmp(&self, packet: &Packet<'_>) {
        let Some(port) = self.node.port(0) else { return };
        if packet.headers.dest_qp != QP1 || port.find_pkey(packet.headers.pkey).is_none() {
            return;
        }
        if packet.headers.qkey != QP1_QKEY {
            port.q_key_violations.count();
            return;
        }
        let Some(datagram) = Datagram::read(packet) else { return };
        let Ok((header, _)) = MadHeader::read_from_prefix(&datagram.mad) else { return };
        if header.mgmt_class == MgmtClass::SUBN_ADM
            && let Some(manager) = self.manager.get()
        {
            manager.receive(packet);
        } else if !header.mgmt_class.is_subnet_management() {
            let reply = self.node.process_mad(0, &datagram.mad, &input(&datagram)).reply;
            if let Some(mad) = reply {
                self.send_from_manager(&datagram.answer(port.lid(), mad));
            }
        }
    }

    /// An external port's link went up or down: the subnet manager shall know.
    pub(super) fn announce_link_change(&self) {
        if let Some(port) = self.node.port(0) {
            self.send_trap(&trap::link_state_changed(port.lid()));
        }
    }

    fn send_trap(&self, notice: &Notice) {
        let Some(port) = self.node.port(0) else { return };
        let id = self.traps.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(smp) = trap::trap(port, notice, id) {
            self.route_smp(&Datagram::lid_routed(port.lid(), port.sm_lid(), smp.to_mad()));
        }
    }

    /// Takes a directed-route SMP one step.
    fn step(&self, ingress: u8, mut smp: Smp, route: impl FnOnce(&mut Smp) -> Step) {
        match route(&mut smp) {
            Step::Local => self.serve_smp(ingress, &Datagram::directed(smp.to_mad())),
            Step::Out(egress) => {
                Datagram::directed(smp.to_mad()).with_packet(|packet| self.emit(egress, packet));
            }
            Step::Lid(lid) => {
                let own = self.node.port(0).map_or(0, |port| port.lid());
                self.route_smp(&Datagram::lid_routed(own, lid, smp.to_mad()));
            }
            Step::Discard => (),
        }
    }

    /// An SMP is at its end: what belongs to a manager goes there, the switch's agent answers the rest.
    fn serve_smp(&self, ingress: u8, datagram: &Datagram) {
        let smp = Smp::from_mad(&datagram.mad);
        let for_manager = smp.header.method.is_response()
            || smp.header.method == Method::TRAP
            || smp.attribute_id() == SmpAttribute::SM_INFO;
        match self.manager.get() {
            Some(manager) if for_manager => datagram.with_packet(|packet| manager.receive(packet)),
            _ => self.process_smp(ingress, datagram),
        }
    }

    fn process_smp(&self, ingress: u8, datagram: &Datagram) {
        let done = self.node.process_mad(ingress, &datagram.mad, &input(datagram));
        if let Some(mad) = done.reply {
            self.reply(ingress, datagram, mad);
        }
        if let Some(request) = done.changes.link {
            self.obey(done.changes.port, request);
        }
        if let Some(notice) = &done.changes.trap {
            self.send_trap(notice);
        }
    }

    fn reply(&self, ingress: u8, request: &Datagram, mad: [u8; 256]) {
        let smp = Smp::from_mad(&mad);
        if smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE {
            self.step(ingress, smp, |smp| smi::answer(smp, self.node.num_ports()));
            return;
        }
        let own = self.node.port(0).map_or(0, |port| port.lid());
        let answer = request.answer(own, mad);
        if answer.headers.dlid == LID_PERMISSIVE && ingress != 0 {
            answer.with_packet(|packet| self.emit(ingress, packet));
        } else {
            self.route_smp(&answer);
        }
    }

    /// Sends an SMP from here to a LID, which may be the own one.
    fn route_smp(&self, datagram: &Datagram) {
        if self.unicast_port(datagram.headers.dlid) == Some(0) {
            self.serve_smp(0, datagram);
        } else {
            self.send_by_lid(datagram);
        }
    }

    fn send_by_lid(&self, datagram: &Datagram) {
        match self.unicast_port(datagram.headers.dlid) {
            None | Some(0) => {
                if let Some(port) = self.node.port(0) {
                    port.counters.add(Counter::Vl15Dropped, 1);
                }
            }
            Some(egress) => datagram.with_packet(|packet| self.emit(egress, packet)),
        }
    }
}

fn input(datagram: &Datagram) -> MadInput {
    MadInput { slid: datagram.headers.slid, ..MadInput::default() }
}
