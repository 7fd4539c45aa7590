//! An endpoint's end of its cable.

use std::fmt;
use std::sync::Arc;

use super::Endpoint;
use super::packet::Packet;
use super::switch::Switch;

/// A cable that is plugged into the switch; dropped, it is pulled out. The endpoint may still be handed
/// packets that were on their way then.
pub struct Plug {
    switch: Arc<Switch>,
    port: u8,
}

impl Plug {
    pub(super) fn new(switch: Arc<Switch>, port: u8) -> Self {
        Self { switch, port }
    }

    /// The switch's port, from 1.
    pub fn switch_port(&self) -> u8 {
        self.port
    }

    /// The endpoint's port is polling for a far end, or not any more. While it is there is a link, unless
    /// subnet management disabled the switch's side; [`Endpoint::link_changed`] tells, before this returns
    /// unless the link is being changed by another thread as well.
    pub fn set_link(&self, up: bool) {
        self.switch.set_polling(self.port, up);
    }

    /// Sends a packet; runs [`Endpoint::receive`] of whoever it reaches. It is dropped silently if it may
    /// not pass: without a link, without a route, or a datagram while a port on its way isn't ACTIVE.
    pub fn send(&self, packet: &Packet<'_>) {
        self.switch.receive(self.port, packet);
    }

    /// The endpoint that a packet with these addresses would reach, for transports that go there directly;
    /// to be looked up once for each burst, since ports come and go.
    pub fn route(&self, slid: u16, dlid: u16, sl: u8) -> Option<Arc<dyn Endpoint>> {
        if slid == 0 || sl > 15 {
            return None;
        }
        self.switch.route(self.port, dlid).map(|(_, far)| far)
    }

    /// Counts packets that went directly to the endpoint that [`route`](Self::route) named, at the switch's
    /// ports on their way. `words` is their length on the wire in 4-byte words.
    pub fn count_direct(&self, dlid: u16, words: u64, packets: u64) {
        self.switch.count_direct(self.port, dlid, words, packets);
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.switch.unplug(self.port);
    }
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plug").field("port", &self.port).finish_non_exhaustive()
    }
}
