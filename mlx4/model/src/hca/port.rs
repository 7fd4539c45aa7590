//! The HCA's ports: cables, what subnet management changes, and the events that the driver hears of.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use mlx4_wire::eqe::{
    Eqe, EventType, PortChangeEvent, PortChangeSubtype, PortInfoChange, PortInfoEvent, PortManagementSubtype,
    SlToVlEvent, TableChangeEvent,
};
use mlx4_wire::mad::DEFAULT_PKEY;
use mlx4_wire::mad::notice::{BadKeyDetails, Notice, Trap};
use mlx4_wire::{U16, U32, U64};
use zerocopy::FromZeros;

use super::{Hca, engine};
use crate::fabric::Endpoint;
use crate::fabric::packet::{Headers, Packet};
use crate::mem::VolatileSlice;
use crate::node::port::PortState;
use crate::node::{BlockChange, LinkRequest, PortChanges, trap};

/// A port as the fabric sees it. It doesn't keep the HCA alive.
pub(super) struct PortEndpoint {
    hca: Weak<Hca>,
    number: u8,
}

impl PortEndpoint {
    pub(super) fn new(hca: &Arc<Hca>, number: u8) -> Self {
        Self { hca: Arc::downgrade(hca), number }
    }
}

impl Endpoint for PortEndpoint {
    fn receive(&self, packet: &Packet<'_>) {
        if let Some(hca) = self.hca.upgrade() {
            engine::receive_datagram(&hca, self.number, packet);
        }
    }

    fn link_changed(&self, up: bool) {
        let Some(hca) = self.hca.upgrade() else { return };
        let effect = if up { hca.node.link_up(self.number) } else { hca.node.link_down(self.number) };
        log::debug!(
            "port {} of HCA {:#018x}: link {}",
            self.number,
            hca.node_guid(),
            if up { "up" } else { "down" }
        );
        if effect.left_active {
            hca.raise(port_change(self.number, PortChangeSubtype::DOWN));
        }
    }

    fn hca_port(&self) -> Option<(Arc<Hca>, u8)> {
        Some((self.hca.upgrade()?, self.number))
    }
}

impl Hca {
    /// Raises an asynchronous event, if the HCA runs.
    pub(super) fn raise(&self, event: Eqe) {
        if let Some((burst, running)) = self.enter() {
            running.raise(&burst, event);
        }
    }

    /// Tells the driver, the fabric and the subnet manager what a management datagram or a command changed.
    pub(super) fn port_changed(&self, changes: &PortChanges) {
        let number = changes.port;
        let Some(port) = self.node.port(number) else { return };
        for event in events(number, port, changes) {
            self.raise(event);
        }
        match (changes.link, self.plug(number)) {
            (Some(LinkRequest::Retrain), Some(plug)) => {
                plug.set_link(false);
                plug.set_link(true);
            }
            (Some(LinkRequest::Stop), Some(plug)) => plug.set_link(false),
            _ => {}
        }
        if let Some(notice) = &changes.trap {
            self.send_trap(number, notice);
        }
    }

    /// Has a trap sent to the subnet manager. As on the card, the driver does the sending: the trap arrives at
    /// the port's QP0 from LID 0, and the driver forwards it. It isn't repeated.
    pub(super) fn send_trap(&self, number: u8, notice: &Notice) {
        let id = self.traps.fetch_add(1, Ordering::Relaxed);
        let smp = self.node.port(number).and_then(|port| trap::trap(port, notice, id));
        let Some(smp) = smp else { return };
        let mut mad = smp.to_mad();
        let headers = Headers { vl15: true, pkey: DEFAULT_PKEY, ..Headers::default() };
        let payload = [VolatileSlice::from(&mut mad[..])];
        engine::receive_datagram(self, number, &Packet { headers, payload: &payload });
    }
}

/// When each port last sent a trap of a bad P_Key, and one of a bad Q_Key.
#[derive(Debug, Default)]
pub(super) struct KeyTraps(Mutex<[[Option<Instant>; 2]; 2]>);

impl KeyTraps {
    /// Whether `interval` is over since the last such trap, and then notes this one.
    fn may_send(&self, port: u8, trap: Trap, interval: Duration) -> bool {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_port) = sent.get_mut(usize::from(port.saturating_sub(1))) else { return false };
        let last = &mut of_port[usize::from(trap == Trap::BAD_Q_KEY)];
        let now = Instant::now();
        let may = last.is_none_or(|last| now.duration_since(last) >= interval);
        if may {
            *last = Some(now);
        }
        may
    }
}

impl Hca {
    /// Counts a packet with a P_Key or Q_Key (by `trap`) that its queue pair doesn't take, and has the subnet
    /// manager told: of each kind once in the time that PortInfo's SubnetTimeOut names (IBTA vol. 1, 13.4.9).
    pub(super) fn bad_key(&self, number: u8, trap: Trap, details: &BadKeyDetails) {
        let Some(port) = self.node.port(number) else { return };
        if trap == Trap::BAD_Q_KEY { &port.q_key_violations } else { &port.p_key_violations }.count();
        let interval = Duration::from_nanos(4096 << port.subnet_timeout().min(31));
        if self.key_traps.may_send(number, trap, interval) {
            self.send_trap(number, &self.node.bad_key(port, trap, details));
        }
    }
}

fn events(number: u8, port: &PortState, changes: &PortChanges) -> Vec<Eqe> {
    let mut events = Vec::new();
    if let Some(event) = port_info(number, port, changes) {
        events.push(event);
    }
    if let Some(change) = changes.p_keys {
        events.push(table_change(number, PortManagementSubtype::PKEY_TABLE, change));
    }
    if let Some(change) = changes.guids {
        events.push(table_change(number, PortManagementSubtype::GUID_INFO, change));
    }
    if changes.sl_to_vl {
        let mut data = SlToVlEvent::new_zeroed();
        data.port = number;
        data.table = port.sl_to_vl_pairs();
        events.push(management(PortManagementSubtype::SL_TO_VL, data));
    }
    if changes.left_active {
        events.push(port_change(number, PortChangeSubtype::DOWN));
    }
    if changes.became_active {
        events.push(port_change(number, PortChangeSubtype::ACTIVE));
    }
    events
}

fn port_info(number: u8, port: &PortState, changes: &PortChanges) -> Option<Eqe> {
    let changed = PortInfoChange::new()
        .with_sm_lid(changes.sm_lid)
        .with_gid_prefix(changes.gid_prefix)
        .with_lid(changes.lid)
        .with_client_reregister(changes.client_reregister)
        .with_sm_sl(changes.sm_sl);
    (changed != PortInfoChange::new()).then(|| {
        let mut data = PortInfoEvent::new_zeroed();
        data.port = number;
        data.sm_lid = U16::new(port.sm_lid());
        data.lid = U16::new(port.lid());
        data.changed = changed;
        data.sm_sl = port.sm_sl();
        data.gid_prefix = U64::new(port.gid_prefix());
        management(PortManagementSubtype::PORT_INFO, data)
    })
}

fn table_change(number: u8, subtype: PortManagementSubtype, change: BlockChange) -> Eqe {
    let mut data = TableChangeEvent::new_zeroed();
    data.port = number;
    data.block = U32::new(change.block.into());
    data.entries = U32::new(change.entries);
    management(subtype, data)
}

fn management(subtype: PortManagementSubtype, data: impl Into<[u8; 24]>) -> Eqe {
    Eqe::new(EventType::PORT_MANAGEMENT_CHANGE, subtype.0, data)
}

fn port_change(number: u8, subtype: PortChangeSubtype) -> Eqe {
    Eqe::new(EventType::PORT_CHANGE, subtype.0, PortChangeEvent::new(number))
}
