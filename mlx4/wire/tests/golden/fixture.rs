//! The recorded trace.

use std::fmt::Debug;

use zerocopy::{FromBytes, Immutable, IntoBytes};

const TRACE: &str = include_str!("stock-6.12.trace");

/// A command or WQE with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The command's name, or `wqe` and the service.
    pub(crate) name: String,
    /// Opcode modifier.
    pub(crate) opmod: u8,
    /// Input modifier.
    pub(crate) modifier: u32,
    /// Input of a command without a mailbox.
    pub(crate) immediate: Option<u64>,
    /// Output of a command without a mailbox.
    pub(crate) result: u64,
    /// Input mailbox or WQE.
    pub(crate) bytes: Vec<u8>,
}

fn record(line: &str) -> Option<Record> {
    let mut words = line.split(' ').skip(2);
    let (kind, name) = (words.next()?, words.next()?);
    let name = if kind == "wqe" { format!("wqe {name}") } else { name.to_owned() };
    let value = |key: &str| {
        let text = line.split(' ').find_map(|word| word.strip_prefix(key))?;
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
    };
    Some(Record {
        name,
        opmod: value("opmod=").map_or(0, |opmod| opmod.try_into().unwrap()),
        modifier: value("mod=").map_or(0, |modifier| modifier.try_into().unwrap()),
        immediate: value("in="),
        result: value("out=").unwrap_or(0),
        bytes: Vec::new(),
    })
}

/// All records, in order.
pub(crate) fn records() -> Vec<Record> {
    let mut records = Vec::new();
    for line in TRACE.lines().filter(|line| !line.starts_with('#')) {
        match line.trim_start().strip_prefix("in hex ").or_else(|| line.trim_start().strip_prefix("wqe hex "))
        {
            Some(hex) => {
                let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
                let last: &mut Record = records.last_mut().unwrap();
                last.bytes = (0..hex.len()).step_by(2).map(byte).collect();
            }
            None => records.extend(record(line)),
        }
    }
    records
}

/// The records of a command, or of the WQEs of a service.
pub(crate) fn all(name: &str) -> Vec<Record> {
    let found: Vec<Record> = records().into_iter().filter(|record| record.name == name).collect();
    assert!(!found.is_empty(), "the trace has no {name}");
    found
}

/// The first record of a name.
pub(crate) fn first(name: &str) -> Record {
    all(name).swap_remove(0)
}

/// The first record of a name that `wanted` holds for.
pub(crate) fn find(name: &str, wanted: impl Fn(&Record) -> bool) -> Record {
    all(name).into_iter().find(wanted).unwrap_or_else(|| panic!("the trace has no such {name}"))
}

/// The structure at the start of some bytes.
#[track_caller]
pub(crate) fn read<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).map_or_else(|_| panic!("{} bytes are too few", bytes.len()), |(t, _)| t)
}

/// Expects the bytes to be those of a value, from first to last.
#[track_caller]
pub(crate) fn same<T: FromBytes + IntoBytes + Immutable + Debug>(bytes: &[u8], expected: &T) {
    let found: T = read(bytes);
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    assert_eq!(bytes, expected.as_bytes(), "reserved bits");
}
