//! An endpoint's end of its cable.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

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
struct Wish(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    /// Counts the requests.
    number: u64,
    up: bool,
    /// When the link has trained.
    due: Option<Instant>,
    /// A thread waits for that: one at a time, however often drivers ask.
    awaited: bool,
}

impl Wish {
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request in.
    fn ask(&self, up: bool, due: Option<Instant>) -> MutexGuard<'_, Asked> {
        let mut asked = self.lock();
        asked.number += 1;
        (asked.up, asked.due) = (up, due);
        asked
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
        if !up || self.training.is_zero() {
            drop(self.wish.ask(up, None));
            self.switch.set_polling(self.port, up);
            return;
        }
        let mut asked = self.wish.ask(true, Some(Instant::now() + self.training));
        if std::mem::replace(&mut asked.awaited, true) {
            return;
        }
        drop(asked);
        let (switch, wish, port) = (Arc::downgrade(&self.switch), self.wish.clone(), self.port);
        let thread = thread::Builder::new().name("mlx4-train".into());
        if thread.spawn(move || train(&switch, port, &wish)).is_err() {
            self.wish.lock().awaited = false;
            self.switch.set_polling(self.port, true);
        }
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

/// Brings a link up when it is due, until nothing is due any more.
fn train(switch: &Weak<Switch>, port: u8, wish: &Wish) {
    loop {
        let mut asked = wish.lock();
        let Some(due) = asked.due else {
            asked.awaited = false;
            return;
        };
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            drop(asked);
            thread::sleep(wait);
            continue;
        }
        asked.due = None;
        let number = asked.number;
        drop(asked);
        let Some(switch) = switch.upgrade() else { continue };
        switch.set_polling(port, true);
        // Asked to go down in between, the link must not stay up.
        let asked = wish.lock();
        let taken_back = asked.number != number && !asked.up;
        drop(asked);
        if taken_back {
            switch.set_polling(port, false);
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        drop(self.wish.ask(false, None));
        self.switch.unplug(self.port);
    }
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plug").field("port", &self.port).finish_non_exhaustive()
    }
}
