//! A channel adapter of one port that answers SMPs with the model's own agents, and keeps what else it
//! receives.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use mlx4_wire::mad::attr::NodeInfo;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass};
use mlx4_wire::mad::portinfo::PortState;
use mlx4_wire::mad::sa::{SaAttribute, SaMad};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::mad::{DEFAULT_PKEY, QP1_QKEY};
use mlx4_wire::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::Lab;
use crate::fabric::Endpoint;
use crate::fabric::datagram::Datagram;
use crate::fabric::packet::{Headers, Packet};
use crate::fabric::plug::Plug;
use crate::node::{LinkRequest, MadInput, NodeConfig, NodeState};

/// The adapter's only port.
const PORT: u8 = 1;

pub(super) struct Adapter {
    pub(super) node: NodeState,
    plug: Mutex<Option<Arc<Plug>>>,
    silent: AtomicBool,
    spoil: Mutex<Option<fn(&mut NodeInfo)>>,
    eager: AtomicBool,
    received: Mutex<VecDeque<Datagram>>,
}

impl Adapter {
    /// An adapter whose port GUID is one above its node GUID.
    pub(super) fn new(node_guid: u64) -> Self {
        Self {
            node: NodeState::new(&NodeConfig::connectx3(node_guid, PORT, "lab adapter")).unwrap(),
            plug: Mutex::default(),
            silent: AtomicBool::new(false),
            spoil: Mutex::default(),
            eager: AtomicBool::new(false),
            received: Mutex::default(),
        }
    }

    /// Takes the plug, and lets the port poll.
    pub(super) fn connect(&self, plug: Plug) {
        let plug = Arc::new(plug);
        *self.plug.lock().unwrap() = Some(plug.clone());
        plug.set_link(true);
    }

    /// Pulls the plug.
    pub(super) fn disconnect(&self) {
        let plug = self.plug.lock().unwrap().take();
        drop(plug);
        self.node.link_down(PORT);
    }

    pub(super) fn plug(&self) -> Arc<Plug> {
        self.plug.lock().unwrap().clone().unwrap()
    }

    /// Answers no SMP from here on, or does so again.
    pub(super) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Relaxed);
    }

    /// Asks the administrator as soon as the port is ACTIVE, before the manager hears that it is.
    pub(super) fn set_eager(&self) {
        self.eager.store(true, Relaxed);
    }

    /// Changes NodeInfo in all answers.
    pub(super) fn spoil_node_info(&self, spoil: fn(&mut NodeInfo)) {
        *self.spoil.lock().unwrap() = Some(spoil);
    }

    pub(super) fn lid(&self) -> u16 {
        self.node.port(PORT).unwrap().lid()
    }

    pub(super) fn state(&self) -> PortState {
        self.node.port(PORT).unwrap().state()
    }

    pub(super) fn gid(&self) -> [u8; 16] {
        self.node.port(PORT).unwrap().gid(0).unwrap()
    }

    pub(super) fn send(&self, datagram: &Datagram) {
        let plug = self.plug();
        datagram.with_packet(|packet| plug.send(packet));
    }

    /// Takes what arrived, except for SMPs that were answered.
    pub(super) fn received(&self) -> Vec<Datagram> {
        self.received.lock().unwrap().drain(..).collect()
    }

    /// Headers of a packet from QP1 to QP1 of a LID.
    pub(super) fn gmp_headers(&self, dlid: u16) -> Headers {
        Headers {
            slid: self.lid(),
            dlid,
            src_qp: 1,
            dest_qp: 1,
            qkey: QP1_QKEY,
            pkey: DEFAULT_PKEY,
            ..Headers::default()
        }
    }

    /// A request to the administrator, as it goes to the wire.
    pub(super) fn request<R: IntoBytes + Immutable>(
        &self,
        method: Method,
        attribute: SaAttribute,
        mask: u64,
        record: &R,
    ) -> Datagram {
        let mut mad = SaMad::new_zeroed();
        mad.header = MadHeader {
            base_version: MadHeader::BASE_VERSION,
            mgmt_class: MgmtClass::SUBN_ADM,
            class_version: SaMad::CLASS_VERSION,
            method,
            transaction_id: U64::new(0x77_0000_0001),
            attribute_id: U16::new(attribute.0),
            attribute_modifier: U32::new(0),
            ..MadHeader::new_zeroed()
        };
        mad.component_mask = U64::new(mask);
        mad.data[..size_of::<R>()].copy_from_slice(record.as_bytes());
        let sm_lid = self.node.port(PORT).unwrap().sm_lid();
        Datagram { headers: self.gmp_headers(sm_lid), mad: mad.to_mad() }
    }

    /// Asks the administrator; its answers, each a packet.
    pub(super) fn ask<R: IntoBytes + Immutable>(
        &self,
        lab: &mut Lab,
        method: Method,
        attribute: SaAttribute,
        mask: u64,
        record: &R,
    ) -> Vec<SaMad> {
        self.send(&self.request(method, attribute, mask, record));
        lab.settle();
        self.received().iter().map(|datagram| SaMad::from_mad(&datagram.mad)).collect()
    }

    fn answer_smp(&self, datagram: &Datagram) {
        let mut smp = Smp::from_mad(&datagram.mad);
        let directed = smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE;
        if directed {
            if smp.hop_pointer() != smp.hop_count() {
                return;
            }
            smp.return_path[usize::from(smp.hop_pointer())] = PORT;
            smp.set_hop_pointer(smp.hop_pointer() + 1);
        }
        let input = MadInput { slid: datagram.headers.slid, ..MadInput::default() };
        let done = self.node.process_mad(PORT, &smp.to_mad(), &input);
        if done.changes.became_active && self.eager.load(Relaxed) {
            self.send(&self.request(Method::GET, SaAttribute::CLASS_PORT_INFO, 0, &[0u8; 64]));
        }
        if let Some(mad) = done.reply {
            let mut reply = Smp::from_mad(&mad);
            if let Some(spoil) = *self.spoil.lock().unwrap()
                && reply.attribute_id() == SmpAttribute::NODE_INFO
            {
                let mut info = reply.attribute();
                spoil(&mut info);
                reply.set_attribute(&info);
            }
            if directed {
                reply.set_returning(true);
                reply.set_hop_pointer(reply.hop_pointer() - 1);
            }
            self.send(&datagram.answer(self.lid(), reply.to_mad()));
        }
        match done.changes.link {
            Some(LinkRequest::Retrain) => {
                self.plug().set_link(false);
                self.plug().set_link(true);
            }
            Some(LinkRequest::Stop) => self.plug().set_link(false),
            None => (),
        }
    }
}

impl Endpoint for Adapter {
    fn receive(&self, packet: &Packet<'_>) {
        let Some(datagram) = Datagram::read(packet) else { return };
        let Ok((header, _)) = MadHeader::read_from_prefix(&datagram.mad) else { return };
        if !packet.headers.vl15 || header.method.is_response() {
            self.received.lock().unwrap().push_back(datagram);
        } else if !self.silent.load(Relaxed) {
            self.answer_smp(&datagram);
        }
    }

    fn link_changed(&self, up: bool) {
        if up {
            self.node.link_up(PORT);
        } else {
            self.node.link_down(PORT);
        }
    }
}
