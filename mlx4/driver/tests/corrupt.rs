//! Every field that the driver reads from the device, with a lie in it: the driver ends in an error that names
//! the field, or the value is legal, or the table here says why nobody looks.

mod common;
mod fields;

use mlx4::Hca;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use mlx4_wire::cmd::fw::{QueryAdapter, QueryFw};
use mlx4_wire::cmd::port::QueryPort;

use fields::Expect::{NotChecked, Refused, RefusedOr};
use fields::{Case, Expect, Lab, Place, fields};

type Table = &'static [(&'static [&'static str], Expect)];

const UNUSED: &str = "the driver doesn't read it";
const TEXT: &str = "shown to people only";
const ANY: &str = "every value is legal";

fn nothing(_: &Hca) -> Result<(), mlx4::Error> {
    Ok(())
}

const QUERY_FW: Table = &[
    (
        &["cmd_interface_rev", "error_buf_size", "error_buf_offset", "error_buf_bar.pair", "log2_max_outstanding_cmd"],
        Refused,
    ),
    (&["fw_pages"], RefusedOr(&["MAP_FA", "RUN_FW"])),
    (&["fw_rev_major", "fw_rev_subminor", "fw_rev_minor"], NotChecked(TEXT)),
];

#[test]
fn query_fw() {
    Lab::new(0x0002_c903_0001_0000).check(&Case {
        name: "QUERY_FW",
        place: Place::Mailbox(Opcode::QUERY_FW),
        skip: 0,
        fields: fields::<QueryFw>(),
        operation: nothing,
        table: QUERY_FW,
    });
}

#[test]
fn query_dev_cap() {
    Lab::new(0x0002_c903_0002_0000).check(&Case {
        name: "QUERY_DEV_CAP",
        place: Place::Mailbox(Opcode::QUERY_DEV_CAP),
        skip: 0,
        fields: fields::<QueryDevCap>(),
        operation: nothing,
        table: &[],
    });
}

#[test]
fn query_port() {
    Lab::new(0x0002_c903_0003_0000).check(&Case {
        name: "QUERY_PORT",
        place: Place::Mailbox(Opcode::QUERY_PORT),
        skip: 0,
        fields: fields::<QueryPort>(),
        operation: nothing,
        table: &[],
    });
}

#[test]
fn query_adapter() {
    Lab::new(0x0002_c903_0004_0000).check(&Case {
        name: "QUERY_ADAPTER",
        place: Place::Mailbox(Opcode::QUERY_ADAPTER),
        skip: 0,
        fields: fields::<QueryAdapter>(),
        operation: nothing,
        table: &[(&["inta_pin", "vsd"], NotChecked(UNUSED)), (&["board_id"], NotChecked(ANY))],
    });
}
