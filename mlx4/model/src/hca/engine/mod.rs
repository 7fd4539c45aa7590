//! The data path: executes work requests and receives packets.
//!
//! The engine of the sending HCA does everything: it takes the WQE, finds the receiving queue pair, checks
//! what that one's HCA would check, copies the payload from memory to memory, and writes both completions.
//! For connected services no packet is made: what acknowledgements, NAKs and time-outs would say is known
//! at once, and only the waits that they lead to take time. Datagrams cross the switch as packets.
//!
//! - [`send`]: the loop over a send queue; [`wqe`]: what a WQE asks for
//! - [`datagram`], [`lso`], [`special`]: sending of UD, and of QP0 and QP1; [`deliver`]: their receiving side
//! - [`requester`], [`peer`], [`responder`]: RC and UC; [`keys`]: requests about memory keys;
//!   [`resources`]: for requests that come again
//! - [`receive`]: receive WQEs from a queue or an SRQ
//! - [`flush`]: queue pairs in error states
//! - [`sg`]: scatter/gather lists and the copy; [`side`]: completions and events; [`traffic`]: counters;
//!   [`violations`]: wrong P_Keys and Q_Keys
//! - [`timers`], [`thread`]: when to run
//!
//! Locks: one send half, then one receive half, never the other way round; then perhaps the receive half of
//! a port's QP0, for a trap about what has arrived. A queue pair is served by its HCA's engine only, and that
//! by one thread at a time.

mod datagram;
mod deliver;
mod flush;
mod keys;
mod lso;
mod peer;
mod receive;
mod requester;
mod resources;
mod responder;
mod send;
mod sg;
mod side;
mod special;
#[cfg(test)]
mod tests;

mod thread;
mod timers;
mod traffic;
mod violations;
mod wqe;

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use mlx4_wire::ctx::qp::QpState;

use super::Hca;
use super::qp::Half;
use super::runset::RunSet;
pub(crate) use deliver::receive_datagram;
pub(crate) use receive::ReceiveWork;
use send::Budget;
pub(crate) use send::SendWork;
use side::Side;
pub use thread::EngineThread;
use timers::Timers;

type Waker = Box<dyn Fn() + Send + Sync>;

/// What one call of [`Hca::run`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Some queue pair was served; there may be more to do already.
    pub worked: bool,
    /// When the next timer is due.
    pub next_timer: Option<Instant>,
}

/// Which queue pairs wait for service, and who is to be woken for them.
pub(crate) struct Engine {
    rung: RunSet,
    /// CQs with an event that waits, or that is to be polled.
    rung_cqs: RunSet,
    /// Some of those that were rung wait for the next call of [`Hca::run`].
    left: AtomicBool,
    asleep: AtomicBool,
    waker: ArcSwapOption<Waker>,
    runner: Mutex<Runner>,
}

#[derive(Debug, Default)]
struct Runner {
    timers: Timers,
    batch: Batch,
    cq_timers: Timers,
    cq_batch: Vec<u32>,
}

/// Queue pairs that one call of [`Hca::run`] serves at most, so that whoever drives the engine comes to other work.
const TURNS: u32 = 16;
/// Bytes of payload in one turn of a queue pair, where others wait and where none does.
const TURN_BYTES: u64 = 256 << 10;
const TURN_BYTES_ALONE: u64 = 1 << 20;

/// Queue pairs to be served, some in each call of [`Hca::run`].
#[derive(Debug, Default)]
struct Batch {
    numbers: Vec<u32>,
    /// Those before this place were served.
    next: usize,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.next == self.numbers.len()
    }

    /// Whether one queue pair is all there is.
    fn is_single(&self) -> bool {
        self.numbers.len() == 1
    }

    fn push(&mut self, qpn: u32) {
        self.numbers.push(qpn);
    }

    fn take(&mut self) -> Option<u32> {
        let qpn = self.numbers.get(self.next).copied();
        match qpn {
            Some(_) => self.next += 1,
            None => (self.next, _) = (0, self.numbers.clear()),
        }
        qpn
    }
}

impl Engine {
    pub(super) fn new() -> Self {
        Self {
            rung: RunSet::new(),
            rung_cqs: RunSet::new(),
            left: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            waker: ArcSwapOption::empty(),
            runner: Mutex::default(),
        }
    }

    /// Has a queue pair served: its doorbell was rung, or a command changed its state. Any thread may call
    /// this.
    pub(super) fn ring(&self, qpn: u32) {
        self.rung.ring(qpn);
        self.rouse();
    }

    /// Has the timer of a CQ looked after, or whoever runs the engine look for its event.
    pub(super) fn ring_cq(&self, cqn: u32) {
        self.rung_cqs.ring(cqn);
        self.rouse();
    }

    fn rouse(&self) {
        // Pairs with the fence in `may_sleep`: the sleeper sees the bit, or this thread sees the sleeper.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.load() {
            waker();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.wake();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("rung", &self.rung).finish_non_exhaustive()
    }
}

/// What is to become of a queue pair that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing, until it is rung.
    Idle,
    /// It has more to do, after the others.
    Again,
    /// It is to be served at this time, if not rung before.
    At(Instant),
}

impl Hca {
    /// Serves the queue pairs that were rung and those whose timers are due: of each a bounded piece of
    /// work. Returns at once if another thread does so already.
    pub fn run(&self) -> Progress {
        let mut runner = match self.engine.runner.try_lock() {
            Ok(runner) => runner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Progress::default(),
        };
        self.engine.asleep.store(false, Ordering::Relaxed);
        let Runner { timers, batch, cq_timers, cq_batch } = &mut *runner;
        if batch.is_empty() {
            if timers.next().is_some() {
                timers.take_due(Instant::now(), |qpn| batch.push(qpn));
            }
            self.engine.rung.drain(|qpn| batch.push(qpn));
        }
        let worked = !batch.is_empty();
        let most_bytes = if batch.is_single() { TURN_BYTES_ALONE } else { TURN_BYTES };
        for _ in 0..TURNS {
            let Some(qpn) = batch.take() else { break };
            match serve(self, qpn, most_bytes) {
                Next::Idle => {}
                Next::Again => self.engine.rung.ring(qpn),
                Next::At(at) => timers.set(qpn, at),
            }
        }
        self.engine.left.store(!batch.is_empty(), Ordering::Relaxed);
        if cq_timers.next().is_some() || !self.engine.rung_cqs.is_empty() {
            self.serve_cqs(cq_timers, cq_batch);
        }
        let next_timer = [timers.next(), cq_timers.next()].into_iter().flatten().min();
        Progress { worked, next_timer }
    }

    /// Sends the events whose time is over, of the CQs that moderation holds back.
    fn serve_cqs(&self, timers: &mut Timers, batch: &mut Vec<u32>) {
        let now = Instant::now();
        timers.take_due(now, |cqn| batch.push(cqn));
        self.engine.rung_cqs.drain(|cqn| batch.push(cqn));
        let entered = if batch.is_empty() { None } else { self.enter() };
        for cqn in batch.drain(..) {
            let Some((burst, running)) = &entered else { continue };
            let next = running.cqs.get(cqn).and_then(|cq| cq.serve(burst, now));
            if let Some(at) = next {
                timers.set(cqn, at);
            }
        }
    }

    /// Announces that whoever calls [`Hca::run`] is about to sleep. If this returns true, the waker is called
    /// for the next queue pair that is rung; else there is work to do already.
    pub fn may_sleep(&self) -> bool {
        self.engine.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let nothing = self.engine.rung.is_empty() && self.engine.rung_cqs.is_empty();
        nothing && !self.engine.left.load(Ordering::Relaxed)
    }

    /// Announces that whoever calls [`Hca::run`] is awake again, so that the waker isn't called for what he rings before
    /// he runs it.
    pub fn is_awake(&self) {
        self.engine.asleep.store(false, Ordering::Relaxed);
    }

    /// Sets who is woken, after [`Hca::may_sleep`], when there is work for [`Hca::run`]. The waker may be
    /// called on any thread and under locks of the data path: it must neither block nor call the HCA.
    pub fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        self.engine.waker.store(Some(Arc::new(waker)));
    }
}

/// Does a piece of a queue pair's work: of about `most_bytes` of payload at most.
fn serve(hca: &Hca, qpn: u32, most_bytes: u64) -> Next {
    let Some((burst, running)) = hca.enter() else { return Next::Idle };
    let Some(qp) = running.qps.get(qpn) else { return Next::Idle };
    let mut half = qp.send();
    let Half { attrs, work } = &mut *half;
    let side = Side { hca, burst: &burst, running: &running, qp: &qp, attrs };
    match qp.state() {
        QpState::RTS | QpState::SQ_DRAINING => work.run(&side, Budget::new(most_bytes)),
        QpState::SQER => flush::sends(&side, work),
        QpState::ERR => flush::all(&side, work),
        _ => Next::Idle,
    }
}
