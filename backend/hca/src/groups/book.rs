//! Which multicast groups ports shall be in, which they are in, and what the subnet administrator is to be asked
//! next. It neither sends nor waits: `super` does.
//!
//! One request of a port is under way at a time. A group that the administrator refuses, as it does one that nobody
//! has created yet, is asked for again, each time later, and in the end the later the more such groups there are:
//! guests choose groups. Those that have failed before and those that haven't take turns, each by when they are due. And as they choose how often, too, no port asks for more than the administrator of a subnet can bear.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use mlx4::Gid;
use mlx4_wire::mad::header::Status;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How soon a refused join is tried again; each time twice as late.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// It is tried at least this often; as is an administrator that doesn't answer.
const LAST_RETRY: Duration = Duration::from_secs(16);
/// What each refused group adds to the time between two late tries of one: all together are as many as 100 a second.
const PER_REFUSED: Duration = Duration::from_millis(10);
/// What each request adds to the time until a port that asks without pause may ask again: 200 a second.
const PER_REQUEST: Duration = Duration::from_millis(5);
/// So much of it may add up: so many requests at once.
const BURST: Duration = PER_REQUEST.saturating_mul(64);
/// How often an administrator that doesn't answer is told that a port leaves a group.
const LEAVE_TRIES: u32 = 3;
/// Upper half of the transaction ids, so that others' are told from them.
const TRANSACTIONS: u64 = 0x7076_6d63 << 32;

/// What the subnet administrator is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Transaction id.
    pub(super) id: u64,
    pub(super) port: u8,
    pub(super) group: Gid,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Join,
    Leave,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask. Then [`Book::sent`] or [`Book::unsent`] is told.
    Ask(Request),
    /// Wait, at most until then.
    Wait(Option<Instant>),
}

/// What the administrator has of a port in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Membership {
    /// Nothing.
    #[default]
    None,
    /// It has been asked for, and may have been granted.
    Asked,
    /// It has said that the port is in it.
    Granted,
}

#[derive(Debug, Default)]
struct Group {
    /// Queue pairs in it, on this port.
    users: u32,
    membership: Membership,
    /// Joins that were answered, or weren't in time.
    outcomes: u64,
    /// Requests in a row that have failed.
    failures: u32,
    /// When it is asked for next, if it is, and whether that has failed before.
    due: Option<(bool, Instant)>,
}

#[derive(Debug)]
struct UnderWay {
    request: Request,
    until: Instant,
    /// LID that it was sent to.
    lid: Option<u16>,
}

#[derive(Debug, Default)]
struct Port {
    groups: BTreeMap<Gid, Group>,
    /// Groups by when they are due: those that haven't failed before.
    fresh: BTreeSet<(Instant, Gid)>,
    /// Those that have.
    failed: BTreeSet<(Instant, Gid)>,
    /// Whose turn it is, if both are due.
    is_turn_of_failed: bool,
    under_way: Option<UnderWay>,
    /// Requests in a row that weren't answered.
    silences: u32,
    /// The administrator, or the port, isn't tried before.
    quiet_until: Option<Instant>,
    /// When all requests would be done if each took [`PER_REQUEST`].
    paid: Option<Instant>,
}

/// Twice as long each time.
fn later(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(LAST_RETRY)
}

impl Port {
    fn set_due(&mut self, gid: Gid, due: Option<Instant>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let due = due.map(|due| (group.failures > 0, due));
        if let Some((has_failed, before)) = std::mem::replace(&mut group.due, due) {
            self.queue(has_failed).remove(&(before, gid));
        }
        if let Some((has_failed, due)) = due {
            self.queue(has_failed).insert((due, gid));
        }
    }

    fn queue(&mut self, has_failed: bool) -> &mut BTreeSet<(Instant, Gid)> {
        if has_failed { &mut self.failed } else { &mut self.fresh }
    }

    /// The group that is asked for next, and when it is due.
    fn first_due(&self, now: Instant) -> Option<(Instant, Gid)> {
        let firsts = [&self.fresh, &self.failed].map(|queue| queue.first().copied());
        match firsts {
            [Some(fresh), Some(failed)] if fresh.0 <= now && failed.0 <= now => {
                Some(if self.is_turn_of_failed { failed } else { fresh })
            }
            firsts => firsts.into_iter().flatten().min(),
        }
    }

    fn forget(&mut self, gid: Gid) {
        self.set_due(gid, None);
        self.groups.remove(&gid);
    }

    fn is_under_way(&self, gid: &Gid) -> bool {
        self.under_way.as_ref().is_some_and(|under_way| under_way.request.group == *gid)
    }

    /// Has a group asked for if it isn't as it shall be, and forgets it if nothing is left of it.
    fn settle(&mut self, gid: Gid, now: Instant) {
        let Some(group) = self.groups.get(&gid) else { return };
        // It keeps its place if it is waiting already.
        let soonest = group.due.map_or(now, |(_, due)| due.min(now));
        match (group.users > 0, group.membership) {
            _ if self.is_under_way(&gid) => {}
            (false, Membership::None) => self.forget(gid),
            (true, Membership::Granted) => self.set_due(gid, None),
            _ => self.set_due(gid, Some(soonest)),
        }
    }

    fn join(&mut self, gid: Gid, now: Instant) {
        let group = self.groups.entry(gid).or_default();
        group.users = group.users.saturating_add(1);
        if group.membership != Membership::Granted {
            group.failures = 0;
        }
        self.settle(gid, now);
    }

    fn leave(&mut self, gid: Gid, now: Instant) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.users = group.users.saturating_sub(1);
        if group.users == 0 {
            group.failures = 0;
            self.settle(gid, now);
        }
    }

    /// The port is down. Nothing is asked until it is up again, but for what changes meanwhile; whether the
    /// administrator has noticed, nobody knows.
    fn went_down(&mut self) {
        self.under_way = None;
        for gid in self.groups.keys().copied().collect::<Vec<_>>() {
            self.doubt(gid);
            self.set_due(gid, None);
            if self
                .groups
                .get(&gid)
                .is_some_and(|group| group.users == 0 && group.membership == Membership::None)
            {
                self.forget(gid);
            }
        }
    }

    /// What the administrator has said of a group may not hold any more.
    fn doubt(&mut self, gid: Gid) {
        let group = self.groups.get_mut(&gid);
        if let Some(group) = group.filter(|group| group.membership == Membership::Granted) {
            group.membership = Membership::Asked;
        }
    }

    /// Who the administrator is may have changed, or whom it knows: all groups are joined again.
    fn changed(&mut self, now: Instant) {
        self.under_way = None;
        (self.silences, self.quiet_until) = (0, None);
        for gid in self.groups.keys().copied().collect::<Vec<_>>() {
            if let Some(group) = self.groups.get_mut(&gid) {
                group.failures = 0;
            }
            self.doubt(gid);
            self.settle(gid, now);
        }
    }

    /// What is to be asked now, or when to look again.
    fn next(&mut self, number: u8, id: u64, now: Instant) -> Step {
        if let Some(UnderWay { request, until, .. }) = &self.under_way {
            if now < *until {
                return Step::Wait(Some(*until));
            }
            let request = *request;
            self.silent(&request, now);
        }
        if let Some(until) = self.quiet_until.filter(|until| now < *until) {
            return Step::Wait(Some(until));
        }
        let Some((due, gid)) = self.first_due(now) else { return Step::Wait(None) };
        let free = self.paid.and_then(|paid| paid.checked_sub(BURST)).map_or(due, |free| free.max(due));
        if now < free {
            return Step::Wait(Some(free));
        }
        self.paid = Some(self.paid.map_or(now, |paid| paid.max(now)) + PER_REQUEST);
        self.is_turn_of_failed = !self.failed.contains(&(due, gid));
        self.set_due(gid, None);
        let is_wanted = self.groups.get(&gid).is_some_and(|group| group.users > 0);
        let kind = if is_wanted { Kind::Join } else { Kind::Leave };
        let request = Request { id, port: number, group: gid, kind };
        self.under_way = Some(UnderWay { request, until: now + ANSWER, lid: None });
        Step::Ask(request)
    }

    /// The request under way is about to be sent to a LID.
    fn sent(&mut self, lid: u16) {
        let Some(under_way) = &mut self.under_way else { return };
        under_way.lid = Some(lid);
        if let Some(group) = self.groups.get_mut(&under_way.request.group) {
            group.membership = Membership::Asked;
        }
    }

    /// The request under way couldn't be sent, wasn't answered in time, or the administrator was too busy for it.
    fn silent(&mut self, request: &Request, now: Instant) {
        let was_sent = self.under_way.take().is_some_and(|under_way| under_way.lid.is_some());
        self.quiet_until = Some(now + later(FIRST_RETRY, self.silences));
        self.silences = self.silences.saturating_add(1);
        let Some(group) = self.groups.get_mut(&request.group) else { return };
        group.outcomes += u64::from(request.kind == Kind::Join);
        group.failures += u32::from(was_sent);
        if request.kind == Kind::Leave && group.failures >= LEAVE_TRIES {
            group.membership = Membership::None;
        }
        self.settle(request.group, now);
    }

    fn answered(&mut self, request: &Request, status: Status, now: Instant) {
        if status == Status::BUSY {
            return self.silent(request, now);
        }
        self.under_way = None;
        (self.silences, self.quiet_until) = (0, None);
        let refused = self.groups.values().filter(|group| group.failures > 0).count();
        let Some(group) = self.groups.get_mut(&request.group) else { return };
        group.outcomes += u64::from(request.kind == Kind::Join);
        // Who is told that a port leaves has it no longer, whatever it says.
        let is_granted = request.kind == Kind::Join && status == Status::GOOD;
        group.membership = if is_granted { Membership::Granted } else { Membership::None };
        let is_refused = request.kind == Kind::Join && !is_granted && group.users > 0;
        if !is_refused {
            group.failures = 0;
            return self.settle(request.group, now);
        }
        let mut retry = later(FIRST_RETRY, group.failures);
        if retry == LAST_RETRY {
            retry = retry.max(PER_REFUSED.saturating_mul(u32::try_from(refused).unwrap_or(u32::MAX)));
        }
        group.failures = group.failures.saturating_add(1);
        self.set_due(request.group, Some(now + retry));
    }
}

/// Groups of all ports.
#[derive(Debug)]
pub(super) struct Book {
    ports: BTreeMap<u8, Port>,
    /// Lower half of the next transaction id.
    requests: u32,
}

impl Default for Book {
    /// Transaction ids begin anywhere, so that an answer to an earlier daemon is none to this one.
    fn default() -> Self {
        let random = RandomState::new().build_hasher().finish();
        Self { ports: BTreeMap::new(), requests: (random >> 32) as u32 }
    }
}

impl Book {
    /// A queue pair on a port is in a group from now on.
    pub(super) fn join(&mut self, port: u8, gid: Gid, now: Instant) {
        self.ports.entry(port).or_default().join(gid, now);
    }

    /// It isn't any more.
    pub(super) fn leave(&mut self, port: u8, gid: Gid, now: Instant) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.leave(gid, now);
        }
    }

    /// The port is down.
    pub(super) fn went_down(&mut self, port: u8) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.went_down();
        }
    }

    /// The port, or its subnet, isn't as it was.
    pub(super) fn changed(&mut self, port: u8, now: Instant) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.changed(now);
        }
    }

    /// So may all ports.
    pub(super) fn changed_all(&mut self, now: Instant) {
        self.ports.values_mut().for_each(|port| port.changed(now));
    }

    /// All queue pairs are gone, and so is the card's port.
    pub(super) fn clear(&mut self) {
        self.ports.clear();
    }

    /// Whether a port is still to leave a group, and can be told to.
    pub(super) fn is_leaving(&self) -> bool {
        self.ports.values().any(|port| {
            let is_asked = |gid: &Gid, group: &Group| group.due.is_some() || port.is_under_way(gid);
            port.groups.iter().any(|(gid, group)| group.users == 0 && is_asked(gid, group))
        })
    }

    /// How often the administrator has been asked to join a group, in vain or not.
    pub(super) fn outcomes(&self, port: u8, gid: &Gid) -> u64 {
        self.group(port, gid).map_or(0, |group| group.outcomes)
    }

    /// Whether it may become clear soon that a port is in a group, or isn't: it hasn't since there were so many
    /// outcomes, and the administrator isn't one that didn't answer lately.
    pub(super) fn is_open(&self, port: u8, gid: &Gid, outcomes: u64, now: Instant) -> bool {
        let is_quiet = |port: &Port| port.quiet_until.is_some_and(|until| now < until);
        !self.ports.get(&port).is_some_and(is_quiet)
            && self.group(port, gid).is_some_and(|group| {
                let is_wanted = group.users > 0 && group.membership != Membership::Granted;
                is_wanted && group.outcomes == outcomes
            })
    }

    fn group(&self, port: u8, gid: &Gid) -> Option<&Group> {
        self.ports.get(&port)?.groups.get(gid)
    }

    /// What is to be done next.
    pub(super) fn next(&mut self, now: Instant) -> Step {
        let id = TRANSACTIONS | u64::from(self.requests);
        let mut wake: Option<Instant> = None;
        for (number, port) in &mut self.ports {
            match port.next(*number, id, now) {
                Step::Ask(request) => {
                    self.requests = self.requests.wrapping_add(1);
                    return Step::Ask(request);
                }
                Step::Wait(until) => wake = wake.into_iter().chain(until).min(),
            }
        }
        Step::Wait(wake)
    }

    /// A request is about to be sent to a LID. False if it isn't to be sent any more.
    #[must_use]
    pub(super) fn sent(&mut self, request: &Request, lid: u16) -> bool {
        let is_under_way = self.under_way(request.port, request.id).is_some();
        if let Some(port) = self.ports.get_mut(&request.port).filter(|_| is_under_way) {
            port.sent(lid);
        }
        is_under_way
    }

    /// A request couldn't be sent.
    pub(super) fn unsent(&mut self, request: &Request, now: Instant) {
        if self.under_way(request.port, request.id).is_some()
            && let Some(port) = self.ports.get_mut(&request.port)
        {
            port.silent(request, now);
        }
    }

    /// An answer came through a port from a LID. The request that it is for, if there is one.
    pub(super) fn answered(
        &mut self,
        (port, lid): (u8, u16),
        (id, kind): (u64, Kind),
        status: Status,
        now: Instant,
    ) -> Option<Request> {
        let is_it = |under_way: &&mut UnderWay| under_way.lid == Some(lid) && under_way.request.kind == kind;
        let request = self.under_way(port, id).filter(is_it)?.request;
        self.ports.get_mut(&port)?.answered(&request, status, now);
        Some(request)
    }

    fn under_way(&mut self, port: u8, id: u64) -> Option<&mut UnderWay> {
        self.ports.get_mut(&port)?.under_way.as_mut().filter(|under_way| under_way.request.id == id)
    }
}

#[cfg(test)]
mod tests;
