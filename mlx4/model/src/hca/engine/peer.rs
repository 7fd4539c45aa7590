//! The other end of a connected queue pair: found by the fabric's tables for each burst, and asked whether
//! it would take our packets.

use std::sync::Arc;

use mlx4_wire::ctx::path::AddressPath;
use mlx4_wire::ctx::qp::{QpState, ServiceType};

use super::datagram::own_lid;
use super::receive::ReceiveWork;
use super::responder::Responder;
use super::side::Side;
use super::traffic::Run;
use super::violations;
use crate::hca::Hca;
use crate::hca::burst::Burst;
use crate::hca::qp::{Half, Qp};
use crate::hca::running::Running;
use crate::node::port::{PortState, p_keys_match};

/// The queue pair at the other end, with the snapshots of its HCA.
pub(super) struct Peer<'s> {
    own: Side<'s>,
    /// The other HCA, unless it is our own.
    other: Option<Other>,
    pub(super) qp: Arc<Qp>,
    /// Port of its HCA at which our packets arrive.
    port: u8,
    /// The LID that our packets come from.
    slid: u16,
}

/// Another HCA, with its snapshots.
struct Other {
    hca: Arc<Hca>,
    burst: Burst,
    running: Arc<Running>,
}

impl<'s> Peer<'s> {
    /// Follows the path of a queue pair. `None` if a packet sent there reaches no queue pair.
    pub(super) fn find(side: &Side<'s>) -> Option<Self> {
        let path = &side.attrs.path;
        let port = side.port().filter(|port| port.is_active())?;
        let (lid, lmc) = port.lid_and_lmc();
        let (slid, dlid) = (own_lid(lid, lmc, u16::from(path.source.path_bits())), path.remote_lid.get());
        if loops_back(side, port) {
            let qp = side.running.packet_qp(side.attrs.port, side.attrs.remote_qpn)?;
            return Some(Self { own: *side, other: None, qp, port: side.attrs.port, slid });
        }
        let plug = side.hca.plug(side.attrs.port)?;
        let (hca, number) = plug.route(slid, dlid, path.sched_queue.sl())?.hca_port()?;
        hca.node.port(number).filter(|port| port.is_active())?;
        let (burst, running) = hca.enter()?;
        let qp = running.packet_qp(number, side.attrs.remote_qpn)?;
        let other = Some(Other { hca, burst, running });
        Some(Self { own: *side, other, qp, port: number, slid })
    }

    /// The responder at the other end, if it takes packets from our queue pair; `half` is its locked half.
    pub(super) fn responder<'a>(
        &'a self,
        own: &Side<'_>,
        half: &'a mut Half<ReceiveWork>,
    ) -> Option<Responder<'a>> {
        let Half { attrs, work } = half;
        let (hca, burst, running) = match &self.other {
            Some(other) => (&*other.hca, &other.burst, &*other.running),
            None => (self.own.hca, self.own.burst, self.own.running),
        };
        let side = Side { hca, burst, running, qp: &self.qp, attrs };
        let (from, to) = (own.port()?, hca.node.port(self.port)?);
        let xrc = own.attrs.service == ServiceType::XRC;
        let same = attrs.service == own.attrs.service
            && attrs.xrcd.is_some() == xrc
            && attrs.port == self.port
            && attrs.special.is_none();
        if !same || !is_receiving(self.qp.state()) || !self.is_from(own, from, &attrs.path, to) {
            return None;
        }
        let key = |port: &PortState, path: &AddressPath| port.pkey(usize::from(path.pkey_index & 0x7f));
        let pkey = key(from, &own.attrs.path)?;
        if !attrs.path.pkey_check.disable() && !p_keys_match(pkey, key(to, &attrs.path)?) {
            violations::connection(own, from, self.slid, pkey, hca, self.port);
            return None;
        }
        Some(Responder::new(side, work))
    }

    /// Whether packets of `own` have the addresses that the other end's path names: LID, and GIDs if there is
    /// a GRH (IBTA vol. 1, 9.6.1).
    fn is_from(&self, own: &Side<'_>, from: &PortState, theirs: &AddressPath, to: &PortState) -> bool {
        let ours = &own.attrs.path;
        let global = ours.source.grh();
        if theirs.remote_lid.get() != self.slid || theirs.source.grh() != global {
            return false;
        }
        let index = |path: &AddressPath| usize::from(path.sgid_index & 0x7f);
        !global
            || (from.gid(index(ours)) == Some(theirs.remote_gid)
                && to.find_gid(&ours.remote_gid) == Some(index(theirs)))
    }

    /// Counts packets that a queue pair sends to where there is none.
    pub(super) fn count_lost(own: &Side<'_>, there: Run) {
        if let Some(port) = own.port().filter(|port| port.is_active() && !loops_back(own, port)) {
            port.counters.sent(there.words(), there.packets, false);
        }
    }

    /// Counts packets that went there, and those that came back: at both HCAs and the switch between them.
    pub(super) fn count(&self, own: &Side<'_>, there: Run, back: Run) {
        let Some(other) = &self.other else { return };
        if let Some(plug) = own.hca.plug(own.attrs.port) {
            plug.count_direct(own.attrs.path.remote_lid.get(), there.words(), there.packets);
        }
        if let Some(plug) = other.hca.plug(self.port) {
            plug.count_direct(self.slid, back.words(), back.packets);
        }
        if let (Some(here), Some(far)) = (own.port(), other.hca.node.port(self.port)) {
            there.count(here, far);
            back.count(far, here);
        }
    }
}

/// Whether packets of a queue pair of this port stay inside the HCA.
fn loops_back(side: &Side<'_>, port: &PortState) -> bool {
    let path = &side.attrs.path;
    path.flags.force_loopback() || port.has_lid(path.remote_lid.get())
}

/// Whether a connected queue pair in this state takes packets.
pub(super) fn is_receiving(state: QpState) -> bool {
    [QpState::RTR, QpState::RTS, QpState::SQD, QpState::SQ_DRAINING, QpState::SQER].contains(&state)
}
