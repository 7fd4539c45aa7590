//! Runs of the driver on a model that lies in one field, for every field of a structure.
#![allow(unreachable_pub, reason = "a module of a test")]

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mlx4::{Config, Error, Hca, Timeouts};
use mlx4_model::hca::Fault;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::layout::{Field, Layout};
use mlx4_wire::mad::smp::SmpAttribute;

use crate::common::{Card, config, fabric};

/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Where a structure is read from.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Start of the output mailbox of a command.
    Mailbox(Opcode),
    /// Immediate result of a command; the structure is its low bits.
    Immediate(Opcode),
    /// The answer of MAD_IFC to a query of this attribute, from this byte on.
    Mad(SmpAttribute, usize),
    /// An entry of an event queue with this type, from this byte on.
    Event(u8, usize),
}

/// What a field is set to.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Zero,
    One,
    Ones,
    HighFlipped,
    Random(u64),
}

impl Value {
    fn all(seed: u64) -> [Self; 5] {
        [Self::Zero, Self::One, Self::Ones, Self::HighFlipped, Self::Random(seed)]
    }

    /// Sets `width` bits from bit `start` on; says whether that changed something.
    fn put(self, bytes: &mut [u8], start: usize, width: usize) -> bool {
        let before = bytes.to_vec();
        let mut random = self.seed();
        for (index, at) in (start..start + width).enumerate() {
            let mask = 0x80u8 >> (at % 8);
            let old = bytes[at / 8] & mask != 0;
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let new = match self {
                Self::Zero => false,
                Self::One => index + 1 == width,
                Self::Ones => true,
                Self::HighFlipped => old != (index == 0),
                Self::Random(_) => random >> 63 != 0,
            };
            bytes[at / 8] = bytes[at / 8] & !mask | if new { mask } else { 0 };
        }
        before != bytes
    }

    fn seed(self) -> u64 {
        if let Self::Random(seed) = self { seed } else { 0 }
    }
}

/// One lie.
#[derive(Clone, Copy, Debug)]
struct Lie {
    place: Place,
    start: usize,
    width: usize,
    value: Value,
}

/// The fault that tells the lie.
#[derive(Debug, Default)]
struct Liar(Mutex<(Option<Lie>, u32)>);

impl Liar {
    fn set(&self, lie: Option<Lie>) -> u32 {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), (lie, 0)).1
    }

    /// Lies if `find` says that this is the place; it gives the byte at which the structure starts.
    fn tell(&self, bytes: &mut [u8], find: impl Fn(Place) -> Option<usize>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lie) = state.0 else { return };
        let Some(base) = find(lie.place) else { return };
        let start = 8 * base + lie.start;
        if start + lie.width <= 8 * bytes.len() && lie.value.put(bytes, start, lie.width) {
            state.1 += 1;
        }
    }
}

impl Fault for Liar {
    fn answer(&self, opcode: Opcode, mailbox: &mut [u8], result: &mut u64) {
        let attribute = mailbox.get(16..18).map(|id| u16::from_be_bytes([id[0], id[1]]));
        self.tell(mailbox, |place| match place {
            Place::Mailbox(of) => (of == opcode).then_some(0),
            Place::Mad(of, at) => (opcode == Opcode::MAD_IFC && attribute == Some(of.0)).then_some(at),
            _ => None,
        });
        let mut bytes = result.to_be_bytes();
        self.tell(&mut bytes, |place| match place {
            Place::Immediate(of) => (of == opcode).then_some(0),
            _ => None,
        });
        *result = u64::from_be_bytes(bytes);
    }

    fn event(&self, eqe: &mut [u8]) {
        let kind = eqe[1];
        self.tell(eqe, |place| match place {
            Place::Event(of, at) => (of == kind).then_some(at),
            _ => None,
        });
    }
}

/// What is to come of lies in a field.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// At least one value is refused by an error that names the field; others may be legal.
    Refused,
    /// So too; but some values show elsewhere, in an error that has one of these words.
    RefusedOr(&'static [&'static str]),
    /// Nothing: every value is legal, or nobody reads it, for this reason.
    NotChecked(&'static str),
    /// It is checked, but no value is refused, for this reason.
    Legal(&'static str),
    /// An error with one of these words, that can't name the field for this reason.
    Ends(&'static [&'static str], &'static str),
}

/// What a run does with the driver.
pub type Operation = fn(&Hca) -> Result<(), Error>;

/// A structure, and what is to come of lies in its fields.
pub struct Case {
    pub name: &'static str,
    pub place: Place,
    /// Bits before the structure at its place.
    pub skip: usize,
    pub fields: Vec<(String, usize, usize)>,
    pub operation: Operation,
    pub table: &'static [(&'static [&'static str], Expect)],
}

/// Every field of a structure that isn't reserved: its path, its offset and width in bits.
pub fn fields<T: Layout>() -> Vec<(String, usize, usize)> {
    let mut all = Vec::new();
    walk("", 0, T::FIELDS, &mut all);
    all
}

fn walk(path: &str, base: usize, fields: &[Field], all: &mut Vec<(String, usize, usize)>) {
    for field in fields.iter().filter(|field| !field.is_reserved()) {
        let path = format!("{path}{}", field.name);
        match field.inner {
            [] => all.push((path, base + field.offset, field.width)),
            inner => walk(&format!("{path}."), base + field.offset, inner, all),
        }
    }
}

enum End {
    Fine,
    Failed(String),
    Panicked,
    Hung,
}

/// A card that lies.
pub struct Lab {
    card: Card,
    liar: Arc<Liar>,
    seed: u64,
}

impl Lab {
    pub fn new(guid: u64) -> Self {
        let card = Card::new(&fabric(), guid, 1);
        let liar = Arc::new(Liar::default());
        card.device.hca().inject(Arc::<Liar>::clone(&liar));
        Self { card, liar, seed: RandomState::new().build_hasher().finish() }
    }

    /// Lies in every field of the structure; panics with all that isn't as the table has it.
    pub fn check(&self, case: &Case) {
        println!("{}: seed {:#x}", case.name, self.seed);
        let (mut wrong, mut counts, started) = (String::new(), [0usize; 3], Instant::now());
        for name in case.table.iter().flat_map(|(names, _)| *names) {
            if !case.fields.iter().any(|(path, ..)| path == name) {
                let _infallible = writeln!(wrong, "{name}: in the table, but no field");
            }
        }
        for (path, offset, width) in &case.fields {
            let row = case.table.iter().find(|(names, _)| names.contains(&path.as_str()));
            let expect = row.map(|(_, expect)| *expect);
            counts[match expect {
                Some(Expect::Refused | Expect::RefusedOr(_) | Expect::Legal(_)) => 0,
                Some(Expect::Ends(..)) => 1,
                _ => 2,
            }] += 1;
            let mut named = false;
            for value in Value::all(self.seed) {
                let lie = Lie { place: case.place, start: case.skip + offset, width: *width, value };
                let end = self.run(lie, case.operation);
                if let Err(problem) = judge(path, expect, &end, &mut named) {
                    let _infallible = writeln!(wrong, "{path} {value:?}: {problem}");
                }
            }
            if matches!(expect, Some(Expect::Refused | Expect::RefusedOr(_))) && !named {
                let _infallible = writeln!(wrong, "{path}: no value was refused by name");
            }
        }
        let [refused, other, free] = counts;
        println!(
            "{}: {refused} checked, {other} end otherwise, {free} not checked, {:?}",
            case.name,
            started.elapsed()
        );
        assert!(wrong.is_empty(), "{} (seed {:#x}):\n{wrong}", case.name, self.seed);
    }

    /// One run with a lie: opens the driver, does the operation, closes.
    fn run(&self, lie: Lie, operation: Operation) -> Option<End> {
        self.liar.set(Some(lie));
        let refused = self.card.device.refused();
        let seam = self.card.seam();
        let (done, end) = channel();
        let work = move || {
            let second = Duration::from_secs(1);
            let timeouts = Timeouts { post: second, short: second, medium: second, long: second };
            let hca = Hca::open(seam, &Config { timeouts, ports: false, ..config() })?;
            let result = operation(&hca);
            let closed = hca.close();
            result.and(closed)
        };
        let thread = std::thread::spawn(move || {
            // The test may have given up.
            let _gone = done.send(catch_unwind(AssertUnwindSafe(work)));
        });
        let end = match end.recv_timeout(LIMIT) {
            Ok(Ok(Ok(()))) => End::Fine,
            Ok(Ok(Err(error))) => End::Failed(error.to_string()),
            Ok(Err(_)) => End::Panicked,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => End::Hung,
        };
        if !matches!(end, End::Hung) {
            thread.join().expect("panics are caught");
        }
        let told = self.liar.set(None);
        if self.card.device.refused() != refused {
            return Some(End::Failed("the device accessed memory out of bounds".into()));
        }
        // What says the same as before is no lie.
        (told != 0).then_some(end)
    }
}

fn judge(path: &str, expect: Option<Expect>, end: &Option<End>, named: &mut bool) -> Result<(), String> {
    let Some(end) = end else { return Ok(()) };
    // The driver names a BAR by the whole byte.
    let path = path.strip_suffix(".pair").unwrap_or(path);
    let leaf = path.rsplit('.').next().unwrap_or(path);
    let text = match end {
        End::Panicked => return Err("panicked".into()),
        End::Hung => return Err("didn't end in time".into()),
        End::Fine => None,
        End::Failed(text) => Some(text.as_str()),
    };
    let names = text.is_some_and(|text| text.contains(leaf));
    *named |= names;
    let has = |words: &[&str]| text.is_none_or(|text| words.iter().any(|word| text.contains(word)));
    let good = match expect {
        None => return Err(format!("isn't in the table: {text:?}")),
        Some(Expect::Refused) => names || text.is_none(),
        Some(Expect::RefusedOr(words)) => names || has(words),
        Some(Expect::NotChecked(reason) | Expect::Legal(reason)) => text.is_none() && !reason.is_empty(),
        Some(Expect::Ends(words, reason)) => has(words) && !reason.is_empty(),
    };
    if good { Ok(()) } else { Err(format!("{expect:?}, but {text:?}")) }
}
