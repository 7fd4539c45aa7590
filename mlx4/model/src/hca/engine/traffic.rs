//! What the ports count: packets, and their length from LRH through ICRC in 4-byte words. Loopback inside
//! the HCA isn't counted.

use crate::fabric::packet::Packet;
use crate::node::port::PortState;

const LRH: u64 = 2;
const GRH: u64 = 10;
const BTH: u64 = 3;
const ICRC: u64 = 1;

/// Counts a datagram that a port sends.
pub(super) fn sent_datagram(port: &PortState, packet: &Packet<'_>) {
    port.counters.sent(packet.words(), 1, packet.headers.is_multicast());
}

/// Counts a datagram that a port receives.
pub(super) fn received_datagram(port: &PortState, packet: &Packet<'_>) {
    port.counters.received(packet.words(), 1, packet.headers.is_multicast());
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
    /// Length of all packets in words.
    pub(super) fn words(&self) -> u64 {
        let each = LRH + if self.grh { GRH } else { 0 } + BTH + ICRC;
        self.packets * each + self.extended + self.payload.div_ceil(4)
    }

    /// Counts the packets at the port that sends them and the one that receives them.
    pub(super) fn count(&self, from: &PortState, to: &PortState) {
        let words = self.words();
        from.counters.sent(words, self.packets, false);
        to.counters.received(words, self.packets, false);
    }
}
