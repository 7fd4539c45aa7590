//! The relay's role: to read the doorbell areas of all guests of an HCA and to drive its engine. Whoever is awake has
//! it, one thread at a time: the relay's thread, which keeps it until it sleeps, or the worker of a connection that a
//! kick has woken while that thread slept. So a kick costs no second wake-up.
//!
//! While there is work the role's holder takes no lock, allocates nothing and makes no system call: it has a list of
//! its own, and takes in changes when a flag says that there are some. Before it lets go of the role it asks each area
//! for kicks and the engine for its waker, and looks again (`docs/virtio-rdma.md`, 10.2).
//!
//! # Why nothing is lost
//!
//! While nobody has the role, all areas ask for kicks, the engine for its waker, and all that came before was seen; or
//! the relay's thread has been woken and has yet to come for the role (a new area asks for kicks from its header on).
//! Whoever brings news does so first and comes for the role then, or has somebody come:
//!
//! - A ring that finds the area's `sleeping` 0 comes before the fence of whoever prepares that area for sleep next, so
//!   his look behind the fence sees it. One that finds it 1 is followed by a kick, and the kick's worker comes.
//! - The engine calls its waker for what comes after it was asked to; the thread comes. [`Engine::run`] is called by
//!   the role's holder only, so no call of it returns in vain because of another one.
//! - For a change of the list its flag is set, then the thread comes.
//! - Completion events that are polled ([`Hca::poll_events`]) come of the rings and the engine's run in a round, and are
//!   taken at its end. For one that comes otherwise the engine has work.
//!
//! Who comes gets the role, and looks; or he does not, and then its holder can't let go of it before he has looked once
//! more, having seen all that the other had ([`Baton`]). A holder that lets go all the same (its rounds are used up,
//! or the thread is to look for work for a while) wakes the thread after that, which comes.
//!
//! Timers: only the thread sleeps with one. A worker that leaves a timer wakes the thread, unless that sleeps until
//! then at most ([`Role::thread_until`]). If the thread's time is over, it comes; in vain, the holder looks again,
//! after that time, and so wakes it if there is a timer still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use paraverbs_tenant::hca::Hca;

use super::area::{Area, GuestNumber};
use super::baton::{Baton, Leave};
use super::turns::Turns;
use super::{Engine, Progress};

/// Rounds that a worker does for one kick: a guest that rings without end keeps the relay's thread busy, not that of
/// another guest's kicks or of its own end. In a round an engine executes some WQEs or pages of each queue pair.
const ROUNDS: u32 = 16;

/// What the role's holder works with.
#[derive(Debug, Default)]
pub(super) struct Role {
    turns: Turns,
    /// The areas ask for kicks.
    asleep: bool,
    /// The timer that the relay's thread sleeps with, if it does.
    pub(super) thread_until: Option<Instant>,
}

impl Role {
    /// Whether the relay's thread will have come for the role when a timer is due.
    fn thread_comes_for(&self, timer: Option<Instant>) -> bool {
        match (timer, self.thread_until) {
            (None, _) => true,
            (Some(timer), Some(until)) => until <= timer && until > Instant::now(),
            (Some(_), None) => false,
        }
    }
}

/// What all threads of the relay share.
pub(super) struct Shared {
    pub(super) hca: Arc<dyn Hca>,
    pub(super) engine: Option<Arc<dyn Engine>>,
    /// How long the relay's thread looks for work before it sleeps.
    pub(super) spin: Duration,
    pub(super) role: Baton<Role>,
    areas: Mutex<Vec<Arc<Area>>>,
    guests: AtomicU64,
    changed: AtomicBool,
    pub(super) thread: OnceLock<Thread>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("areas", &self.areas).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(hca: Arc<dyn Hca>, engine: Option<Arc<dyn Engine>>, spin: Duration) -> Self {
        Self {
            hca,
            engine,
            spin,
            role: Baton::default(),
            areas: Mutex::default(),
            guests: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            thread: OnceLock::new(),
        }
    }

    /// The number of a guest that wasn't there before.
    pub(super) fn next_guest(&self) -> GuestNumber {
        GuestNumber(self.guests.fetch_add(1, Ordering::Relaxed))
    }

    /// All areas that are to be read. After a change [`Shared::tell_change`] is to be called, without the lock.
    pub(super) fn areas(&self) -> MutexGuard<'_, Vec<Arc<Area>>> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list of areas has changed.
    pub(super) fn tell_change(&self) {
        self.changed.store(true, Ordering::Release);
        self.wake_thread();
    }

    /// Has the relay's thread come for the role.
    pub(super) fn wake_thread(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Gives each guest a turn, runs the engine once, and takes the completion events that came of it: no guest makes
    /// another wait longer. Answers what was done; if nothing was, there may be reason to sleep.
    pub(super) fn round(&self, role: &mut Role) -> Progress {
        if self.changed.load(Ordering::Relaxed) && self.changed.swap(false, Ordering::Acquire) {
            role.turns = Turns::of(&self.areas());
            role.asleep = true;
        }
        if std::mem::take(&mut role.asleep) {
            role.turns.areas().for_each(|area| area.wake());
            self.engine.iter().for_each(|engine| engine.is_awake());
        }
        let rung = role.turns.round(&*self.hca);
        let progress = self.engine.as_ref().map_or_else(Progress::default, |engine| engine.run());
        let more = self.hca.poll_events();
        Progress { worked: rung | progress.worked | more, ..progress }
    }

    /// Asks for kicks and for the engine's waker. False if there is work already: then nobody is asked.
    pub(super) fn prepare_sleep(&self, role: &mut Role) -> bool {
        let rung = role.turns.areas().position(|area| !area.prepare_sleep());
        role.asleep = rung.is_none() && self.engine.as_ref().is_none_or(|engine| engine.may_sleep());
        if !role.asleep {
            role.turns.areas().take(rung.unwrap_or(usize::MAX)).for_each(|area| area.wake());
        }
        role.asleep
    }

    /// Somebody has rung while nobody had the role: this thread does what there is to do. It blocks for nothing, and
    /// its work is bounded: what is left is the relay's thread's, and all of it where that is to spin afterwards.
    pub(super) fn serve_kick(&self) {
        let mut left = ROUNDS;
        let mut thread_is_due = false;
        self.role.hold(|role| {
            let rest = self.rounds(role, &mut left);
            thread_is_due = rest.is_none_or(|timer| !role.thread_comes_for(timer));
            if rest.is_some() { Leave::UnlessWanted } else { Leave::Anyway }
        });
        if thread_is_due {
            self.wake_thread();
        }
    }

    /// Does rounds until there is nothing to do and everybody is asked to wake somebody; answers the next timer. None
    /// if it doesn't come to that.
    fn rounds(&self, role: &mut Role, left: &mut u32) -> Option<Option<Instant>> {
        while let Some(fewer) = left.checked_sub(1) {
            *left = fewer;
            let Progress { worked, next_timer } = self.round(role);
            if worked {
                continue;
            }
            if !self.spin.is_zero() {
                return None;
            }
            if self.prepare_sleep(role) {
                return Some(next_timer);
            }
        }
        None
    }
}
