//! What a device did for its guest: counters that several threads add to.

use std::sync::atomic::{AtomicU64, Ordering};

use virtio_rdma::request::query::Stats;
use virtio_rdma::{U32, U64};
use zerocopy::FromZeros;

/// What a guest had at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Had {
    pub(crate) generation: u32,
    pub(crate) registered_bytes: u64,
    pub(crate) mapped_bytes: u64,
    pub(crate) objects: u32,
    pub(crate) quarantined: u32,
}

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
    /// The counters now, and what the guest had.
    pub(crate) fn stats(&self, had: &Had) -> Stats {
        let read = |counter| U64::new(Self::read(counter));
        Stats {
            requests: read(&self.requests),
            requests_failed: read(&self.requests_failed),
            chains_refused: read(&self.chains_refused),
            send_doorbells: read(&self.send_doorbells),
            arm_doorbells: read(&self.arm_doorbells),
            bad_doorbells: read(&self.bad_doorbells),
            kicks: read(&self.kicks),
            completion_events: read(&self.completion_events),
            async_events: read(&self.async_events),
            async_events_lost: read(&self.async_events_lost),
            registered_bytes: U64::new(had.registered_bytes),
            mapped_bytes: U64::new(had.mapped_bytes),
            objects: U32::new(had.objects),
            quarantined: U32::new(had.quarantined),
            ..Stats::new_zeroed()
        }
    }
}
