//! A trace cut down to what shows how a driver behaves.

use std::collections::{BTreeMap, BTreeSet};

use super::decode;
use super::kinds::{self, Object};
use super::record::{Command, Event, Record};
use super::{Behaviour, fields};

/// An object of an HCA.
type Key = (u64, Object, u32);

/// Leaves out each command that carries nothing, by kind and field, that one before it hasn't carried, and
/// each WQE that isn't the first of its service, opcode and size. What makes the objects that a command is
/// about stays with it.
pub fn reduce(records: &[Record]) -> Vec<Record> {
    let mut seen = Behaviour::default();
    let mut wqes = BTreeSet::new();
    let mut makers = BTreeMap::<Key, usize>::new();
    let mut kept = BTreeSet::new();
    for (index, record) in records.iter().enumerate() {
        let new = match &record.event {
            Event::Wqe { service, bytes } => {
                let opcode = bytes.get(3).map(|byte| byte & 0x1f);
                wqes.insert((service.clone(), opcode, bytes.len()))
            }
            Event::Other(_) => true,
            Event::Command(command) => {
                if let Some((object, true)) = kinds::object(command.opcode) {
                    makers.insert((record.hca, object, command.modifier & 0xff_ffff), index);
                }
                seen.add(record)
            }
        };
        if new {
            keep(records, index, &makers, &mut kept);
        }
    }
    kept.into_iter().filter_map(|index| records.get(index)).cloned().collect()
}

/// Keeps a record, and those that made what it is about.
fn keep(records: &[Record], index: usize, makers: &BTreeMap<Key, usize>, kept: &mut BTreeSet<usize>) {
    if !kept.insert(index) {
        return;
    }
    let Some(record) = records.get(index) else { return };
    let Event::Command(command) = &record.event else { return };
    for (object, number) in objects(command) {
        if let Some(&maker) = makers.get(&(record.hca, object, number)) {
            keep(records, maker, makers, kept);
        }
    }
}

/// The objects that a command is about and that it names.
fn objects(command: &Command) -> Vec<(Object, u32)> {
    let own = kinds::object(command.opcode).map(|(object, _)| (object, command.modifier & 0xff_ffff));
    let named = decode::input(command).into_iter().filter_map(|(name, value): fields::Field| {
        Some((kinds::object_in(command.opcode, &name)?, value.parse().ok()?))
    });
    own.into_iter().chain(named).collect()
}
