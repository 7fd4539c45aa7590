//! Who is woken for a message if nobody polls: the daemon by the doorbell, and the guest by the completion.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use paraverbs_verbs::SendOp;
use virtio_rdma::request::query::Stats;

use super::scene::{End, PATIENCE, Scene, eventually};

const MESSAGES: u64 = 200;
/// Queue pairs that write, each with a CQ that is armed in advance, and rounds of one message each.
const PAIRS: usize = 20;
const ROUNDS: u64 = MESSAGES / PAIRS as u64;
/// The subnet manager, whose datagrams the relay's thread carries too, and the watch over the HCA wake up on their own,
/// every few seconds.
const ATTEMPTS: u32 = 20;

/// Threads of the daemon that messages between guests go through: the relay's, those of event queues, the workers of
/// connections. All workers have one name.
const THREADS: [&str; 3] = ["rdma-relay", "mlx4-comp", "vring_worker"];

fn stats(scene: &Scene) -> Stats {
    let guests = scene.daemon.status().guests;
    guests.into_iter().find(|guest| guest.name == "a").unwrap().stats.unwrap()
}

/// A thread at a moment.
struct Thread {
    name: String,
    asleep: bool,
    /// How often it has gone to sleep by itself, to be woken.
    sleeps: u64,
}

impl Thread {
    /// One of this process; none if it has ended.
    fn of(id: &str) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/self/task/{id}/status")).ok()?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let sleeps = field("voluntary_ctxt_switches")?.parse().ok()?;
        Some(Self { name: field("Name")?.to_owned(), asleep: field("State")?.starts_with('S'), sleeps })
    }

    /// Those of the daemon that messages go through, by their id.
    fn of_daemon() -> BTreeMap<String, Self> {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let ids = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
        let all = ids.filter_map(|id| Some((id.clone(), Self::of(&id)?)));
        all.filter(|(_, thread)| THREADS.iter().any(|name| thread.name.starts_with(name))).collect()
    }
}

/// How often the daemon's threads have gone to sleep, by name, and this one, once all of the daemon's are asleep.
fn sleeps() -> BTreeMap<String, u64> {
    let asleep = eventually("the daemon to sleep", || {
        let threads = Thread::of_daemon();
        threads.values().all(|thread| thread.asleep).then_some(threads)
    });
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut sleeps = BTreeMap::from([("guest".to_owned(), Thread::of(&own).unwrap().sleeps)]);
    for thread in asleep.into_values() {
        *sleeps.entry(thread.name).or_default() += thread.sleeps;
    }
    sleeps
}

/// Writes one message from each end, and sleeps until its completion event is there. Answers how often which threads
/// have slept for that.
fn write_all(scene: &Scene, pairs: &[[End; 2]], round: u64) -> BTreeMap<String, u64> {
    let armed = stats(scene).arm_doorbells.get() + PAIRS as u64;
    pairs.iter().for_each(|[near, _]| near.cq.req_notify(false).unwrap());
    eventually("the CQs to be armed", || (stats(scene).arm_doorbells.get() == armed).then_some(()));
    let before = sleeps();
    for [near, far] in pairs {
        near.post(round, SendOp::Write { remote_addr: far.mr.addr(), rkey: far.mr.rkey() }, 0, 8);
        let event = near.channel.wait(PATIENCE).unwrap();
        assert_eq!(event.map(|event| event.cqn), Some(near.cq.cqn()));
        near.done(round);
    }
    let mut slept = sleeps();
    slept.iter_mut().for_each(|(name, count)| *count -= before.get(name).copied().unwrap_or(0));
    slept
}

/// Counted is every time that a thread of the daemon, or the guest's, goes to sleep and is woken again, from the post to
/// the completion. Not that a CQ is armed, which is a doorbell of its own: here all are armed in advance.
#[test]
fn message_between_sleepers_wakes_two_threads() {
    let scene = Scene::new(Some(Duration::ZERO));
    let pairs = scene.connections(PAIRS);
    let mut all = Vec::new();
    let found = (0..ATTEMPTS).any(|_| {
        let mut slept = BTreeMap::<String, u64>::new();
        for round in 0..ROUNDS {
            for (name, count) in write_all(&scene, &pairs, round) {
                *slept.entry(name).or_default() += count;
            }
        }
        let total: u64 = slept.values().sum();
        all.push(slept);
        total <= 2 * MESSAGES
    });
    assert!(found, "{MESSAGES} messages, and each time more than twice as many wake-ups: {all:?}");
    drop(pairs);
    scene.stop();
}

/// Arming is a doorbell too, and so at most one kick, besides the message's.
#[test]
fn doorbell_kicks_at_most_once_and_a_message_is_one_event() {
    let scene = Scene::new(Some(Duration::ZERO));
    let [near, far] = scene.connection();
    let op = SendOp::Write { remote_addr: far.mr.addr(), rkey: far.mr.rkey() };
    let before = stats(&scene);
    for number in 0..MESSAGES {
        near.cq.req_notify(false).unwrap();
        let armed = before.arm_doorbells.get() + number + 1;
        eventually("the CQ to be armed", || (stats(&scene).arm_doorbells.get() == armed).then_some(()));
        near.post(number, op, 0, 8);
        let event = near.channel.wait(PATIENCE).unwrap();
        assert!(event.is_some(), "no event for message {number}");
        near.done(number);
    }
    let now = stats(&scene);
    let events = now.completion_events.get() - before.completion_events.get();
    let sends = now.send_doorbells.get() - before.send_doorbells.get();
    assert_eq!([events, sends], [MESSAGES; 2]);
    let kicks = now.kicks.get() - before.kicks.get();
    assert!(kicks <= 2 * MESSAGES, "{kicks} kicks for {MESSAGES} arms and as many messages");
    drop((near, far));
    scene.stop();
}
