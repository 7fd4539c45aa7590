//! The relay's thread: it has the role while there is work, and for a while after that.

use std::hint;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use paraverbs_tenant::hca::Hca;

use super::baton::Leave;
use super::handle::RelayHandle;
use super::role::{Role, Shared};
use super::{Engine, Progress, RelayConfig};

/// Looks in vain between two looks at the clock.
const LOOKS: u32 = 32;
/// How long the thread keeps its core while it looks in vain. Then it lets others have it from time to time: whoever
/// has work for this thread may wait for the very same core.
const KEEP: Duration = Duration::from_micros(20);

/// How long the thread has looked in vain.
#[derive(Debug, Default)]
struct Idle {
    looks: u32,
    since: Option<Instant>,
}

impl Idle {
    /// Notes another look in vain. False if they have been going on for so long.
    fn goes_on(&mut self, spin: Duration) -> bool {
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS) {
            hint::spin_loop();
            return true;
        }
        let past = self.since.get_or_insert_with(Instant::now).elapsed();
        if past >= KEEP {
            thread::yield_now();
        }
        past < spin
    }
}

/// What the thread does.
struct Work {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn run(&self) {
        let mut until = None;
        while !self.is_stopped() {
            let had_it = self.shared.role.hold(|role| {
                until = self.work(role);
                role.thread_until = until;
                Leave::UnlessWanted
            });
            if !had_it {
                // What was due by now the one who has the role looks after.
                until = until.filter(|until| *until > Instant::now());
            }
            match until {
                Some(until) => thread::park_timeout(until.saturating_duration_since(Instant::now())),
                None => thread::park(),
            }
        }
    }

    /// Does rounds until there has been nothing to do for a while. Answers the next timer.
    fn work(&self, role: &mut Role) -> Option<Instant> {
        let (shared, mut idle) = (&*self.shared, Idle::default());
        while !self.is_stopped() {
            let Progress { worked, next_timer } = shared.round(role);
            if worked {
                idle = Idle::default();
                continue;
            }
            if !shared.spin.is_zero() && idle.goes_on(shared.spin) {
                continue;
            }
            if shared.prepare_sleep(role) {
                return next_timer;
            }
            idle = Idle::default();
        }
        None
    }
}

/// The thread, until this is dropped.
#[derive(Debug)]
pub(crate) struct RelayThread {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RelayThread {
    /// Starts it. It doesn't end before this is dropped.
    pub(crate) fn start(
        hca: Arc<dyn Hca>,
        engine: Option<Arc<dyn Engine>>,
        config: RelayConfig,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(hca, engine, config.spin));
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work { shared: Arc::clone(&shared), stop: Arc::clone(&stop) };
        let thread = thread::Builder::new().name("rdma-relay".into()).spawn(move || work.run())?;
        let handle = thread.thread().clone();
        // This is the only place that sets it.
        let _first = shared.thread.set(handle.clone());
        if let Some(engine) = &shared.engine {
            let waker = handle.clone();
            engine.set_waker(Box::new(move || waker.unpark()));
        }
        // For work that came before there was anybody to wake.
        handle.unpark();
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// The relay, for a guest that wasn't there before.
    pub(crate) fn handle(&self) -> RelayHandle {
        RelayHandle::new(&self.shared)
    }
}

impl Drop for RelayThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.shared.wake_thread();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("relay thread has panicked");
        }
    }
}
