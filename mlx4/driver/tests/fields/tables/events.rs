//! Events and registers.

use super::super::lab::Expect::{Ends, Free, Refused, RefusedOr, Unread};
use super::super::lab::Table;
use super::{CODES, NOTHING};

pub const COMMAND: Table = &[
    (&["event_type", "token"], RefusedOr(&["did not end within"])),
    (&["owner.owner"], Ends(&["did not end within"], "the entry isn't the driver's yet, so it waits")),
    (&["status"], Ends(&["failed with"], "it is the error")),
    (&["out_param"], Ends(&[], "checked by whoever reads a result; what is run by events has none")),
    (&["subtype", "function"], Unread),
];

pub const COMPLETION: Table = &[
    (&["event_type"], RefusedOr(NOTHING)),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["cqn.number"], RefusedOr(NOTHING)),
    (&["subtype", "function"], Unread),
];

pub const QUEUE_PAIR: Table = &[
    (&["event_type"], RefusedOr(NOTHING)),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["qpn.number"], RefusedOr(NOTHING)),
    (&["subtype", "function"], Unread),
];

pub const CQ_ERROR: Table = &[
    (&["cqn.number"], Refused),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["event_type"], RefusedOr(NOTHING)),
    (&["syndrome"], Free(CODES)),
    (&["subtype", "function"], Unread),
];

pub const SHARED_QUEUE: Table = &[
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["event_type", "srqn.number"], RefusedOr(NOTHING)),
    (&["subtype", "function"], Unread),
];

pub const PORT_CHANGE: Table = &[
    (&["event_type", "subtype", "port.port"], RefusedOr(NOTHING)),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["function"], Unread),
];

pub const PORT_INFO: Table = &[
    (&["event_type", "subtype", "port"], RefusedOr(NOTHING)),
    (&["changed.sm_sl"], Ends(&[], "tells the same as sm_lid, which is set too")),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["changed.client_reregister", "changed.lid", "changed.gid_prefix", "changed.sm_lid"], Free(CODES)),
    (&["function", "sm_lid", "lid", "sm_sl", "gid_prefix"], Unread),
];

pub const TABLE: Table = &[
    (&["event_type", "subtype", "port"], RefusedOr(NOTHING)),
    (&["owner.owner"], Ends(NOTHING, "the entry isn't the driver's yet, so it waits")),
    (&["function", "block", "entries"], Unread),
];

pub const HCR: Table = &[
    (&["control.status"], Ends(&["failed with"], "it is the error")),
    (
        &["control.go", "control.toggle"],
        Ends(
            &["could not be posted", "did not end within", "has failed"],
            "the register looks as if it were busy",
        ),
    ),
    (&["out_param"], Ends(&["aux_pages", "MAP_ICM"], "the error has what the command's result is")),
    (&["in_param", "in_modifier", "token", "control.event", "control.opmod", "control.opcode"], Unread),
];

pub const OWNER: Table = &[(&["owner"], RefusedOr(&["is gone"]))];

pub const ERROR_BUFFER: Table =
    &[(&["error buffer"], Ends(&["has failed"], "it is the device's failure, which is told"))];
