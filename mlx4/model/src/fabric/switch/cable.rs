//! The cable at one external port of the switch: who is plugged in, and whether there is a link.
//!
//! There is a link while an endpoint is plugged in, its port is polling, the cable isn't pulled, and subnet
//! management hasn't disabled the switch's side. Both ends hear of each change, in order, and never under a lock.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use crate::fabric::Endpoint;

/// Changes of the link that the endpoint may still have to hear of; older ones cancel out in pairs.
const MAX_EVENTS: usize = 4;

/// One external port's cable.
#[derive(Default)]
pub(super) struct Cable {
    far: ArcSwapOption<Arc<dyn Endpoint>>,
    control: Mutex<Control>,
}

#[derive(Default)]
struct Control {
    polling: bool,
    disabled: bool,
    pulled: bool,
    up: bool,
    events: VecDeque<bool>,
    notifying: bool,
}

/// What may happen to a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The endpoint's port started or stopped polling.
    Polling(bool),
    /// Subnet management enabled or disabled the switch's side.
    Disabled(bool),
    /// Somebody pulled the cable, or put it back.
    Pulled(bool),
    /// Subnet management reset the link: it goes down and trains again.
    Reset,
}

impl Cable {
    /// The far end, if an endpoint is plugged in. Takes no lock.
    pub(super) fn far(&self) -> Guard<Option<Arc<Arc<dyn Endpoint>>>> {
        self.far.load()
    }

    /// Plugs an endpoint in; its port isn't polling yet. False if the port is taken.
    pub(super) fn plug(&self, endpoint: Arc<dyn Endpoint>) -> bool {
        let mut control = self.lock();
        if self.far.load().is_some() {
            return false;
        }
        control.polling = false;
        control.events.clear();
        self.far.store(Some(Arc::new(endpoint)));
        true
    }

    /// Takes the endpoint out; it hears of no further change. `change` is called if the link goes down.
    /// Returns whether it did.
    pub(super) fn unplug(&self, change: impl FnMut(bool)) -> bool {
        let mut control = self.lock();
        control.polling = false;
        let went_down = control.train(change);
        control.events.clear();
        self.far.store(None);
        went_down
    }

    /// Takes in an event. `change` is called under the cable's lock for each change of the link, so that
    /// port states follow in the same order. Returns whether the link changed.
    pub(super) fn apply(&self, event: Event, mut change: impl FnMut(bool)) -> bool {
        let mut control = self.lock();
        if self.far.load().is_none() && event == Event::Polling(true) {
            return false;
        }
        let changed = match event {
            Event::Polling(polling) => {
                control.polling = polling;
                control.train(change)
            }
            Event::Disabled(disabled) => {
                control.disabled = disabled;
                control.train(change)
            }
            Event::Pulled(pulled) => {
                control.pulled = pulled;
                control.train(change)
            }
            Event::Reset if control.up => {
                control.set(false, &mut change);
                control.train(change)
            }
            Event::Reset => control.train(change),
        };
        self.notify(control);
        changed
    }

    /// Tells the endpoint of changes. One thread at a time does so, without the lock, for all others.
    fn notify<'a>(&'a self, mut control: MutexGuard<'a, Control>) {
        if control.notifying {
            return;
        }
        control.notifying = true;
        while let Some(up) = control.events.pop_front() {
            drop(control);
            if let Some(far) = self.far.load_full() {
                far.link_changed(up);
            }
            control = self.lock();
        }
        control.notifying = false;
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Brings the link to what both ends want. Returns whether it changed.
    fn train(&mut self, mut change: impl FnMut(bool)) -> bool {
        let up = self.polling && !self.disabled && !self.pulled;
        if up == self.up {
            return false;
        }
        self.set(up, &mut change);
        true
    }

    fn set(&mut self, up: bool, change: &mut impl FnMut(bool)) {
        self.up = up;
        change(up);
        if self.events.len() >= MAX_EVENTS {
            self.events.drain(..2);
        }
        self.events.push_back(up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::packet::Packet;

    #[derive(Default)]
    struct Listener(Mutex<Vec<bool>>);

    impl Endpoint for Listener {
        fn receive(&self, _: &Packet<'_>) {}

        fn link_changed(&self, up: bool) {
            self.0.lock().unwrap().push(up);
        }
    }

    #[test]
    fn link_is_up_only_while_polling_and_enabled() {
        let (cable, listener) = (Cable::default(), Arc::new(Listener::default()));
        let mut states = Vec::new();
        assert!(!cable.apply(Event::Polling(true), |up| states.push(up)));
        assert!(cable.plug(listener.clone()));
        assert!(!cable.plug(listener.clone()));
        assert!(cable.apply(Event::Polling(true), |up| states.push(up)));
        assert!(!cable.apply(Event::Polling(true), |up| states.push(up)));
        assert!(cable.apply(Event::Disabled(true), |up| states.push(up)));
        assert!(!cable.apply(Event::Reset, |up| states.push(up)));
        assert!(cable.apply(Event::Disabled(false), |up| states.push(up)));
        assert!(cable.apply(Event::Reset, |up| states.push(up)));
        assert!(cable.unplug(|up| states.push(up)));
        assert_eq!(states, [true, false, true, false, true, false]);
        assert_eq!(*listener.0.lock().unwrap(), [true, false, true, false, true]);
        assert!(cable.plug(listener));
    }

    #[test]
    fn pulled_cable_has_no_link_until_it_is_put_back() {
        let (cable, listener) = (Cable::default(), Arc::new(Listener::default()));
        assert!(cable.plug(listener.clone()));
        assert!(cable.apply(Event::Polling(true), |_| ()));
        assert!(cable.apply(Event::Pulled(true), |_| ()));
        assert!(!cable.apply(Event::Pulled(true), |_| ()));
        assert!(!cable.apply(Event::Reset, |_| ()));
        assert!(!cable.apply(Event::Polling(false), |_| ()));
        assert!(!cable.apply(Event::Polling(true), |_| ()));
        assert!(cable.apply(Event::Pulled(false), |_| ()));
        assert_eq!(*listener.0.lock().unwrap(), [true, false, true]);
    }

    struct Flapper(Arc<Cable>, Mutex<Vec<bool>>);

    impl Endpoint for Flapper {
        fn receive(&self, _: &Packet<'_>) {}

        fn link_changed(&self, up: bool) {
            self.1.lock().unwrap().push(up);
            if up {
                self.0.apply(Event::Polling(false), |_| ());
            }
        }
    }

    #[test]
    fn endpoint_that_changes_its_port_in_the_callback_hears_changes_in_order() {
        let cable = Arc::new(Cable::default());
        let flapper = Arc::new(Flapper(cable.clone(), Mutex::default()));
        assert!(cable.plug(flapper.clone()));
        cable.apply(Event::Polling(true), |_| ());
        assert_eq!(*flapper.1.lock().unwrap(), [true, false]);
    }
}
