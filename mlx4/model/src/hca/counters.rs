//! What the HCA counts. A test that asks whether work really was done compares these with what was posted.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that any thread adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ( $( $(#[$meta:meta])* $name:ident, )* ) => {
        /// Counts since the HCA was made; resets don't clear them.
        #[derive(Debug, Default)]
        pub struct Counters {
            $( $(#[$meta])* pub $name: Counter, )*
        }

        impl Counters {
            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [ $( (stringify!($name), self.$name.get()), )* ].into_iter()
            }
        }
    };
}

counters! {
    /// Commands executed.
    commands,
    /// Commands that ended with a status other than OK.
    failed_commands,
    /// Doorbells that named no object, or came through a UAR page that the object doesn't use.
    bad_doorbells,
    /// Send work requests of connected services executed to their end, with or without success; flushed
    /// ones aside.
    send_wqes,
    /// Receive work requests used by a message of a connected service.
    receive_wqes,
    /// Work requests flushed in state ERR.
    flushed_wqes,
    /// Payload bytes of connected services copied from memory to memory, those of reads too; atomics aside.
    payload_bytes,
    /// Bytes of connected services that the engine's copies have moved; those of messages that failed too.
    copied_bytes,
    /// Accesses refused by a local key.
    rejected_lkeys,
    /// Accesses refused by a remote key.
    rejected_rkeys,
    /// Regions registered by a work request.
    fast_registers,
    /// Keys invalidated by a work request of their owner.
    local_invalidates,
    /// Keys invalidated by a message of the other end's.
    remote_invalidates,
    /// Receiver-not-ready NAKs sent.
    rnr_naks,
    /// Requests that nobody answered in time.
    timeouts,
    /// Packets of connected services that weren't those expected next.
    out_of_sequence,
    /// Send work requests of datagram services, special queue pairs among them; flushed ones aside.
    datagram_sends,
    /// Datagrams received into a buffer.
    datagrams,
    /// Datagrams dropped: no such queue pair, wrong key, no buffer.
    dropped_datagrams,
    /// Asynchronous and completion events that found no room.
    cq_overruns,
}
