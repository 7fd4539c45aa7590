//! Doorbell areas, and who reads them: one thread of the HCA, or a connection's worker in its place.

mod area;
mod baton;
mod direct;
mod handle;
mod role;
mod thread;
mod turns;

use std::time::{Duration, Instant};

pub(crate) use direct::{Direct, Exposure, RegionMemory};
pub(crate) use handle::RelayHandle;
pub(crate) use thread::RelayThread;

/// Spinning costs a core, so there must be some to spare: those of two peers, and one for the rest.
const CORES_TO_SPIN: usize = 3;
const SPIN: Duration = Duration::from_micros(50);

/// What one [`Engine::run`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Something was done; there may be more to do already.
    pub worked: bool,
    /// When it must be run again at the latest, if nothing wakes it before.
    pub next_timer: Option<Instant>,
}

/// A part of an HCA that wants a thread: the engine of one in software. Whoever reads the doorbell areas drives it.
pub trait Engine: Send + Sync {
    /// Does a bounded piece of work. Called on one thread at a time, though not always the same.
    fn run(&self) -> Progress;

    /// Announces that the caller is about to sleep. If this returns true the waker is called for the next piece
    /// of work; else there is some already.
    fn may_sleep(&self) -> bool;

    /// Announces that the caller is awake again: the waker needn't be called before the next [`Engine::may_sleep`].
    fn is_awake(&self) {}

    /// Sets who is called, on any thread, when there is work after [`Engine::may_sleep`]. It doesn't block.
    fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>);
}

/// How the relay's thread works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// How long it looks for work before it sleeps.
    pub spin: Duration,
}

impl Default for RelayConfig {
    /// 50 µs where the machine has three cores or more, else not at all.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { spin: if cores < CORES_TO_SPIN { Duration::ZERO } else { SPIN } }
    }
}
