//! A thread of its own for an HCA's engine.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Hca;

/// Spinning costs a core, so there must be some to spare: those of two peers, and one for the rest.
const CORES_TO_SPIN: usize = 3;
const SPIN: Duration = Duration::from_micros(50);

/// The thread that runs an HCA's engine, until this is dropped. It doesn't keep the HCA alive.
#[derive(Debug)]
pub struct EngineThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hca {
    /// Starts a thread that runs the engine. Before it sleeps it looks for work for a while: 50 µs where the
    /// machine has three cores or more, else not at all.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start_engine(self: &Arc<Self>) -> io::Result<EngineThread> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        self.start_engine_spinning(if cores < CORES_TO_SPIN { Duration::ZERO } else { SPIN })
    }

    /// As [`Hca::start_engine`], but looks for work for `spin` before it sleeps.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start_engine_spinning(self: &Arc<Self>, spin: Duration) -> io::Result<EngineThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let (hca, stopped) = (Arc::downgrade(self), stop.clone());
        let thread =
            thread::Builder::new().name("mlx4-engine".into()).spawn(move || work(&hca, &stopped, spin))?;
        let handle = thread.thread().clone();
        self.set_waker(Box::new(move || handle.unpark()));
        // Work that came before there was a waker.
        thread.thread().unpark();
        Ok(EngineThread { stop, thread: Some(thread) })
    }
}

fn work(hca: &Weak<Hca>, stop: &AtomicBool, spin: Duration) {
    let mut idle_since = None;
    while !stop.load(Ordering::Acquire) {
        let Some(hca) = hca.upgrade() else { return };
        let progress = hca.run();
        if progress.worked {
            idle_since = None;
            continue;
        }
        let since = *idle_since.get_or_insert_with(Instant::now);
        if !spin.is_zero() && since.elapsed() < spin {
            std::hint::spin_loop();
            continue;
        }
        if !hca.may_sleep() {
            continue;
        }
        drop(hca);
        match progress.next_timer {
            Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
            None => thread::park(),
        }
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("engine thread has panicked");
            }
        }
    }
}
