//! Reserved fields are zero in everything that the stock driver writes.

use std::fmt::Debug;

use mlx4_wire::cmd::fw::ModStatCfg;
use mlx4_wire::cmd::hca::InitHca;
use mlx4_wire::cmd::mad_ifc::MadIfc;
use mlx4_wire::cmd::port::SetPortIb;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::eq::EqContext;
use mlx4_wire::ctx::mcg::McgHeader;
use mlx4_wire::ctx::mpt::MptEntry;
use mlx4_wire::ctx::qp::QpMailbox;
use mlx4_wire::ctx::srq::SrqContext;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::fixture::{Record, read, records};

/// The values of the reserved fields of a structure, as `Debug` shows them: their names start with `_`.
fn reserved<T: FromBytes + Debug>(bytes: &[u8]) -> Vec<String> {
    let text = format!("{:?}", read::<T>(bytes));
    let starts = text.match_indices(" _").map(|(at, _)| &text[at..]);
    let value = |field: &str| {
        let value = field.split_once(": ").map_or("", |(_, value)| value);
        let end = if value.starts_with('[') { value.find(']') } else { value.find([',', ' ']) };
        value[..end.unwrap_or(value.len())].to_owned()
    };
    starts.map(value).collect()
}

fn check(record: &Record) -> Option<Vec<String>> {
    let bytes = &record.bytes;
    Some(match record.name.as_str() {
        "MOD_STAT_CFG" if record.opmod == 0 => reserved::<ModStatCfg>(bytes),
        "INIT_HCA" => reserved::<InitHca>(bytes),
        "SET_PORT" => reserved::<SetPortIb>(bytes),
        "SW2HW_MPT" => reserved::<MptEntry>(bytes),
        "SW2HW_EQ" => reserved::<EqContext>(bytes),
        "SW2HW_CQ" => reserved::<CqContext>(bytes),
        "SW2HW_SRQ" => reserved::<SrqContext>(bytes),
        "WRITE_MCG" => reserved::<McgHeader>(bytes),
        "MAD_IFC" if bytes.len() == 512 => reserved::<MadIfc>(bytes),
        name if name.ends_with("_QP") && bytes.len() == 256 => reserved::<QpMailbox>(bytes),
        _ => return None,
    })
}

#[test]
fn reserved_fields_of_every_mailbox_are_zero() {
    let mut mailboxes = 0;
    for record in records() {
        let Some(values) = check(&record) else { continue };
        mailboxes += 1;
        let number = |value: &str| value.trim_start_matches("U16").trim_start_matches("U32").to_owned();
        let zero = |value: &String| !number(value).contains(|digit| matches!(digit, '1'..='9'));
        assert!(values.iter().all(zero), "{}: {values:?}", record.name);
    }
    assert!(mailboxes > 50, "{mailboxes}");
}

/// The check finds what it looks for.
#[test]
fn reserved_field_that_is_set_is_found() {
    fn with_all_bits<T: FromBytes + FromZeros + IntoBytes + Immutable + Debug>() -> Vec<String> {
        let mut value = T::new_zeroed();
        value.as_mut_bytes().fill(0xff);
        reserved::<T>(value.as_bytes())
    }
    let found = with_all_bits::<CqContext>();
    let lengths: Vec<usize> = found.iter().map(|value| value.matches("255").count()).collect();
    // The last but one is of the pages.
    assert_eq!(lengths, [4, 2, 8]);
    assert!(with_all_bits::<SetPortIb>().iter().all(|value| value.contains("255")));
}
