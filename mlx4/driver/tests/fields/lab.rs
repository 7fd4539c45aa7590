//! Runs with a lie, and whether what came of them is what the table has.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mlx4::{Config, Error, Event, EventSink, Hca, PortEvent, Profile, Timeouts};
use mlx4_model::fabric::Fabric;
use mlx4_model::trace::Trace;

use super::{FieldAt, Liar, Lie, Place, Value};
use crate::common::{Card, Tampered, config, fabric};

/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long an event may take that is to come.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is to come of lies in a field.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// At least one value is refused by an error that names the field; others may be legal.
    Refused,
    /// So too; but some values show elsewhere, in an error that has one of these words.
    RefusedOr(&'static [&'static str]),
    /// So too, once another field, which is refused by itself neither, has this value: alone, no value of so few
    /// bits is wrong.
    RefusedWith(&'static str, u64),
    /// So too, with this value: there are few wrong ones. Others may end in an error that has one of these words.
    RefusedAt(u64, &'static [&'static str]),
    /// An error with one of these words, that can't name the field for this reason; or none.
    Ends(&'static [&'static str], &'static str),
    /// It is read and handed on, and for this reason there is no wrong value. Not for what counts or points.
    Free(&'static str),
    /// Never read: whatever it says, the driver does and tells the same.
    Unread,
}

/// Names of fields by what they end in.
pub type Table = &'static [(&'static [&'static str], Expect)];

/// What a run does with the driver; returns what it was told.
pub type Operation = fn(&Bench<'_>) -> Result<String, Error>;

/// Whether ports are brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// No. What is compared of runs is what they were told, and all commands that the device was given.
    Down,
    /// In each run. What is compared is what the run was told.
    Up,
    /// Once, and all runs go on with it. What is compared is what the run was told.
    Kept,
}

/// A structure, and what is to come of lies in its fields.
pub struct Case {
    pub name: &'static str,
    pub place: Place,
    /// Bits before the structure at its place.
    pub skip: usize,
    pub fields: Vec<FieldAt>,
    pub operation: Operation,
    /// Lies that are told in all runs.
    pub always: Vec<Lie>,
    pub ports: Ports,
    pub table: Table,
}

/// What in a name says that a field counts something, or points somewhere.
const BOUNDS: [&str; 20] = [
    "log2", "num_", "max_", "_sz", "size", "count", "index", "offset", "_base", "length", "bytes", "pages",
    "qpn", "cqn", "srqn", "port_num", "token", "limit", "cap_", "rsvd",
];

/// Fields that do so by their name only: settings of what is sent, each value of which is one; and a number at
/// the other end, where all 24 bits can be in use.
const NO_BOUNDS: [&str; 3] = ["retry_count", "remote_qpn", "hop_limit"];

/// The name of a field as errors have it: a BAR by the whole byte, and a number of 24 bits by the whole word.
fn name(path: &str) -> &str {
    let path = path.strip_suffix(".pair").or(path.strip_suffix(".number")).unwrap_or(path);
    path.rsplit('.').next().unwrap_or(path)
}

fn is_bound(path: &str) -> bool {
    let name = name(path);
    BOUNDS.iter().any(|word| name.contains(word)) && !NO_BOUNDS.contains(&name)
}

/// What the device has told by itself.
#[derive(Debug, Default)]
pub struct Told {
    state: Mutex<(Vec<Event>, Vec<String>)>,
    more: Condvar,
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, (Vec<Event>, Vec<String>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all but what is said of ports.
    fn clear(&self) {
        let mut state = self.lock();
        state.0.retain(|event| matches!(event, Event::Port { .. }));
        state.1.clear();
    }

    /// Waits for an event, but not once something was refused.
    pub fn wait(&self, wanted: impl Fn(&Event) -> bool) -> Result<Event, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        loop {
            if let Some(event) = state.0.iter().find(|event| wanted(event)) {
                return Ok(*event);
            }
            let left = deadline.checked_duration_since(Instant::now());
            let Some(left) = left.filter(|_| state.1.is_empty()) else {
                return Err(Error::Exhausted("event"));
            };
            state = self.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What was told of the port before it was ACTIVE.
    pub fn before_active(&self) -> String {
        let active = |event: &Event| matches!(event, Event::Port { event: PortEvent::Active, .. });
        let state = self.lock();
        let before: BTreeSet<String> =
            state.0.iter().take_while(|event| !active(event)).map(|event| format!("{event:?}")).collect();
        format!("{before:?}")
    }

    /// Calls `probe` until it gives something, but not once something was refused.
    pub fn eventually<T>(&self, mut probe: impl FnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = probe()? {
                return Ok(found);
            }
            if Instant::now() > deadline || !self.lock().1.is_empty() {
                return Err(Error::Exhausted("completion"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl EventSink for Told {
    fn event(&self, event: &Event) {
        self.lock().0.push(*event);
        self.more.notify_all();
    }

    fn refused(&self, error: &Error) {
        self.lock().1.push(error.to_string());
        self.more.notify_all();
    }
}

/// What an operation works with.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    pub hca: &'a Hca,
    pub told: &'a Told,
}

#[derive(Debug, PartialEq)]
enum End {
    /// What the run was told, and which commands it has given.
    Fine(String),
    Failed(String),
    Panicked,
    Hung,
}

/// A running driver, and what it was told.
type Session = (Hca, Arc<Told>);

/// A card that lies.
pub struct Lab {
    card: Card,
    liar: Arc<Liar>,
    trace: Commands,
    seed: u64,
    /// Of the card; other cards' random values differ.
    guid: u64,
    /// What runs go on with.
    kept: Mutex<Option<Session>>,
    _fabric: Arc<Fabric>,
}

/// The trace of a card, of which only what is new stays on the disk.
struct Commands {
    path: PathBuf,
    /// How much was read so far.
    position: Mutex<u64>,
}

impl Commands {
    /// The commands that the device was given since the last call: all but their results.
    fn commands(&self) -> String {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = OpenOptions::new().read(true).write(true).open(&self.path).expect("the trace");
        file.seek(SeekFrom::Start(*position)).expect("a place in the trace");
        let mut new = String::new();
        *position += file.read_to_string(&mut new).expect("text") as u64;
        // The card goes on where it is.
        file.set_len(0).expect("the trace can be cut");
        let mut first = None;
        let given = new.lines().filter_map(|line| match line.strip_prefix("    ") {
            Some(below) => below.strip_prefix("in hex ").map(|hex| words(hex, &mut first)),
            // Behind the HCA and the number of the record.
            None => {
                let given = line.splitn(3, ' ').nth(2)?.split(" -> ").next()?;
                Some(given.split(' ').map(without_address).collect())
            }
        });
        given.fold(String::new(), |all, line| all + &line + "\n")
    }
}

/// A word of a command's first line: a mailbox that the trace doesn't know has a bus address too.
fn without_address(word: &str) -> String {
    let address = word.strip_prefix("in=0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let is_bus = address.is_some_and(|address| BUS_ADDRESSES.contains(&address));
    if is_bus { "in=mailbox ".into() } else { format!("{word} ") }
}

/// A mailbox in words of 64 bits. Bus addresses, which no run has again, are told from the first one on.
fn words(hex: &str, first: &mut Option<u64>) -> String {
    let mut text = String::new();
    for at in (0..hex.len()).step_by(16) {
        let word = &hex[at..hex.len().min(at + 16)];
        match u64::from_str_radix(word, 16).ok().filter(|word| BUS_ADDRESSES.contains(word)) {
            Some(address) => {
                let from = *first.get_or_insert(address);
                let _infallible = write!(text, "+{:x} ", address.wrapping_sub(from));
            }
            None => text = text + word + " ",
        }
    }
    text
}

/// What bus addresses the card's memory has.
const BUS_ADDRESSES: Range<u64> = 1 << 50..1 << 51;

impl Drop for Commands {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

/// Small tables, so that few bits can ask for too much.
fn small() -> Profile {
    let usual = config().profile;
    Profile { log2_qps: 12, log2_srqs: 10, log2_cqs: 10, log2_mpts: 12, log2_mtts: 15, ..usual }
}

/// What random values are made of: the same in each run, unless `PARAVERBS_SEED` is a number.
fn seed() -> u64 {
    let given = std::env::var("PARAVERBS_SEED").ok();
    let given = given.map(|text| text.parse::<u64>().expect("PARAVERBS_SEED is a number"));
    given.unwrap_or(0x636f_7272_7570_7400)
}

impl Lab {
    pub fn new(guid: u64) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{guid:016x}.trace"));
        let file = Arc::new(Trace::create(&path).expect("a file for the trace"));
        let trace = Commands { path, position: Mutex::new(0) };
        let fabric = fabric();
        let card = Card::traced(&fabric, guid, 1, Some(file));
        let liar = Arc::new(Liar::default());
        card.device.hca().inject(Arc::<Liar>::clone(&liar));
        Self { card, liar, trace, seed: seed(), guid, kept: Mutex::new(None), _fabric: fabric }
    }

    /// Offsets of the registers that the driver has read in all runs.
    pub fn registers_read(&self) -> Vec<u64> {
        self.liar.registers_read()
    }

    /// Lies in every field of the structure; panics with all that isn't as the table has it.
    pub fn check(&self, case: &Case) {
        println!("{}: PARAVERBS_SEED={}", case.name, self.seed);
        let (mut wrong, mut counts, started) = (String::new(), [0usize; 4], Instant::now());
        for name in case.table.iter().flat_map(|(names, _)| *names) {
            if !case.fields.iter().any(|(path, ..)| path == name) {
                let _infallible = writeln!(wrong, "{name}: in the table, but no field");
            }
        }
        let [truth, again] = [(); 2].map(|()| self.run(Vec::new(), case).0);
        assert!(matches!(truth, End::Fine(_)), "{}: without a lie: {truth:?}", case.name);
        assert_eq!(truth, again, "{}: two runs without a lie", case.name);
        for field in &case.fields {
            let row = case.table.iter().find(|(names, _)| names.contains(&field.0.as_str()));
            let expect = row.map(|(_, expect)| *expect);
            counts[match expect {
                Some(Expect::Ends(..)) => 1,
                Some(Expect::Free(_)) => 2,
                Some(Expect::Unread) => 3,
                _ => 0,
            }] += 1;
            if let Err(problem) = self.field(case, field, expect, &truth) {
                let _infallible = writeln!(wrong, "{}: {problem}", field.0);
            }
        }
        let [refused, other, free, unread] = counts;
        println!(
            "{}: {} fields: {refused} checked, {other} end otherwise, {free} free, {unread} never read; {:?}",
            case.name,
            case.fields.len(),
            started.elapsed()
        );
        assert!(wrong.is_empty(), "{} (PARAVERBS_SEED={}):\n{wrong}", case.name, self.seed);
    }

    /// Lies in one field.
    fn field(&self, case: &Case, field: &FieldAt, expect: Option<Expect>, truth: &End) -> Result<(), String> {
        let company = match expect {
            Some(Expect::RefusedWith(name, value)) => {
                let company = case.lie(case.field(name)?, Value::Is(value));
                let alone = self.run(vec![company], case).0;
                if !matches!(alone, End::Fine(_)) {
                    return Err(format!("its company alone: {alone:?}"));
                }
                Some(company)
            }
            _ => None,
        };
        let [zero, one, ones, flipped, random] = Value::all(self.seed.wrapping_add(self.guid));
        // What takes a subnet manager takes its time; and what is never read, no value shows.
        let values = match (case.ports, expect) {
            (Ports::Up, _) => vec![zero, ones, random],
            (_, Some(Expect::Unread)) => vec![ones, flipped, random],
            _ => vec![zero, one, ones, flipped, random],
        };
        let wrong =
            if let Some(Expect::RefusedAt(value, _)) = expect { Some(Value::Is(value)) } else { None };
        let ends: Vec<(Value, End)> = values
            .into_iter()
            .chain(wrong)
            .filter_map(|value| {
                let lies = company.into_iter().chain([case.lie(field, value)]).collect();
                let (end, told) = self.run(lies, case);
                // What says the same as before is no lie.
                told.then_some((value, end))
            })
            .collect();
        let unread_register = matches!((case.place, expect), (Place::Registers(_), Some(Expect::Unread)));
        if ends.is_empty() && !unread_register {
            return Err("no lie was told".into());
        }
        judge(&field.0, expect, &ends, truth)
    }

    /// One run: opens the driver, does the operation, closes. Says whether the last lie was told.
    fn run(&self, lies: Vec<Lie>, case: &Case) -> (End, bool) {
        self.liar.set(case.always.iter().copied().chain(lies).collect());
        let refused = self.card.device.refused();
        let liar = Arc::clone(&self.liar);
        let seam = Tampered::new(&self.card, move |offset, value| liar.register(offset, value));
        let (told, opened) = match self.kept().take() {
            Some((hca, told)) => (told, Some(hca)),
            None => (Arc::new(Told::default()), None),
        };
        told.clear();
        let (operation, ports) = (case.operation, case.ports);
        let (done, end) = channel();
        let sink = Arc::clone(&told);
        let work = move || {
            let second = Duration::from_secs(1);
            let timeouts = Timeouts { post: second, short: second, medium: second, long: second };
            let events = Arc::<Told>::clone(&sink);
            let health_interval = Duration::from_millis(50);
            let (profile, up) = (small(), ports != Ports::Down);
            let config = Config { profile, timeouts, ports: up, events, health_interval, ..config() };
            let hca = opened.map_or_else(|| Hca::open(seam, &config), Ok)?;
            let known = format!("{:?} {:?}", hca.firmware(), hca.capabilities());
            let result = operation(&Bench { hca: &hca, told: &sink });
            if ports == Ports::Kept {
                return Ok((result?, Some((hca, sink))));
            }
            let closed = hca.close();
            result.and_then(|found| closed.map(|()| (format!("{known}\n{found}\n"), None)))
        };
        let thread = std::thread::spawn(move || {
            // The test may have given up.
            let _gone = done.send(catch_unwind(AssertUnwindSafe(work)));
        });
        let end = match end.recv_timeout(LIMIT) {
            Ok(Ok(Ok((found, session)))) => {
                *self.kept() = session;
                End::Fine(found)
            }
            Ok(Ok(Err(error))) => End::Failed(Error::to_string(&error)),
            Ok(Err(_)) => End::Panicked,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => End::Hung,
        };
        if end != End::Hung {
            thread.join().expect("panics are caught");
        }
        let was_told = self.liar.set(Vec::new());
        if self.card.device.refused() != refused {
            return (End::Failed("the device accessed memory out of bounds".into()), was_told);
        }
        let commands = self.trace.commands();
        let refusals = told.lock().1.join("; ");
        let end = match end {
            End::Fine(found) if refusals.is_empty() => {
                End::Fine(if ports == Ports::Down { found + &commands } else { found })
            }
            End::Fine(_) => End::Failed(refusals),
            End::Failed(text) => End::Failed(format!("{text}; {refusals}")),
            other => other,
        };
        (end, was_told)
    }

    fn kept(&self) -> MutexGuard<'_, Option<Session>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Case {
    fn field(&self, name: &str) -> Result<&FieldAt, String> {
        self.fields.iter().find(|(path, ..)| path == name).ok_or_else(|| format!("there is no field {name}"))
    }

    fn lie(&self, (_, offset, width): &FieldAt, value: Value) -> Lie {
        Lie { place: self.place, start: self.skip + offset, width: *width, value }
    }
}

fn judge(path: &str, expect: Option<Expect>, ends: &[(Value, End)], truth: &End) -> Result<(), String> {
    let leaf = name(path);
    let (mut named, mut changed, mut other) = (false, false, BTreeSet::new());
    for (value, end) in ends {
        match end {
            End::Panicked => return Err(format!("{value:?}: panicked")),
            End::Hung => return Err(format!("{value:?}: didn't end in time")),
            End::Fine(_) => changed |= end != truth,
            End::Failed(text) if text.contains(leaf) => named = true,
            End::Failed(text) => drop(other.insert(text.as_str())),
        }
    }
    let unexpected = |words: &[&str]| {
        let found = other.iter().find(|text| !words.iter().any(|word| text.contains(word)));
        found.map_or(Ok(()), |text| Err(format!("ends in {text:?}")))
    };
    let by_name = || if named { Ok(()) } else { Err("no value is refused by name".to_owned()) };
    let says = format!("named: {named}, shows: {changed}, other errors: {other:?}");
    let result = match expect {
        None => Err("isn't in the table".to_owned()),
        Some(Expect::Refused | Expect::RefusedWith(..)) => by_name().and(unexpected(&[])),
        Some(Expect::RefusedOr(words) | Expect::RefusedAt(_, words)) => by_name().and(unexpected(words)),
        Some(Expect::Ends(words, reason)) if !reason.is_empty() => unexpected(words),
        Some(Expect::Free(reason)) if !reason.is_empty() && !is_bound(path) => {
            if changed {
                unexpected(&[])
            } else {
                Err("is never read".to_owned())
            }
        }
        Some(Expect::Unread) => {
            if changed || named {
                Err("is read".to_owned())
            } else {
                unexpected(&[])
            }
        }
        Some(_) => Err("must be checked, or needs a reason".to_owned()),
    };
    result.map_err(|problem| format!("{problem} ({says})"))
}
