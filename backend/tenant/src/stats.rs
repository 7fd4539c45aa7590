//! What a device did for its guest: counters that several threads add to.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($( $(#[$meta:meta])* $name:ident, )*) => {
        /// Counters of one guest, from the device's last reset. The names are those of the ABI's `Stats`.
        #[derive(Debug, Default)]
        pub struct Counters {
            $( $(#[$meta])* pub $name: AtomicU64, )*
        }

        impl Counters {
            /// Sets all to zero.
            pub(crate) fn reset(&self) {
                $( self.$name.store(0, Ordering::Relaxed); )*
            }
        }
    };
}

counters! {
    /// Requests on the control queue.
    requests,
    /// Those of them that were not carried out.
    requests_failed,
    /// Chains that could not be answered; counted by the transport.
    chains_refused,
    /// Send doorbells passed to the HCA.
    send_doorbells,
    /// Arm doorbells passed to the HCA.
    arm_doorbells,
    /// Rings of slots that belong to no object.
    bad_doorbells,
    /// Notifications of kick queues; counted by the transport.
    kicks,
    /// Completion events delivered.
    completion_events,
    /// Asynchronous events delivered.
    async_events,
    /// Asynchronous events lost.
    async_events_lost,
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Reads a counter.
    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}
