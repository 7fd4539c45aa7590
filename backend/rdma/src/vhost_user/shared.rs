//! The device's shared-memory region over vhost-user: GET_SHMEM_CONFIG offers it, SHMEM_MAP maps it.
//!
//! SHMEM_MAP goes over a channel that the front end gives, and the crate's call for it waits for the answer with
//! nothing to end that. So a thread of its own makes the call. Where a front end never answers, its next connection
//! waits for that thread, and nobody else does.
//!
//! The crate doesn't tell whether the front end has agreed on answers (REPLY_ACK), and takes none for an answer where
//! it hasn't. So answers are always asked for: a front end that gives none has no region.
//!
//! The region is mapped when a driver first wants it, not before: a VMM drops what is mapped when the device is
//! reset, and doesn't always say that it was.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags, VhostUserShMemConfig};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};
use virtio_rdma::doorbell::SHARED_REGION_ID;

use crate::relay::{Exposure, RegionMemory};

/// How long a front end may take to map the region.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often whoever waits for the thread's end looks whether it still wants to.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How far the mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody has wanted it.
    Unmapped,
    /// The device was reset since it was mapped: the front end has dropped it, or not.
    Stale,
    /// The thread is to map it, or does.
    Wanted {
        /// What is left of an earlier mapping goes first.
        unmap: bool,
    },
    Mapped,
    /// The front end doesn't.
    Denied,
}

#[derive(Debug)]
struct State {
    /// The front end has asked for regions.
    known: bool,
    channel: Option<Channel>,
    phase: Phase,
    /// How often the device was reset: an answer to what was asked before the last time is none for what is asked
    /// since.
    epoch: u64,
    /// The thread runs.
    running: bool,
    ended: bool,
}

/// The way to the front end.
#[derive(Clone)]
struct Channel(Backend);

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

/// The region of one connection's device.
#[derive(Debug)]
pub(crate) struct SharedRegion {
    name: Arc<str>,
    memory: Arc<RegionMemory>,
    state: Mutex<State>,
    changed: Condvar,
    /// How long the front end may take to map it.
    patience: Duration,
    /// What the thread keeps: this, for as long as it runs.
    own: std::sync::Weak<SharedRegion>,
}

impl SharedRegion {
    pub(crate) fn new(name: Arc<str>, memory: Arc<RegionMemory>) -> Arc<Self> {
        Self::with_patience(name, memory, PATIENCE)
    }

    fn with_patience(name: Arc<str>, memory: Arc<RegionMemory>, patience: Duration) -> Arc<Self> {
        let phase = Phase::Unmapped;
        let state = State { known: false, channel: None, phase, epoch: 0, running: false, ended: false };
        Arc::new_cyclic(|own| Self {
            name,
            memory,
            state: Mutex::new(state),
            changed: Condvar::new(),
            patience,
            own: own.clone(),
        })
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> &Arc<RegionMemory> {
        &self.memory
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The answer to GET_SHMEM_CONFIG.
    pub(crate) fn config(&self) -> VhostUserShMemConfig {
        self.set(|state| state.known = true);
        VhostUserShMemConfig::new(1, &[self.memory.bytes()])
    }

    /// The front end has given a channel; only its first one counts.
    pub(crate) fn take_channel(&self, channel: Backend) {
        channel.set_reply_ack_flag(true);
        self.set(|state| {
            state.channel.get_or_insert(Channel(channel));
        });
    }

    /// The device was reset, or is about to be. Nobody waits for the mapping any more.
    pub(crate) fn forget(&self) {
        self.set(|state| {
            state.epoch += 1;
            if matches!(state.phase, Phase::Mapped | Phase::Wanted { .. }) {
                state.phase = Phase::Stale;
            }
        });
    }

    /// The connection has ended.
    pub(crate) fn end(&self) {
        self.set(|state| state.ended = true);
    }

    /// Waits until the thread has ended, or the caller has given up.
    pub(crate) fn wait_until_idle(&self, given_up: impl Fn() -> bool) {
        let mut state = self.lock();
        while state.running && !given_up() {
            let waited = self.changed.wait_timeout(state, LOOK_AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn start(self: &Arc<Self>) -> io::Result<()> {
        let region = Arc::clone(self);
        thread::Builder::new().name("rdma-shmem".into()).spawn(move || region.run()).map(|_detached| ())
    }

    /// The thread: maps when that is wanted, and unmaps when the connection has ended.
    fn run(&self) {
        loop {
            let idle = |state: &mut State| !state.ended && !matches!(state.phase, Phase::Wanted { .. });
            let waited = self.changed.wait_while(self.lock(), idle);
            let state = waited.unwrap_or_else(PoisonError::into_inner);
            let (phase, channel, ended) = (state.phase, state.channel.clone(), state.ended);
            let epoch = state.epoch;
            drop(state);
            match (phase, channel) {
                (Phase::Mapped | Phase::Stale | Phase::Wanted { unmap: true }, Some(Channel(channel)))
                    if ended =>
                {
                    // Nobody answers any more.
                    channel.set_reply_ack_flag(false);
                    self.unmap(&channel);
                }
                (Phase::Wanted { unmap }, Some(Channel(channel))) if !ended => {
                    if unmap {
                        self.unmap(&channel);
                    }
                    self.map_on(&channel, epoch);
                }
                _ => {}
            }
            if ended {
                break;
            }
        }
        self.set(|state| {
            state.running = false;
            state.channel = None;
        });
    }

    fn request(&self) -> VhostUserMMap {
        VhostUserMMap {
            shmid: SHARED_REGION_ID,
            len: self.memory.bytes(),
            flags: VhostUserMMapFlags::WRITABLE.bits(),
            ..VhostUserMMap::default()
        }
    }

    /// Maps the region for whoever wanted it in this epoch.
    fn map_on(&self, channel: &Backend, epoch: u64) {
        let result = channel.shmem_map(&self.request(), self.memory.file());
        let mut late = false;
        self.set(|state| match (state.phase, result) {
            (Phase::Wanted { .. }, Ok(_)) if state.epoch == epoch => state.phase = Phase::Mapped,
            (Phase::Wanted { .. }, Err(error)) if state.epoch == epoch => {
                log::warn!("guest {}: doorbells are relayed, its VMM maps no region: {error}", self.name);
                state.phase = Phase::Denied;
            }
            // Who wants it again has what is left unmapped first.
            (phase, result) => late = phase == Phase::Denied && result.is_ok(),
        });
        if late {
            self.unmap(channel);
        }
    }

    fn unmap(&self, channel: &Backend) {
        if let Err(error) = channel.shmem_unmap(&self.request()) {
            log::debug!("guest {}: its region was not mapped any more: {error}", self.name);
        }
    }
}

impl Exposure for SharedRegion {
    fn is_known(&self) -> bool {
        self.lock().known
    }

    fn is_mapped(&self) -> bool {
        self.lock().phase == Phase::Mapped
    }

    fn map(&self) {
        let mut state = self.lock();
        if !state.known || state.channel.is_none() || state.ended {
            return;
        }
        match state.phase {
            Phase::Unmapped => state.phase = Phase::Wanted { unmap: false },
            Phase::Stale => state.phase = Phase::Wanted { unmap: true },
            Phase::Wanted { .. } | Phase::Mapped | Phase::Denied => {}
        }
        if !state.running {
            match self.own.upgrade().map(|region| region.start()) {
                Some(Ok(())) => state.running = true,
                Some(Err(error)) => {
                    log::warn!(
                        "guest {}: doorbells are relayed, there is no thread to map them: {error}",
                        self.name
                    );
                    state.phase = Phase::Denied;
                }
                None => state.phase = Phase::Denied,
            }
        }
        self.changed.notify_all();
        let epoch = state.epoch;
        let waits = |state: &mut State| {
            !state.ended && state.epoch == epoch && matches!(state.phase, Phase::Wanted { .. })
        };
        let waited = self.changed.wait_timeout_while(state, self.patience, waits);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            log::warn!(
                "guest {}: doorbells are relayed, its VMM has not mapped them in {:?}",
                self.name,
                self.patience
            );
            state.phase = Phase::Denied;
        }
    }
}

#[cfg(test)]
mod tests;
