//! What is asked, when, and what answers and silence change in the book.

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
                assert!(self.book.sent(&request, SA));
                request
            }
            Step::Wait(until) => panic!("nothing to ask, wait until {until:?}"),
        }
    }

    /// What is asked next, however long it takes.
    fn ask_in_time(&mut self) -> Request {
        loop {
            match self.book.next(self.now) {
                Step::Ask(request) => {
                    assert!(self.book.sent(&request, SA));
                    return request;
                }
                Step::Wait(until) => self.now = until.expect("there is something to ask"),
            }
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
        let answered = self.book.answered((1, SA), (request.id, request.kind), status, self.now);
        assert_eq!(answered, Some(*request));
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
    bench.answer(&join, Status::SA_REQ_DENIED);
    bench.join(GROUP);
    let join = bench.ask();
    bench.answer(&join, Status::GOOD);
    assert_eq!(bench.book.outcomes(1, &GROUP), 11);
    assert!(bench.book.group(1, &GROUP).is_some_and(|group| group.membership == Membership::Granted));
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
        let join = bench.ask_in_time();
        bench.answer(&join, Status::SA_REQ_INVALID);
    }
    let mut asked = 0;
    let end = bench.now + Duration::from_secs(60);
    while bench.now < end {
        match bench.book.next(bench.now) {
            Step::Ask(request) => {
                assert!(bench.book.sent(&request, SA));
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
fn port_that_asks_without_pause_asks_two_hundred_times_a_second() {
    let mut bench = Bench::new();
    let end = bench.now + Duration::from_secs(10);
    let mut asked = 0;
    while bench.now < end {
        bench.join(GROUP);
        let join = bench.ask_in_time();
        bench.answer(&join, Status::GOOD);
        bench.leave(GROUP);
        let leave = bench.ask_in_time();
        bench.answer(&leave, Status::GOOD);
        asked += 2;
    }
    assert!((2000..2100).contains(&asked), "{asked} in 10 s");
    bench.now += BURST;
    for n in 0..64 {
        bench.join([n; 16]);
        let join = bench.ask();
        bench.answer(&join, Status::GOOD);
    }
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
    let late = bench.book.answered((1, SA), (leave.id, leave.kind), Status::GOOD, bench.now);
    assert_eq!(late, None, "it is late");
    bench.join(GROUP);
    assert_eq!(bench.idle().map(|idle| idle.as_millis()), Some(1000));
    bench.book.changed(1, bench.now);
    assert_eq!(bench.ask().kind, Kind::Join);
}

#[test]
fn administrator_that_is_busy_is_left_alone_for_a_while_and_a_leave_asked_for_again() {
    let mut bench = Bench::new();
    bench.joined(GROUP);
    bench.leave(GROUP);
    let leave = bench.ask();
    bench.answer(&leave, Status::BUSY);
    assert_eq!(bench.idle(), Some(FIRST_RETRY));
    bench.now += FIRST_RETRY;
    assert_eq!(bench.ask().kind, Kind::Leave);
}

#[test]
fn group_is_left_if_the_join_may_have_been_granted() {
    let ends: [fn(&mut Bench); 3] = [
        |bench| bench.now += ANSWER,
        |bench| bench.book.changed(1, bench.now),
        |bench| {
            bench.now += ANSWER;
            bench.idle();
        },
    ];
    for end in ends {
        let mut bench = Bench::new();
        bench.join(GROUP);
        bench.ask();
        end(&mut bench);
        bench.leave(GROUP);
        assert!(bench.book.is_leaving());
        let leave = bench.ask_in_time();
        assert_eq!(leave.kind, Kind::Leave);
        bench.answer(&leave, Status::GOOD);
        assert!(bench.book.group(1, &GROUP).is_none());
    }
}

#[test]
fn group_is_not_left_if_the_join_was_never_sent() {
    let mut bench = Bench::new();
    bench.join(GROUP);
    let Step::Ask(join) = bench.book.next(bench.now) else { panic!("nothing to ask") };
    bench.book.unsent(&join, bench.now);
    bench.leave(GROUP);
    assert!(bench.book.group(1, &GROUP).is_none());
}

#[test]
fn answer_of_another_end_or_request_counts_for_nothing() {
    let mut bench = Bench::new();
    bench.join(GROUP);
    let join = bench.ask();
    let mut answer = |from, id| bench.book.answered(from, (id, Kind::Join), Status::GOOD, bench.now);
    assert_eq!(answer((1, SA + 1), join.id), None);
    assert_eq!(answer((2, SA), join.id), None);
    assert_eq!(answer((1, SA), join.id + 1), None);
    assert_eq!(answer((1, SA), join.id), Some(join));
    assert_eq!(answer((1, SA), join.id), None);
}

#[test]
fn groups_are_joined_again_when_the_subnet_changes_and_left_only_when_the_port_is_up() {
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
    assert!(!bench.book.is_leaving(), "nobody can be told");
    assert_eq!(bench.idle(), None, "nothing until it is up");
    bench.book.changed_all(bench.now);
    let leave = bench.ask();
    assert_eq!((leave.group, leave.kind), (other, Kind::Leave), "the administrator may not have noticed");
    bench.answer(&leave, Status::SA_REQ_INVALID);
    let join = bench.ask();
    assert_eq!((join.group, join.kind), (GROUP, Kind::Join));
}

#[test]
fn group_that_is_wanted_again_while_it_is_left_is_joined_whatever_becomes_of_that() {
    for is_answered in [true, false] {
        let mut bench = Bench::new();
        bench.joined(GROUP);
        bench.leave(GROUP);
        let leave = bench.ask();
        bench.join(GROUP);
        assert!(bench.book.is_open(1, &GROUP, 1, bench.now), "it isn't in the group for long");
        if is_answered {
            bench.answer(&leave, Status::GOOD);
            assert!(bench.book.is_open(1, &GROUP, 1, bench.now), "nor now");
        }
        let join = bench.ask_in_time();
        assert_eq!(join.kind, Kind::Join);
        bench.answer(&join, Status::GOOD);
        assert!(!bench.book.is_open(1, &GROUP, 1, bench.now));
    }
}

#[test]
fn group_that_was_refused_has_its_turn_while_others_are_asked_for_without_pause() {
    let mut bench = Bench::new();
    let refused = [1; 16];
    bench.join(refused);
    let join = bench.ask();
    bench.answer(&join, Status::SA_REQ_INVALID);
    let tried_again = (0..400u16).any(|n| {
        let mut gid = GROUP;
        gid[..2].copy_from_slice(&n.to_be_bytes());
        bench.join(gid);
        bench.join(GROUP);
        let asked = bench.ask_in_time();
        bench.answer(&asked, Status::GOOD);
        asked.group == refused
    });
    assert!(tried_again);
}

#[test]
fn group_that_waits_keeps_its_place_when_another_queue_pair_joins() {
    let mut bench = Bench::new();
    let first = [2; 16];
    bench.join(first);
    bench.now += Duration::from_millis(1);
    bench.join(GROUP);
    bench.now += Duration::from_millis(1);
    bench.join(first);
    assert_eq!(bench.ask().group, first);
}

#[test]
fn request_that_the_subnet_has_overtaken_is_not_sent() {
    let mut bench = Bench::new();
    bench.join(GROUP);
    let Step::Ask(join) = bench.book.next(bench.now) else { panic!("nothing to ask") };
    bench.book.changed(1, bench.now);
    assert!(!bench.book.sent(&join, SA));
    assert_eq!(bench.ask().kind, Kind::Join);
}
