//! What a driver's commands carried, by kind of command and field.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::mad_ifc::MadIfcOp;
use mlx4_wire::ctx::mpt::MptEntry;
use mlx4_wire::ctx::qp::QpMailbox;
use zerocopy::FromBytes;

use super::decode;
use super::kinds::{self, Objects};
use super::record::{Command, Event, Record};

/// Values of a field, sorted.
type Values = BTreeSet<String>;

/// The fields of each kind of command, with all values that they had.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    commands: BTreeMap<String, BTreeMap<String, Values>>,
    hcas: BTreeMap<u64, Hca>,
}

/// What a driver has set up at an HCA.
#[derive(Clone, Debug, Default)]
struct Hca {
    objects: Objects,
    /// QPN of QP0 of port 1.
    special: Option<u32>,
    /// Transport service of each QP, or which special QP it is.
    services: BTreeMap<u32, String>,
}

/// A field of a kind of command that one driver fills with what the other never does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// Kind of command.
    pub command: String,
    /// Field, or `sent` if only one of the drivers sends it at all.
    pub field: String,
    /// Values of the stock driver.
    pub stock: String,
    /// Values of ours.
    pub ours: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| `{}` | `{}` | `{}` | `{}` |", self.command, self.field, self.stock, self.ours)
    }
}

impl Behaviour {
    /// The behaviour that a trace shows.
    pub fn of(records: &[Record]) -> Self {
        let mut behaviour = Self::default();
        for record in records {
            behaviour.add(record);
        }
        behaviour
    }

    /// Adds a record; says whether it has shown anything new.
    pub(super) fn add(&mut self, record: &Record) -> bool {
        let hca = self.hcas.entry(record.hca).or_default();
        let command = match &record.event {
            Event::Command(command) => command,
            Event::Other(_) => {
                *hca = Hca::default();
                return false;
            }
            Event::Wqe { .. } => return false,
        };
        hca.note(command);
        let kind = hca.kind(command);
        let fields = self.commands.entry(kind).or_default();
        let mut new = false;
        for (name, value) in hca.fields(command) {
            new |= fields.entry(name).or_default().insert(value);
        }
        new
    }

    /// The kinds of commands there are.
    pub fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.keys().map(String::as_str)
    }

    /// The values of a field, sorted.
    pub fn values(&self, command: &str, field: &str) -> impl Iterator<Item = &str> {
        let values = self.commands.get(command).and_then(|fields| fields.get(field));
        values.into_iter().flatten().map(String::as_str)
    }

    /// What `ours` does that `self`, the stock driver, doesn't, and which commands it leaves out.
    pub fn differences(&self, ours: &Self) -> Vec<Difference> {
        let commands: BTreeSet<&String> = self.commands.keys().chain(ours.commands.keys()).collect();
        let mut found = Vec::new();
        for command in commands {
            let difference = |field: &str, stock: String, ours: String| Difference {
                command: command.clone(),
                field: field.to_owned(),
                stock,
                ours,
            };
            match (self.commands.get(command), ours.commands.get(command)) {
                (Some(_), None) => found.push(difference("sent", "yes".to_owned(), "no".to_owned())),
                (None, _) => found.push(difference("sent", "no".to_owned(), "yes".to_owned())),
                (Some(stock), Some(ours)) => {
                    let none = Values::new();
                    for (field, ours) in ours {
                        let stock = stock.get(field).unwrap_or(&none);
                        if !ours.is_subset(stock) {
                            found.push(difference(field, list(stock), list(ours)));
                        }
                    }
                }
            }
        }
        found
    }
}

fn list(values: &Values) -> String {
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    if values.is_empty() { "-".to_owned() } else { values.join(", ") }
}

impl Hca {
    /// Takes note of what the command sets up.
    fn note(&mut self, command: &Command) {
        let number = command.modifier & 0xff_ffff;
        if command.opcode == Opcode::CONF_SPECIAL_QP && number != 0 {
            self.special = Some(number);
        }
        if let Some((object, true)) = kinds::object(command.opcode)
            && command.ok
        {
            self.objects.insert(object, number);
        }
        if command.opcode == Opcode::RST2INIT_QP
            && let Ok((mailbox, _)) = QpMailbox::read_from_prefix(&command.input)
        {
            let special = self.special.and_then(|base| number.checked_sub(base));
            let service = match special {
                Some(0 | 1) => "QP0".to_owned(),
                Some(2 | 3) => "QP1".to_owned(),
                _ => mailbox.context.flags.service().to_string(),
            };
            self.services.insert(number, service);
        }
    }

    /// The kind of a command: its name and, where it serves several purposes, which.
    fn kind(&self, command: &Command) -> String {
        let name = command.opcode.to_string();
        let number = command.modifier & 0xff_ffff;
        match command.opcode {
            Opcode::MAD_IFC if MadIfcOp::from_bits(command.opmod).ext_info() => format!("{name} received"),
            Opcode::MAD_IFC => format!("{name} own"),
            Opcode::SW2HW_MPT => {
                let physical =
                    MptEntry::read_from_prefix(&command.input).is_ok_and(|(entry, _)| entry.flags.physical());
                format!("{name} {}", if physical { "physical" } else { "translated" })
            }
            opcode => match kinds::object(opcode) {
                Some((kinds::Object::Qp, _)) if decode::is_transition(opcode) => {
                    let service = self.services.get(&number).map_or("unknown", String::as_str);
                    format!("{name} {service}")
                }
                _ => name,
            },
        }
    }

    /// The fields of a command as they are compared.
    fn fields(&self, command: &Command) -> Vec<(String, String)> {
        let Command { opcode, modifier, .. } = *command;
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut fields = vec![
            ("opmod".to_owned(), command.opmod.to_string()),
            ("modifier".to_owned(), kinds::modifier(opcode, modifier, &self.objects)),
            text("completion", if command.event { "event" } else { "polled" }),
            text("result", if command.ok { "OK" } else { "error" }),
        ];
        if let Some(value) = command.immediate {
            fields.push(("immediate".to_owned(), kinds::immediate(opcode, value)));
        }
        for (name, value) in decode::input(command) {
            if let Some(value) = kinds::value(opcode, &name, &value, modifier, &self.objects) {
                fields.push((name, value));
            }
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::ctx::cq::CqContext;
    use mlx4_wire::ctx::qp::{QpFlags, ServiceType};
    use mlx4_wire::{Number24, U64};
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::trace::{parse, reduce};

    fn line(name: &str, modifier: u32, input: &[u8]) -> String {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "00000000000000aa 1 command {name} opmod=0 mod={modifier:#x} event -> OK out=0x0\n    in hex {hex}\n"
        )
    }

    fn cq(number: u32, record: u64, timestamp: bool) -> String {
        let mut context = CqContext::new_zeroed();
        context.record_address = U64::new(record);
        context.flags.set_timestamp(timestamp);
        line("SW2HW_CQ", number, context.as_bytes())
    }

    fn qp(number: u32, cqn: u32) -> String {
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.context.flags = QpFlags::new().with_service(ServiceType::UD);
        mailbox.context.local_qpn = Number24::wrapping(number);
        mailbox.context.send_cqn = Number24::wrapping(cqn);
        line("RST2INIT_QP", number, mailbox.as_bytes())
    }

    fn behaviour(text: &str) -> Behaviour {
        Behaviour::of(&parse(text).unwrap())
    }

    #[test]
    fn addresses_and_numbers_may_differ() {
        let stock = behaviour(&[cq(0x80, 0x1000, false), qp(0x40, 0x80)].concat());
        let ours = behaviour(&[cq(0x91, 0x2000, false), qp(0x52, 0x91)].concat());
        assert_eq!(stock.differences(&ours), []);
    }

    #[test]
    fn a_field_that_the_stock_driver_never_sets_so_is_found() {
        let stock = behaviour(&[cq(0x80, 0x1000, false), qp(0x40, 0x80)].concat());
        let ours = behaviour(&[cq(0x80, 0, true), qp(0x40, 0x81)].concat());
        let found: Vec<String> = stock.differences(&ours).iter().map(ToString::to_string).collect();
        let expected = [
            "| `RST2INIT_QP UD` | `context.send_cqn.number` | `CQ` | `no CQ of the device` |",
            "| `SW2HW_CQ` | `flags.timestamp` | `false` | `true` |",
            "| `SW2HW_CQ` | `record_address` | `address` | `0` |",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn commands_of_one_driver_only_are_found() {
        let stock = behaviour(&cq(0x80, 0x1000, false));
        let ours = behaviour(&qp(0x40, 0));
        let found: Vec<String> = stock.differences(&ours).iter().map(ToString::to_string).collect();
        let expected =
            ["| `RST2INIT_QP UD` | `sent` | `no` | `yes` |", "| `SW2HW_CQ` | `sent` | `yes` | `no` |"];
        assert_eq!(found, expected);
    }

    #[test]
    fn queue_pairs_are_told_apart_by_number_and_service() {
        let special =
            "00000000000000aa 1 command CONF_SPECIAL_QP opmod=0 mod=0x200 in=0x0 event -> OK out=0x0\n";
        let text =
            [special, &qp(0x200, 0), &qp(0x202, 0), &qp(0x208, 0), "00000000000000aa 1 reset\n"].concat();
        let found = behaviour(&text);
        let commands: Vec<&str> = found.commands().collect();
        assert_eq!(commands, ["CONF_SPECIAL_QP", "RST2INIT_QP QP0", "RST2INIT_QP QP1", "RST2INIT_QP UD"]);
        let own: Vec<&str> = found.values("RST2INIT_QP QP1", "context.local_qpn.number").collect();
        assert_eq!(own, ["own number"]);
    }

    #[test]
    fn reduced_trace_shows_the_same() {
        let text = [cq(0x80, 0x1000, false), cq(0x81, 0x3000, false), cq(0x82, 0, true)].concat();
        let records = parse(&text).unwrap();
        let reduced = reduce(&records);
        assert_eq!(reduced.len(), 2);
        assert_eq!(Behaviour::of(&reduced).differences(&Behaviour::of(&records)), []);
    }
}
