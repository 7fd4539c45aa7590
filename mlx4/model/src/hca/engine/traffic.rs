//! What the ports count: packets, and their length from LRH through ICRC in 4-byte words. Loopback inside
//! the HCA isn't counted.

use crate::fabric::packet::{Headers, Packet};
use crate::node::port::PortState;

const LRH: u64 = 2;
const GRH: u64 = 10;
const BTH: u64 = 3;
const DETH: u64 = 2;
const IMMEDIATE: u64 = 1;
const ICRC: u64 = 1;

/// First LID of multicast.
const MULTICAST: u16 = mlx4_wire::mad::LID_MULTICAST_FIRST;
/// The permissive LID.
const PERMISSIVE: u16 = mlx4_wire::mad::LID_PERMISSIVE;

/// Whether a LID is a multicast LID.
pub(super) fn is_multicast(lid: u16) -> bool {
    (MULTICAST..PERMISSIVE).contains(&lid)
}

/// Length of a datagram in words.
pub(super) fn datagram_words(headers: &Headers, payload: u64) -> u64 {
    let grh = if headers.grh.is_some() { GRH } else { 0 };
    let immediate = if headers.immediate.is_some() { IMMEDIATE } else { 0 };
    LRH + grh + BTH + DETH + immediate + payload.div_ceil(4) + ICRC
}

/// Counts a datagram that a port sends.
pub(super) fn sent_datagram(port: &PortState, packet: &Packet<'_>) {
    let words = datagram_words(&packet.headers, packet.payload_len() as u64);
    port.counters.sent(words, 1, is_multicast(packet.headers.dlid));
}

/// Counts a datagram that a port receives.
pub(super) fn received_datagram(port: &PortState, packet: &Packet<'_>) {
    let words = datagram_words(&packet.headers, packet.payload_len() as u64);
    port.counters.received(words, 1, is_multicast(packet.headers.dlid));
}

/// A run of packets of a connected service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) packets: u64,
    pub(super) payload: u64,
    /// Extended headers and immediate data of all packets together, in words.
    pub(super) extended: u64,
    pub(super) grh: bool,
}

impl Run {
    /// Counts the packets at the port that sends them and the one that receives them.
    pub(super) fn count(&self, from: &PortState, to: &PortState) {
        let each = LRH + if self.grh { GRH } else { 0 } + BTH + ICRC;
        let words = self.packets * each + self.extended + self.payload.div_ceil(4);
        from.counters.sent(words, self.packets, false);
        to.counters.received(words, self.packets, false);
    }
}
