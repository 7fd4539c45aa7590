//! An endpoint's end of its cable.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::Endpoint;
use super::packet::Packet;
use super::switch::Switch;

/// A cable that is plugged into the switch; dropped, it is pulled out. The endpoint may still be handed
/// packets that were on their way then.
pub struct Plug {
    switch: Arc<Switch>,
    port: u8,
    training: Duration,
    wish: Arc<Wish>,
}

/// What the endpoint last asked of its link.
#[derive(Default)]
struct Wish {
    /// Counts the requests.
    number: AtomicU64,
    up: AtomicBool,
}

impl Wish {
    fn set(&self, up: bool) -> u64 {
        self.up.store(up, Ordering::SeqCst);
        self.number.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn is(&self, number: u64) -> bool {
        self.number.load(Ordering::SeqCst) == number
    }
}

impl Plug {
    pub(super) fn new(switch: Arc<Switch>, port: u8, training: Duration) -> Self {
        Self { switch, port, training, wish: Arc::default() }
    }

    /// The switch's port, from 1.
    pub fn switch_port(&self) -> u8 {
        self.port
    }

    /// The endpoint's port is polling for a far end, or not any more. While it is there is a link, unless
    /// subnet management disabled the switch's side; [`Endpoint::link_changed`] tells. A link comes up when
    /// the fabric's training time is over; without one, and when the link goes down, the endpoint hears of
    /// it before this returns, unless the link is being changed by another thread as well.
    pub fn set_link(&self, up: bool) {
        let number = self.wish.set(up);
        if !up || self.training.is_zero() || !self.train(number) {
            self.switch.set_polling(self.port, up);
        }
    }

    /// Brings the link up later, if nothing else was asked for by then. False if there is no thread to be
    /// had for that.
    fn train(&self, number: u64) -> bool {
        let (switch, wish) = (Arc::downgrade(&self.switch), self.wish.clone());
        let (port, training) = (self.port, self.training);
        let thread = thread::Builder::new().name("mlx4-train".into());
        thread
            .spawn(move || {
                thread::sleep(training);
                trained(&switch, port, &wish, number);
            })
            .is_ok()
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

/// The training time that request `number` has started is over.
fn trained(switch: &Weak<Switch>, port: u8, wish: &Wish, number: u64) {
    let Some(switch) = switch.upgrade().filter(|_| wish.is(number)) else { return };
    switch.set_polling(port, true);
    // Asked to go down in between, the link must not stay up.
    if !wish.is(number) && !wish.up.load(Ordering::SeqCst) {
        switch.set_polling(port, false);
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.wish.set(false);
        self.switch.unplug(self.port);
    }
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plug").field("port", &self.port).finish_non_exhaustive()
    }
}
