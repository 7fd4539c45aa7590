//! Multicast groups of the subnet: a port is in those that guests' queue pairs on it are in.
//!
//! That the card takes a group's packets for a queue pair isn't enough: switches send them to the ports that have
//! joined at the subnet administrator (IBTA vol. 1, 10.5 and 15.2.5.17). Guests have no datagrams of their own to ask
//! it, and share the port, so this does for all of them: joins for the first queue pair, leaves after the last, and
//! joins again when the subnet manager says so or is another. It joins groups only, and creates none: whoever does
//! knows its parameters.
//!
//! - `book`: who is in which group, and what is to be asked next
//! - `sa`: the datagrams

mod book;
mod sa;

use std::io;
use std::net::Ipv6Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mlx4::{Gid, MadQueue, MadSink, PortEvent, ReceivedMad};
use mlx4_wire::mad::header::Status;

use book::{Book, Kind, Request, Step};
use sa::Ready;
pub(crate) use sa::Unsent;

/// Name of the thread.
const THREAD: &str = "mlx4-groups";
/// How long a guest waits for the subnet administrator when a queue pair of his enters a group.
const JOIN: Duration = Duration::from_secs(1);
/// How long the end waits for the subnet administrator to be told which groups the ports leave.
const LEAVE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct State {
    book: Book,
    stopped: bool,
}

/// A group that a port has begun to join.
#[derive(Debug)]
pub(crate) struct Joining {
    port: u8,
    group: Gid,
    /// How often it was asked for before.
    outcomes: u64,
}

/// The groups that the ports of a card shall be in.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    state: Mutex<State>,
    /// There may be something else to do.
    work: Condvar,
    /// There may have been an answer.
    outcome: Condvar,
}

impl Groups {
    /// A queue pair on a port is in a group.
    pub(crate) fn join(&self, port: u8, group: Gid) -> Joining {
        let mut state = self.state();
        state.book.join(port, group, Instant::now());
        let outcomes = state.book.outcomes(port, &group);
        drop(state);
        self.work.notify_one();
        Joining { port, group, outcomes }
    }

    /// It isn't any more.
    pub(crate) fn leave(&self, port: u8, group: Gid) {
        self.state().book.leave(port, group, Instant::now());
        self.tell();
    }

    /// Waits until a port is in a group, or it is clear that it won't be for now; but not for long.
    pub(crate) fn wait(&self, joining: &Joining) {
        let is_open = |state: &mut State| {
            state.book.is_open(joining.port, &joining.group, joining.outcomes, Instant::now())
        };
        drop(self.outcome.wait_timeout_while(self.state(), JOIN, is_open));
    }

    /// Something has happened to a port.
    pub(crate) fn changed(&self, port: u8, event: PortEvent) {
        let mut state = self.state();
        match event {
            PortEvent::Down => state.book.went_down(port),
            PortEvent::Active
            | PortEvent::Lid
            | PortEvent::Sm
            | PortEvent::Reregister
            | PortEvent::Gids
            | PortEvent::Pkeys => state.book.changed(port, Instant::now()),
            PortEvent::VirtualLanes => return,
        }
        drop(state);
        self.tell();
    }

    /// Events were lost: anything may have happened to any port.
    pub(crate) fn lost(&self) {
        self.state().book.changed_all(Instant::now());
        self.tell();
    }

    /// There may be something else to do, and nothing to wait for.
    fn tell(&self) {
        self.work.notify_one();
        self.outcome.notify_all();
    }

    /// Waits until the subnet administrator knows which groups are left; but not for long.
    pub(crate) fn finish(&self) {
        let is_leaving = |state: &mut State| state.book.is_leaving();
        drop(self.outcome.wait_timeout_while(self.state(), LEAVE, is_leaving));
    }

    /// Forgets all groups.
    pub(crate) fn clear(&self) {
        self.state().book.clear();
        self.outcome.notify_all();
    }

    /// Takes an answer of the subnet administrator; false if the datagram is for somebody else.
    fn take(&self, received: &ReceivedMad) -> bool {
        let Some((mad, kind)) = sa::answer(&received.mad) else { return false };
        let from = (received.port, received.arrival.slid);
        let (id, status) = (mad.header.transaction_id.get(), mad.status());
        let request = self.state().book.answered(from, (id, kind), status, Instant::now());
        if let Some(request) = &request {
            report(request, status);
            self.tell();
        }
        request.is_some()
    }

    /// Asks what there is to ask, until the end.
    fn run(&self, card: &dyn Card) {
        let mut state = self.state();
        while !state.stopped {
            let now = Instant::now();
            let step = state.book.next(now);
            // A request may not have been answered in time.
            self.outcome.notify_all();
            state = match step {
                Step::Ask(request) => {
                    drop(state);
                    self.ask(card, &request);
                    self.state()
                }
                Step::Wait(Some(until)) => {
                    let wait = self.work.wait_timeout(state, until.saturating_duration_since(now));
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                Step::Wait(None) => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn ask(&self, card: &dyn Card, request: &Request) {
        let result = card.with(&mut |driver| {
            let Ready { to, mad } = Ready::new(driver, request)?;
            // The answer may come before the next line.
            if !self.state().book.sent(request, to.dlid) {
                return Ok(());
            }
            Ok(driver.send_mad(request.port, MadQueue::Gsi, &to, &mad.to_mad())?)
        });
        if let Err(error) = result {
            log::debug!("port {}: can't ask for group {}: {error}", request.port, name(request));
            self.state().book.unsent(request, Instant::now());
            self.tell();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(request: &Request) -> Ipv6Addr {
    request.group.into()
}

fn report(request: &Request, status: Status) {
    let what = match request.kind {
        Kind::Join => "join",
        Kind::Leave => "leave",
    };
    log::debug!("port {}: {what} group {}: {status:?}", request.port, name(request));
}

/// The card whose ports join groups.
pub(crate) trait Card: Send {
    /// Does something with its driver while it is up.
    fn with(&self, work: &mut dyn FnMut(&mlx4::Hca) -> Result<(), Unsent>) -> Result<(), Unsent>;
}

/// The thread that asks, until this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    groups: Arc<Groups>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(groups: &Arc<Groups>, card: impl Card + 'static) -> io::Result<Self> {
        let work = {
            let groups = Arc::clone(groups);
            move || groups.run(&card)
        };
        let thread = std::thread::Builder::new().name(THREAD.into()).spawn(work)?;
        Ok(Self { groups: Arc::clone(groups), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.groups.state().stopped = true;
        self.groups.work.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread for multicast groups has panicked");
        }
    }
}

/// Takes answers about groups, and hands everything else on.
pub(crate) struct Answers {
    pub(crate) groups: Arc<Groups>,
    pub(crate) others: Arc<dyn MadSink>,
}

impl MadSink for Answers {
    fn received(&self, mad: &ReceivedMad) -> bool {
        self.groups.take(mad) || self.others.received(mad)
    }
}
