//! Which multicast groups ports shall be in, which they are in, and what the subnet administrator is to be asked
//! next. It neither sends nor waits: `super` does.
//!
//! One request of a port is under way at a time. A group that the administrator refuses, as it does one that nobody
//! has created yet, is asked for again, each time later, and the later the more such groups there are: guests choose
//! groups.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mlx4::Gid;
use mlx4_wire::mad::header::Status;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How soon a refused join is tried again; each time twice as late.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// It is tried at least this often; as is an administrator that doesn't answer.
const LAST_RETRY: Duration = Duration::from_secs(16);
/// What each refused group adds to the time between two tries of one: all together are as many as 100 a second.
const PER_REFUSED: Duration = Duration::from_millis(10);
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

#[derive(Debug, Default)]
struct Group {
    /// Queue pairs in it, on this port.
    users: u32,
    /// The administrator has the port in it.
    is_member: bool,
    /// Requests that were answered, or weren't in time.
    outcomes: u64,
    /// Of these, how many in a row have failed.
    failures: u32,
    /// When it is asked for next, if it is; after others if that has failed before.
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
    /// Groups by when they are due: first those that haven't failed, which are so at once.
    due: BTreeSet<(bool, Instant, Gid)>,
    under_way: Option<UnderWay>,
    /// Requests in a row that weren't answered.
    silences: u32,
    /// The administrator, or the port, isn't tried before.
    quiet_until: Option<Instant>,
}

/// Twice as long each time.
fn later(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(LAST_RETRY)
}

impl Port {
    fn set_due(&mut self, gid: Gid, due: Option<Instant>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let due = due.map(|due| (group.failures > 0, due));
        if let Some((failed, before)) = std::mem::replace(&mut group.due, due) {
            self.due.remove(&(failed, before, gid));
        }
        self.due.extend(due.map(|(failed, due)| (failed, due, gid)));
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
        match (group.users > 0, group.is_member) {
            _ if self.is_under_way(&gid) => {}
            (false, false) => self.forget(gid),
            (true, true) => self.set_due(gid, None),
            (true, false) | (false, true) => self.set_due(gid, Some(now)),
        }
    }

    fn join(&mut self, gid: Gid, now: Instant) {
        let group = self.groups.entry(gid).or_default();
        group.users = group.users.saturating_add(1);
        if !group.is_member {
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

    /// The port is down: it is in no group any more, so there is none to leave.
    fn went_down(&mut self) {
        self.under_way = None;
        for group in self.groups.values_mut() {
            group.is_member = false;
        }
        let left = self.groups.iter().filter(|(_, group)| group.users == 0).map(|(gid, _)| *gid);
        left.collect::<Vec<_>>().into_iter().for_each(|gid| self.forget(gid));
    }

    /// Who the administrator is may have changed, or whom it knows: all groups are joined again.
    fn changed(&mut self, now: Instant) {
        self.under_way = None;
        (self.silences, self.quiet_until) = (0, None);
        for gid in self.groups.keys().copied().collect::<Vec<_>>() {
            if let Some(group) = self.groups.get_mut(&gid) {
                group.failures = 0;
                group.is_member &= group.users == 0;
            }
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
        let Some(&(_, due, gid)) = self.due.first() else { return Step::Wait(None) };
        if now < due {
            return Step::Wait(Some(due));
        }
        self.set_due(gid, None);
        let is_wanted = self.groups.get(&gid).is_some_and(|group| group.users > 0);
        let kind = if is_wanted { Kind::Join } else { Kind::Leave };
        let request = Request { id, port: number, group: gid, kind };
        self.under_way = Some(UnderWay { request, until: now + ANSWER, lid: None });
        Step::Ask(request)
    }

    /// The request under way couldn't be sent, or wasn't answered in time.
    fn silent(&mut self, request: &Request, now: Instant) {
        self.under_way = None;
        self.quiet_until = Some(now + later(FIRST_RETRY, self.silences));
        self.silences = self.silences.saturating_add(1);
        let Some(group) = self.groups.get_mut(&request.group) else { return };
        group.outcomes += 1;
        group.failures = group.failures.saturating_add(1);
        if request.kind == Kind::Leave && group.failures >= LEAVE_TRIES {
            group.is_member = false;
        }
        self.settle(request.group, now);
    }

    fn answered(&mut self, request: &Request, status: Status, now: Instant) {
        self.under_way = None;
        (self.silences, self.quiet_until) = (0, None);
        let refused = self.groups.values().filter(|group| group.failures > 0).count();
        let Some(group) = self.groups.get_mut(&request.group) else { return };
        group.outcomes += 1;
        // Who is told that a port leaves has it no longer, whatever it says.
        group.is_member = request.kind == Kind::Join && status == Status::GOOD;
        let is_refused = request.kind == Kind::Join && !group.is_member && group.users > 0;
        if !is_refused {
            group.failures = 0;
            return self.settle(request.group, now);
        }
        let each = PER_REFUSED.saturating_mul(u32::try_from(refused).unwrap_or(u32::MAX));
        let retry = later(FIRST_RETRY, group.failures).max(each);
        group.failures = group.failures.saturating_add(1);
        self.set_due(request.group, Some(now + retry));
    }
}

/// Groups of all ports.
#[derive(Debug, Default)]
pub(super) struct Book {
    ports: BTreeMap<u8, Port>,
    requests: u32,
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

    /// All queue pairs are gone, and so is the card's port.
    pub(super) fn clear(&mut self) {
        self.ports.clear();
    }

    /// Whether a port is still to leave a group.
    pub(super) fn is_leaving(&self) -> bool {
        self.ports.values().flat_map(|port| port.groups.values()).any(|group| group.users == 0)
    }

    /// How often the administrator has been asked for a group, in vain or not.
    pub(super) fn outcomes(&self, port: u8, gid: &Gid) -> u64 {
        self.group(port, gid).map_or(0, |group| group.outcomes)
    }

    /// Whether it may become clear soon that a port is in a group, or isn't: it hasn't since there were so many
    /// outcomes, and the administrator isn't one that didn't answer lately.
    pub(super) fn is_open(&self, port: u8, gid: &Gid, outcomes: u64, now: Instant) -> bool {
        let is_quiet = |port: &Port| port.quiet_until.is_some_and(|until| now < until);
        !self.ports.get(&port).is_some_and(is_quiet)
            && self.group(port, gid).is_some_and(|group| !group.is_member && group.outcomes == outcomes)
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

    /// A request is about to be sent to a LID.
    pub(super) fn sent(&mut self, request: &Request, lid: u16) {
        if let Some(under_way) = self.under_way(request.port, request.id) {
            under_way.lid = Some(lid);
        }
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
        id: u64,
        status: Status,
        now: Instant,
    ) -> Option<Request> {
        let request = self.under_way(port, id).filter(|under_way| under_way.lid == Some(lid))?.request;
        self.ports.get_mut(&port)?.answered(&request, status, now);
        Some(request)
    }

    fn under_way(&mut self, port: u8, id: u64) -> Option<&mut UnderWay> {
        self.ports.get_mut(&port)?.under_way.as_mut().filter(|under_way| under_way.request.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Gid = [0xff; 16];
    const SA: u16 = 7;

    /// A book, and a clock.
    struct Bench {
        book: Book,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { book: Book::default(), now: Instant::now() }
        }

        fn join(&mut self, gid: Gid) {
            self.book.join(1, gid, self.now);
        }

        fn leave(&mut self, gid: Gid) {
            self.book.leave(1, gid, self.now);
        }

        fn ask(&mut self) -> Request {
            match self.book.next(self.now) {
                Step::Ask(request) => {
                    self.book.sent(&request, SA);
                    request
                }
                Step::Wait(until) => panic!("nothing to ask, wait until {until:?}"),
            }
        }

        /// How long nothing is to be asked; `None`: until something changes.
        fn idle(&mut self) -> Option<Duration> {
            match self.book.next(self.now) {
                Step::Wait(until) => until.map(|until| until - self.now),
                Step::Ask(request) => panic!("{request:?}"),
            }
        }

        fn answer(&mut self, request: &Request, status: Status) {
            assert_eq!(self.book.answered((1, SA), request.id, status, self.now), Some(*request));
        }

        fn joined(&mut self, gid: Gid) {
            self.join(gid);
            let request = self.ask();
            assert_eq!((request.group, request.kind), (gid, Kind::Join));
            self.answer(&request, Status::GOOD);
            assert_eq!(self.idle(), None);
        }
    }

    #[test]
    fn group_is_joined_for_the_first_queue_pair_and_left_after_the_last() {
        let mut bench = Bench::new();
        bench.joined(GROUP);
        bench.join(GROUP);
        bench.leave(GROUP);
        assert_eq!(bench.idle(), None);
        bench.leave(GROUP);
        assert!(bench.book.is_leaving());
        let leave = bench.ask();
        assert_eq!(leave.kind, Kind::Leave);
        bench.answer(&leave, Status::GOOD);
        assert!(bench.book.group(1, &GROUP).is_none());
        assert_eq!(bench.idle(), None);
        assert!(!bench.book.is_leaving());
    }

    #[test]
    fn what_changes_while_a_request_is_under_way_comes_after_it() {
        let mut bench = Bench::new();
        bench.join(GROUP);
        let join = bench.ask();
        bench.leave(GROUP);
        assert_eq!(bench.idle(), Some(ANSWER));
        bench.answer(&join, Status::GOOD);
        let leave = bench.ask();
        assert_eq!(leave.kind, Kind::Leave);
        bench.join(GROUP);
        bench.answer(&leave, Status::GOOD);
        let again = bench.ask();
        assert_eq!(again.kind, Kind::Join);
        bench.leave(GROUP);
        bench.answer(&again, Status::SA_REQ_INVALID);
        assert!(bench.book.group(1, &GROUP).is_none());
        assert_eq!(bench.idle(), None);
    }

    #[test]
    fn refused_group_is_asked_for_ever_later_but_for_another_queue_pair_at_once() {
        let mut bench = Bench::new();
        bench.join(GROUP);
        let mut waited = Vec::new();
        for _ in 0..9 {
            let join = bench.ask();
            bench.answer(&join, Status::SA_REQ_INSUFFICIENT_COMPONENTS);
            let wait = bench.idle().unwrap();
            waited.push(wait.as_millis());
            bench.now += wait;
        }
        assert_eq!(waited, [250, 500, 1000, 2000, 4000, 8000, 16_000, 16_000, 16_000]);
        let join = bench.ask();
        bench.answer(&join, Status::BUSY);
        bench.join(GROUP);
        let join = bench.ask();
        bench.answer(&join, Status::GOOD);
        assert_eq!(bench.book.outcomes(1, &GROUP), 11);
        assert!(bench.book.group(1, &GROUP).is_some_and(|group| group.is_member));
    }

    #[test]
    fn who_joins_waits_for_an_answer_and_not_for_an_administrator_that_gives_none() {
        let mut bench = Bench::new();
        bench.join(GROUP);
        assert!(bench.book.is_open(1, &GROUP, 0, bench.now));
        let join = bench.ask();
        bench.answer(&join, Status::SA_REQ_INVALID);
        assert!(!bench.book.is_open(1, &GROUP, 0, bench.now), "it was refused");
        let other = [0xfe; 16];
        bench.join(other);
        bench.ask();
        assert!(bench.book.is_open(1, &other, 0, bench.now));
        bench.now += ANSWER;
        bench.idle();
        assert!(!bench.book.is_open(1, &other, 1, bench.now), "nobody answers");
        bench.book.changed(1, bench.now);
        assert!(bench.book.is_open(1, &other, 1, bench.now));
        bench.leave(other);
        assert!(!bench.book.is_open(1, &other, 1, bench.now), "it is wanted no more");
    }

    #[test]
    fn many_refused_groups_are_asked_for_less_often() {
        let mut bench = Bench::new();
        let groups = (0..200u8).map(|n| [n; 16]).collect::<Vec<_>>();
        for group in &groups {
            bench.join(*group);
            let join = bench.ask();
            bench.answer(&join, Status::SA_REQ_INVALID);
        }
        let mut asked = 0;
        let end = bench.now + Duration::from_secs(60);
        while bench.now < end {
            match bench.book.next(bench.now) {
                Step::Ask(request) => {
                    bench.book.sent(&request, SA);
                    bench.answer(&request, Status::SA_REQ_INVALID);
                    asked += 1;
                }
                Step::Wait(until) => bench.now = until.unwrap(),
            }
        }
        assert!((600..6000).contains(&asked), "{asked} in a minute");
        // One that is new doesn't wait for them.
        bench.join(GROUP);
        assert_eq!(bench.ask().group, GROUP);
    }

    #[test]
    fn administrator_that_is_silent_is_tried_ever_later_and_told_three_times_of_a_leave() {
        let mut bench = Bench::new();
        bench.joined(GROUP);
        bench.leave(GROUP);
        for quiet in [250, 500] {
            let leave = bench.ask();
            assert_eq!((leave.kind, bench.idle()), (Kind::Leave, Some(ANSWER)));
            bench.now += ANSWER;
            assert_eq!(bench.idle(), Some(Duration::from_millis(quiet)));
            bench.now += Duration::from_millis(quiet);
        }
        let leave = bench.ask();
        bench.now += ANSWER;
        assert_eq!(bench.idle().map(|idle| idle.as_millis()), Some(1000));
        assert!(bench.book.group(1, &GROUP).is_none());
        assert_eq!(bench.book.answered((1, SA), leave.id, Status::GOOD, bench.now), None, "it is late");
        bench.join(GROUP);
        assert_eq!(bench.idle().map(|idle| idle.as_millis()), Some(1000));
        bench.book.changed(1, bench.now);
        assert_eq!(bench.ask().kind, Kind::Join);
    }

    #[test]
    fn answer_of_another_end_or_request_counts_for_nothing() {
        let mut bench = Bench::new();
        bench.join(GROUP);
        let join = bench.ask();
        let mut answer = |from, id| bench.book.answered(from, id, Status::GOOD, bench.now);
        assert_eq!(answer((1, SA + 1), join.id), None);
        assert_eq!(answer((2, SA), join.id), None);
        assert_eq!(answer((1, SA), join.id + 1), None);
        assert_eq!(answer((1, SA), join.id), Some(join));
        assert_eq!(answer((1, SA), join.id), None);
    }

    #[test]
    fn groups_are_joined_again_when_the_subnet_changes_and_none_is_left_when_the_port_is_down() {
        let mut bench = Bench::new();
        let other = [0xfe; 16];
        bench.joined(GROUP);
        bench.joined(other);
        bench.leave(other);
        bench.book.changed(1, bench.now);
        let asked = [bench.ask(), {
            let first = bench.book.ports[&1].under_way.as_ref().unwrap().request;
            bench.answer(&first, Status::GOOD);
            bench.ask()
        }];
        assert_eq!(
            asked.map(|request| (request.group, request.kind)),
            [(other, Kind::Leave), (GROUP, Kind::Join)]
        );
        bench.answer(&asked[1], Status::GOOD);

        bench.joined(other);
        bench.leave(other);
        bench.book.went_down(1);
        assert!(bench.book.group(1, &other).is_none() && !bench.book.is_leaving());
        assert_eq!(bench.idle(), None, "nothing until it is up");
        bench.book.changed(1, bench.now);
        assert_eq!(bench.ask().group, GROUP);
    }
}
