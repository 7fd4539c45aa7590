//! Holds the tables of `docs/virtio-rdma.md` against the crate: every structure, opcode, status, reason, code
//! and flag stands there as it is here, and nothing else does.

use std::collections::BTreeMap;

use virtio_rdma::Layout;
use virtio_rdma::config::{Capabilities, Config, DeviceState, Mlx4Format, QueueFormat};
use virtio_rdma::doorbell::{AreaHeader, DoorbellMode, DoorbellPlace};
use virtio_rdma::event::{AsyncEvent, CompletionEvent, EventType};
use virtio_rdma::mad::{MadReceived, MadSend, MadSent};
use virtio_rdma::memory::Segment;
use virtio_rdma::request::{Destroyed, ReplyHeader, RequestHeader, SegmentMode};
use virtio_rdma::request::{
    completion::*, datagram::*, domain::*, management::*, memory::*, query::*, queue_pair::*,
    shared_receive::*,
};
use virtio_rdma::{Opcode, Reason, Status};

const DOCUMENT: &str = include_str!("../../../docs/virtio-rdma.md");

/// A field as a row of the document names it: offset, bytes, name.
type Row = (usize, usize, String);

/// The cells of a table's line, without the ticks of code.
fn cells(line: &str) -> Option<Vec<String>> {
    let line = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect())
}

/// The rows of the table that follows `lines`' start; header and ruler left out.
fn table<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Vec<String>> {
    lines.skip_while(|line| !line.starts_with('|')).map_while(cells).skip(2).collect()
}

/// The rows of the first table that has `header` as its header.
fn table_headed(header: &str) -> Vec<Vec<String>> {
    let start = DOCUMENT.find(header).unwrap_or_else(|| panic!("no table is headed {header}"));
    table(DOCUMENT[start..].lines())
}

fn number(text: &str) -> usize {
    match text.strip_prefix("0x") {
        Some(hex) => usize::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .unwrap_or_else(|_| panic!("{text} is no number"))
}

/// Every structure of the document: its size and rows. A heading can name several.
fn structures() -> BTreeMap<String, (usize, Vec<Row>)> {
    let mut found = BTreeMap::new();
    let lines: Vec<&str> = DOCUMENT.lines().collect();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" bytes")) {
        let size =
            line.split(", ").filter_map(|part| part.strip_suffix(" bytes")).find_map(|n| n.parse().ok());
        let Some(size) = size else { continue };
        let paragraph = lines[..index].iter().rposition(|line| line.is_empty()).map_or(0, |empty| empty + 1);
        if !lines[paragraph].starts_with("**`") {
            continue;
        }
        let rows = table(lines[index + 1..].iter().copied())
            .iter()
            .map(|row| (number(&row[0]), number(&row[1]), row[2].clone()))
            .collect::<Vec<_>>();
        for name in lines[paragraph..=index].join(" ").split("**`").skip(1) {
            let name = name.split('`').next().expect("a name").to_owned();
            assert!(found.insert(name.clone(), (size, rows.clone())).is_none(), "{name} stands twice");
        }
    }
    found
}

/// Takes structure `S` out of the document's, and compares them.
fn compare<S: Layout>(document: &mut BTreeMap<String, (usize, Vec<Row>)>) {
    let (size, rows) =
        document.remove(S::NAME).unwrap_or_else(|| panic!("{} is not in the document", S::NAME));
    assert_eq!(size, size_of::<S>(), "size of {}", S::NAME);
    let mut fields: Vec<Row> = S::FIELDS
        .iter()
        .filter(|field| !field.name.starts_with("reserved"))
        .map(|field| (field.offset, field.bytes, field.name.to_owned()))
        .collect();
    // A table that several structures share doesn't name the field that is the object's handle.
    if let ([field], [row]) = (&mut fields[..], &rows[..])
        && row.2 == "*handle*"
    {
        field.2 = row.2.clone();
    }
    assert_eq!(rows, fields, "fields of {}", S::NAME);
}

macro_rules! compare_all {
    ($document:ident: $($structure:ident)*) => { $( compare::<$structure>(&mut $document); )* };
}

#[test]
fn structures_of_the_document_are_those_of_the_crate() {
    let mut document = structures();
    compare_all!(document:
        Config Mlx4Format Segment RequestHeader ReplyHeader Destroyed
        DeviceAttributes QueryPort PortAttributes QueryGid GidEntry QueryPkey PkeyEntry Stats
        PdAllocated DeallocPd AllocUar UarAllocated DeallocUar XrcdOpened CloseXrcd
        RegMr MrRegistered ReregMr DeregMr AllocMw MwAllocated DeallocMw
        CreateCq CqCreated ModifyCq ResizeCq DestroyCq
        CreateSrq SrqCreated ModifySrq QuerySrq SrqAttributes DestroySrq
        CreateQp QpCap QpCreated ModifyQp QpAttributes AhAttributes QueryQp QpQueried DestroyQp
        CreateAh AddressVector AttachMcast DetachMcast
        RegisterServiceId ServiceIdRegistered UnregisterServiceId
        RegisterMadAgent MadAgentRegistered UnregisterMadAgent
        AsyncEvent CompletionEvent DoorbellPlace AreaHeader MadSend MadSent MadReceived
    );
    assert_eq!(document.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "not in the crate");
}

#[test]
fn opcodes_of_the_document_are_those_of_the_crate() {
    let rows = table_headed("| code | name | body | answer | |");
    let expected: Vec<Vec<String>> = Opcode::KNOWN
        .iter()
        .map(|opcode| {
            let (body, answer) = opcode.structures().expect("a known opcode");
            let name = opcode.to_string();
            vec![format!("0x{:02x}", opcode.0), name, body.to_owned(), answer.to_owned()]
        })
        .collect();
    assert_eq!(rows.iter().map(|row| row[..4].to_vec()).collect::<Vec<_>>(), expected);
    for (row, opcode) in rows.iter().zip(Opcode::KNOWN) {
        let traits: Vec<&str> = row[4].split(' ').collect();
        assert_eq!(traits.contains(&"S"), opcode.has_segments(), "segments of {opcode}");
        assert_eq!(traits.contains(&"D"), opcode.destroys(), "{opcode} destroys");
    }
}

#[test]
fn statuses_of_the_document_are_those_of_the_crate() {
    let numbers = BTreeMap::from([
        ("0", 0),
        ("EPERM", 1),
        ("EIO", 5),
        ("EAGAIN", 11),
        ("ENOMEM", 12),
        ("EFAULT", 14),
        ("EBUSY", 16),
        ("EINVAL", 22),
        ("EOPNOTSUPP", 95),
        ("EADDRINUSE", 98),
        ("ETIMEDOUT", 110),
    ]);
    let rows: Vec<_> = table_headed("| code | name | errno | |")
        .iter()
        .map(|row| (number(&row[0]), row[1].clone(), numbers[row[2].as_str()]))
        .collect();
    let expected: Vec<_> =
        Status::KNOWN.iter().map(|status| (status.0.into(), status.to_string(), status.errno())).collect();
    assert_eq!(rows, expected);
}

#[test]
fn reasons_of_the_document_are_those_of_the_crate() {
    let rows: Vec<_> = table_headed("| code | name | status | |")
        .iter()
        .map(|row| (number(&row[0]), row[1].clone(), row[2].clone()))
        .collect();
    let expected: Vec<_> = Reason::KNOWN
        .iter()
        .map(|reason| (reason.0.into(), reason.to_string(), reason.status().to_string()))
        .collect();
    assert_eq!(rows, expected);
}

#[test]
fn events_of_the_document_are_those_of_the_crate() {
    let rows: Vec<_> =
        table_headed("| code | name | |").iter().map(|row| (number(&row[0]), row[1].clone())).collect();
    let expected: Vec<_> = EventType::KNOWN.iter().map(|event| (event.0.into(), event.to_string())).collect();
    assert_eq!(rows, expected);
}

#[test]
fn capabilities_of_the_document_are_those_of_the_crate() {
    let rows: Vec<_> = table_headed("| bit | name | |")
        .iter()
        .map(|row| (1u64 << number(&row[0]), row[1].clone()))
        .collect();
    let expected: Vec<_> =
        Capabilities::KNOWN.iter().map(|(name, flag)| (flag.bits(), (*name).to_owned())).collect();
    assert_eq!(rows, expected);
}

/// Whether a paragraph of the document starts with exactly this list.
fn assert_listed(name: &str, items: &[String]) {
    let list = format!("{name}: {}", items.join(", "));
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let listed = DOCUMENT.split("\n\n").any(|paragraph| words(paragraph) == list);
    assert!(listed, "the document lacks: {list}");
}

macro_rules! assert_codes_listed {
    ($($codes:ident)*) => { $(
        let items: Vec<String> = $codes::KNOWN.iter().map(|code| format!("`{code}` {}", code.0)).collect();
        assert_listed(concat!("`", stringify!($codes), "`"), &items);
    )* };
}

macro_rules! assert_bits_listed {
    ($($flags:ident)*) => { $(
        let items: Vec<String> = $flags::KNOWN
            .iter()
            .map(|(name, flag)| format!("`{name}` {}", flag.bits().trailing_zeros()))
            .collect();
        assert_listed(concat!("`", stringify!($flags), "` (bits)"), &items);
    )* };
}

#[test]
fn codes_and_flags_of_the_document_are_those_of_the_crate() {
    assert_codes_listed!(DeviceState QueueFormat SegmentMode AtomicCap PortState LinkLayer Mtu GidType
        DoorbellMode MwType SrqType QpType QpState MigState);
    assert_bits_listed!(DeviceFlags AccessFlags ReregFlags CqFlags SrqAttrMask QpFlags QpAttrMask
        MadAgentFlags);
}
