//! The records of a trace, as `paraverbs model --trace` writes it.

use anyhow::{Context, Result, bail, ensure};
use mlx4_wire::cmd::Opcode;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Node GUID of the HCA.
    pub hca: u64,
    /// What happened.
    pub event: Event,
    /// The record as it was written, with the bytes that the driver gave and nothing else.
    pub text: String,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A command was executed.
    Command(Command),
    /// A send WQE was taken.
    Wqe {
        /// Transport service of its QP.
        service: String,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Anything else, as the trace calls it: a reset.
    Other(String),
}

/// A command that was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Opcode.
    pub opcode: Opcode,
    /// Opcode modifier.
    pub opmod: u8,
    /// Input modifier.
    pub modifier: u32,
    /// Input of a command without an input mailbox.
    pub immediate: Option<u64>,
    /// Whether its completion was asked for by an event.
    pub event: bool,
    /// Whether it succeeded.
    pub ok: bool,
    /// Input mailbox, as far as it carries something.
    pub input: Vec<u8>,
    /// Output mailbox, as far as it carries something.
    pub output: Vec<u8>,
}

/// Reads a trace. Lines that start with `#` are comments.
///
/// # Errors
/// A line that is no trace's, with its number.
pub fn parse(text: &str) -> Result<Vec<Record>> {
    let mut records: Vec<Record> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.strip_prefix("    ") {
            Some(below) => match records.last_mut() {
                Some(record) => add(record, below),
                None => bail!("trace line {number}: nothing stands above it"),
            },
            None => head(line).map(|record| records.push(record)),
        }
        .with_context(|| format!("trace line {number}"))?;
    }
    Ok(records)
}

fn head(line: &str) -> Result<Record> {
    let mut words = line.splitn(3, ' ');
    let (Some(hca), Some(_number), Some(what)) = (words.next(), words.next(), words.next()) else {
        bail!("no record: {line}");
    };
    let hca = u64::from_str_radix(hca, 16).with_context(|| format!("no node GUID: {hca}"))?;
    let event = if let Some(rest) = what.strip_prefix("command ") {
        Event::Command(command(rest)?)
    } else if let Some(rest) = what.strip_prefix("wqe ") {
        let service = rest.split(' ').next().unwrap_or_default().to_owned();
        Event::Wqe { service, bytes: Vec::new() }
    } else {
        Event::Other(what.to_owned())
    };
    Ok(Record { hca, event, text: format!("{line}\n") })
}

/// A command's line after the word `command`:
/// `NAME opmod=0 mod=0x0 [in=0x0] poll|event -> OK out=0x0 | STATUS`.
fn command(rest: &str) -> Result<Command> {
    let (given, result) = rest.split_once(" -> ").context("a command without a result")?;
    let mut words = given.split(' ');
    let name = words.next().unwrap_or_default();
    let mut command = Command {
        opcode: opcode(name).with_context(|| format!("no command {name}"))?,
        opmod: 0,
        modifier: 0,
        immediate: None,
        event: false,
        ok: result.starts_with("OK "),
        input: Vec::new(),
        output: Vec::new(),
    };
    for word in words {
        match word.split_once('=') {
            Some(("opmod", value)) => command.opmod = value.parse().context("opmod")?,
            Some(("mod", value)) => command.modifier = number(value)?.try_into().context("mod")?,
            Some(("in", value)) => command.immediate = Some(number(value)?),
            None if word == "event" || word == "poll" => command.event = word == "event",
            _ => bail!("unknown word {word}"),
        }
    }
    Ok(command)
}

/// The opcode of a name; names are looked up among all codes, of which there are 4096.
fn opcode(name: &str) -> Option<Opcode> {
    (0..0x1000).map(Opcode).find(|opcode| opcode.to_string() == name)
}

fn number(text: &str) -> Result<u64> {
    let digits = text.strip_prefix("0x").with_context(|| format!("no number: {text}"))?;
    u64::from_str_radix(digits, 16).with_context(|| format!("no number: {text}"))
}

/// Takes a line below a record; what isn't bytes is a decoded form of them, and is left out.
fn add(record: &mut Record, below: &str) -> Result<()> {
    let Some((way, digits)) = below.split_once(" hex ") else { return Ok(()) };
    let bytes = unhex(digits)?;
    match (&mut record.event, way) {
        (Event::Command(command), "in") => command.input = bytes,
        (Event::Command(command), "out") => {
            command.output = bytes;
            return Ok(());
        }
        (Event::Wqe { bytes: taken, .. }, "wqe") => *taken = bytes,
        _ => bail!("{way} has no place here"),
    }
    record.text.push_str("    ");
    record.text.push_str(below);
    record.text.push('\n');
    Ok(())
}

fn unhex(digits: &str) -> Result<Vec<u8>> {
    ensure!(digits.len().is_multiple_of(2) && digits.is_ascii(), "no whole bytes: {digits}");
    (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).context("no hexadecimal digits"))
        .collect()
}

/// The commands of a driver's bring-up, by name and opcode modifier, from the first to CONF_SPECIAL_QP.
/// After that several threads of a driver send theirs in any order. A repetition counts once.
pub fn bring_up(records: &[Record], hca: u64) -> Vec<String> {
    let mut sequence = Vec::new();
    for record in records.iter().filter(|record| record.hca == hca) {
        let Event::Command(command) = &record.event else { continue };
        sequence.push(format!("{} {}", command.opcode, command.opmod));
        if command.opcode == Opcode::CONF_SPECIAL_QP {
            break;
        }
    }
    sequence.dedup();
    sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# a comment
0002c90300a00000 1 function reset
0002c90300a00000 2 command QUERY_FW opmod=0 mod=0x0 in=0x0 poll -> OK out=0x0
    out hex 0400
    out QueryFw { fw_pages: U16(1024) }
0002c90300a00000 3 command MAP_FA opmod=0 mod=0x1 poll -> BAD_PARAM
    in hex 0000000000000000000000001f800006
0002c90300a00000 4 wqe RC qpn=0x208 counter=0
    wqe hex 0000000a
";

    #[test]
    fn records_are_read() {
        let records = parse(TRACE).unwrap();
        assert_eq!(records.len(), 4);
        assert_eq!(records[0].event, Event::Other("function reset".to_owned()));
        let Event::Command(query) = &records[1].event else { panic!("{:?}", records[1]) };
        assert_eq!((query.opcode, query.immediate, query.ok), (Opcode::QUERY_FW, Some(0), true));
        assert_eq!(query.output, [4, 0]);
        let Event::Command(map) = &records[2].event else { panic!("{:?}", records[2]) };
        assert_eq!((map.modifier, map.event, map.ok, map.input.len()), (1, false, false, 16));
        let rc = Event::Wqe { service: "RC".to_owned(), bytes: vec![0, 0, 0, 10] };
        assert_eq!(records[3].event, rc);
        assert_eq!([1, 2].map(|i| records[i].text.lines().count()), [1, 2]);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        for (text, line) in [
            ("    in hex 00", "1"),
            ("0002c90300a00000 1 command NO_SUCH opmod=0 mod=0x0 poll -> OK out=0x0", "1"),
            ("# fine\n0002c90300a00000 1 command NOP opmod=0 mod=1 poll -> OK out=0x0", "2"),
            ("0002c90300a00000 1 function reset\n    in hex 00", "2"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.starts_with(&format!("trace line {line}: ")), "{error}");
        }
    }

    #[test]
    fn bring_up_ends_with_the_special_queue_pairs_and_counts_repetitions_once() {
        let line = |name| format!("00000000000000aa 1 command {name} opmod=0 mod=0x1 poll -> OK out=0x0\n");
        let text: String = ["RUN_FW", "INIT_PORT", "INIT_PORT", "CONF_SPECIAL_QP", "NOP"].map(line).concat();
        let records = parse(&text).unwrap();
        assert_eq!(bring_up(&records, 0xaa), ["RUN_FW 0", "INIT_PORT 0", "CONF_SPECIAL_QP 0"]);
        assert_eq!(bring_up(&records, 0xbb), [""; 0]);
    }
}
