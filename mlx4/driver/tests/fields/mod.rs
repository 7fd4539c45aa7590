//! Runs of the driver on a model that lies in one field, for every field of a structure.
//!
//! - here: places of structures, values of lies, and the fault that tells them
//! - `lab`: runs, and what is to come of them
//! - `work`: what the runs do with the driver
//! - `tables`: what is to come of a lie in each field
#![allow(unreachable_pub, reason = "a module of a test")]

pub mod lab;
pub mod tables;
pub mod work;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use mlx4_model::hca::Fault;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cqe::Cqe;
use mlx4_wire::eqe::Eqe;
use mlx4_wire::layout::{Field, Layout};
use mlx4_wire::mad::smp::SmpAttribute;
use zerocopy::FromBytes;

/// Where a structure is read from.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// The output mailbox of a command, from this byte on.
    Mailbox(Opcode, usize),
    /// Immediate result of a command; the structure is its low bits.
    Immediate(Opcode),
    /// The answer of MAD_IFC to a query of this attribute, from this byte on.
    Mad(SmpAttribute, usize),
    /// Those entries of event queues, from this byte on.
    Event(fn(&Eqe) -> bool, usize),
    /// Those entries of completion queues.
    Completion(fn(&Cqe) -> bool),
    /// Registers from this offset in BAR0 on.
    Registers(u64),
}

/// What a field is set to.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Zero,
    One,
    Ones,
    HighFlipped,
    Random(u64),
    /// The low bits of this.
    Is(u64),
}

impl Value {
    fn all(seed: u64) -> [Self; 5] {
        [Self::Zero, Self::One, Self::Ones, Self::HighFlipped, Self::Random(seed)]
    }

    /// Sets `width` bits from bit `start` on; says whether that changed something.
    fn put(self, bytes: &mut [u8], start: usize, width: usize) -> bool {
        let before = bytes.to_vec();
        let mut random = if let Self::Random(seed) = self { seed } else { 0 };
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
                Self::Is(value) => {
                    let low = u32::try_from(width - 1 - index).expect("fields are short");
                    value.checked_shr(low).is_some_and(|value| value & 1 != 0)
                }
            };
            bytes[at / 8] = bytes[at / 8] & !mask | if new { mask } else { 0 };
        }
        before != bytes
    }
}

/// One lie: so many bits from bit `start` of the structure on.
#[derive(Clone, Copy, Debug)]
pub struct Lie {
    place: Place,
    start: usize,
    width: usize,
    value: Value,
}

impl Lie {
    /// A field of a structure has a value.
    pub fn of(fields: &[FieldAt], place: Place, name: &str, value: u64) -> Self {
        let field = fields.iter().find(|(path, ..)| path == name);
        let (_, start, width) = field.unwrap_or_else(|| panic!("there is no field {name}"));
        Self { place, start: *start, width: *width, value: Value::Is(value) }
    }
}

#[derive(Debug, Default)]
struct Lies {
    lies: Vec<Lie>,
    /// Whether the last of them was told, that is, differed from the truth.
    told: bool,
    /// Registers that were read.
    read: BTreeSet<u64>,
}

/// The fault that tells lies.
#[derive(Debug, Default)]
pub struct Liar(Mutex<Lies>);

impl Liar {
    /// Tells these lies from now on; says whether the last of those before was told.
    pub fn set(&self, lies: Vec<Lie>) -> bool {
        let mut state = self.lock();
        state.lies = lies;
        std::mem::take(&mut state.told)
    }

    /// Offsets of the registers that were read so far.
    pub fn registers_read(&self) -> Vec<u64> {
        self.lock().read.iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lies if `find` says that this is the place; it gives the byte at which the structure starts.
    fn tell(&self, bytes: &mut [u8], find: impl Fn(Place) -> Option<usize>) {
        let mut state = self.lock();
        for (index, lie) in state.lies.clone().into_iter().enumerate() {
            let Some(base) = find(lie.place) else { continue };
            let start = 8 * base + lie.start;
            if start + lie.width <= 8 * bytes.len() {
                let told = lie.value.put(bytes, start, lie.width);
                state.told |= told && index + 1 == state.lies.len();
            }
        }
    }

    /// A register is read.
    pub fn register(&self, offset: u64, value: u32) -> u32 {
        let mut bytes = value.to_be_bytes();
        let mut state = self.lock();
        state.read.insert(offset);
        for lie in state.lies.clone() {
            let Place::Registers(base) = lie.place else { continue };
            let Some(before) = offset.checked_sub(base) else { continue };
            // What of the field lies in this word.
            let word = 8 * usize::try_from(before).expect("BARs are small");
            let (start, end) = (lie.start.max(word), (lie.start + lie.width).min(word + 32));
            if start < end {
                state.told |= lie.value.put(&mut bytes, start - word, end - start);
            }
        }
        u32::from_be_bytes(bytes)
    }
}

impl Fault for Liar {
    fn answer(&self, opcode: Opcode, mailbox: &mut [u8], result: &mut u64) {
        let attribute = mailbox.get(16..18).map(|id| u16::from_be_bytes([id[0], id[1]]));
        self.tell(mailbox, |place| match place {
            Place::Mailbox(of, at) => (of == opcode).then_some(at),
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
        let Ok(truth) = Eqe::read_from_bytes(eqe) else { return };
        self.tell(eqe, |place| match place {
            Place::Event(of, at) => of(&truth).then_some(at),
            _ => None,
        });
    }

    fn completion(&self, cqe: &mut [u8]) {
        let Ok(truth) = Cqe::read_from_bytes(cqe) else { return };
        self.tell(cqe, |place| match place {
            Place::Completion(of) => of(&truth).then_some(0),
            _ => None,
        });
    }
}

/// A field of a structure: its path, its offset and width in bits.
pub type FieldAt = (String, usize, usize);

/// Every field of a structure that isn't reserved.
pub fn fields<T: Layout>() -> Vec<FieldAt> {
    let mut all = Vec::new();
    walk("", 0, T::FIELDS, &mut all);
    all
}

/// Every field of an entry of an event queue with data of a type.
pub fn event_fields<T: Layout>() -> Vec<FieldAt> {
    let mut all = fields::<Eqe>();
    let data = 8 * std::mem::offset_of!(Eqe, data);
    all.retain(|(path, ..)| path != "data");
    all.extend(fields::<T>().into_iter().map(|(path, at, width)| (path, at + data, width)));
    all
}

fn walk(path: &str, base: usize, fields: &[Field], all: &mut Vec<FieldAt>) {
    for field in fields.iter().filter(|field| !field.is_reserved()) {
        let path = format!("{path}{}", field.name);
        match field.inner {
            [] => all.push((path, base + field.offset, field.width)),
            inner => walk(&format!("{path}."), base + field.offset, inner, all),
        }
    }
}
