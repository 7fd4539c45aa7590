//! Every field that the driver reads from the device, with a lie in it: the driver ends in an error that names
//! the field; or any value is right; or the field is never read, which shows in that nothing changes.
//!
//! The lists of fields are those of `mlx4-wire`, so none can be missing. Random values are the same in each run;
//! `PARAVERBS_SEED=number` takes others.

mod common;
mod fields;

use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use mlx4_wire::cmd::fw::{QueryAdapter, QueryFw};
use mlx4_wire::cmd::misc::MgidHash;
use mlx4_wire::cmd::port::QueryPort;
use mlx4_wire::cqe::{Cqe, ErrorCqe};
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::mcg::{McgHeader, McgMember};
use mlx4_wire::ctx::qp::QpMailbox;
use mlx4_wire::ctx::srq::SrqContext;
use mlx4_wire::eqe::{
    CommandEvent, CqErrorEvent, CqEvent, Eqe, EventType, PortChangeEvent, PortInfoEvent,
    PortManagementSubtype, QpEvent, SrqEvent, TableChangeEvent,
};
use mlx4_wire::layout::Layout;
use mlx4_wire::mad::attr::{GuidInfo, NodeInfo, PKeyTable, SlToVlTable};
use mlx4_wire::mad::portinfo::PortInfo;
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::regs::{HCR_BYTES, HCR_OFFSET, Hcr, OWNER_OFFSET};

use fields::lab::{Case, Lab, Operation, Ports, Table};
use fields::tables::{caps, events, ports, queues};
use fields::{FieldAt, Lie, Place, event_fields, fields, work};

/// GUIDs of the cards of these tests.
const GUID: u64 = 0x0002_c903_0001_0000;

fn check(number: u64, case: &Case) {
    Lab::new(GUID + (number << 16)).check(case);
}

/// A structure that the device writes into a mailbox.
fn mailbox<T: Layout>(number: u64, opcode: Opcode, operation: Operation, table: Table) {
    let name = opcode.name().unwrap_or("a command");
    let place = Place::Mailbox(opcode, 0);
    check(
        number,
        &Case {
            name,
            place,
            skip: 0,
            fields: fields::<T>(),
            operation,
            always: Vec::new(),
            ports: Ports::Down,
            table,
        },
    );
}

#[test]
fn query_fw() {
    mailbox::<QueryFw>(1, Opcode::QUERY_FW, work::nothing, caps::QUERY_FW);
}

#[test]
fn query_dev_cap() {
    let (place, fields) = (Place::Mailbox(Opcode::QUERY_DEV_CAP, 0), fields::<QueryDevCap>());
    // A card that cuts long messages, where the flag of their headers counts.
    let always = vec![Lie::of(&fields, place, "gso_rss.log2_max_gso", 12)];
    check(
        2,
        &Case {
            name: "QUERY_DEV_CAP",
            place,
            skip: 0,
            fields,
            operation: work::nothing,
            always,
            ports: Ports::Down,
            table: caps::QUERY_DEV_CAP,
        },
    );
}

#[test]
fn query_port() {
    mailbox::<QueryPort>(3, Opcode::QUERY_PORT, work::nothing, caps::QUERY_PORT);
}

#[test]
fn query_adapter() {
    mailbox::<QueryAdapter>(4, Opcode::QUERY_ADAPTER, work::nothing, caps::QUERY_ADAPTER);
}

#[test]
fn query_qp() {
    // Tables that are smaller than what the bits of an index can name.
    let port =
        |name, value| Lie::of(&fields::<QueryPort>(), Place::Mailbox(Opcode::QUERY_PORT, 0), name, value);
    let device = |name, value| {
        Lie::of(&fields::<QueryDevCap>(), Place::Mailbox(Opcode::QUERY_DEV_CAP, 0), name, value)
    };
    let always = vec![
        port("tables.log2_max_gids", 3),
        port("tables.log2_max_pkeys", 3),
        device("rdma.log2_max_ra_req_qp", 4),
    ];
    check(
        5,
        &Case {
            name: "QUERY_QP",
            place: Place::Mailbox(Opcode::QUERY_QP, 0),
            skip: 0,
            fields: fields::<QpMailbox>(),
            operation: work::query_qp,
            always,
            ports: Ports::Down,
            table: queues::QUERY_QP,
        },
    );
}

#[test]
fn query_cq() {
    mailbox::<CqContext>(6, Opcode::QUERY_CQ, work::query_cq, queues::QUERY_CQ);
}

#[test]
fn query_srq() {
    mailbox::<SrqContext>(7, Opcode::QUERY_SRQ, work::query_srq, queues::QUERY_SRQ);
}

#[test]
fn multicast_entry() {
    mailbox::<McgHeader>(8, Opcode::READ_MCG, work::join, queues::READ_MCG);
}

#[test]
fn member_of_a_multicast_entry() {
    check(
        9,
        &Case {
            name: "McgMember",
            place: Place::Mailbox(Opcode::READ_MCG, size_of::<McgHeader>()),
            skip: 0,
            fields: fields::<McgMember>(),
            operation: work::join,
            always: Vec::new(),
            ports: Ports::Down,
            table: queues::MCG_MEMBER,
        },
    );
}

/// A structure in the low bits of an immediate result.
fn immediate(number: u64, opcode: Opcode, fields: Vec<FieldAt>, operation: Operation, table: Table) {
    let name = opcode.name().unwrap_or("a command");
    let width = fields.iter().map(|(_, at, width)| at + width).max().unwrap_or(0);
    let (place, skip) = (Place::Immediate(opcode), if width == 64 { 0 } else { 32 });
    check(
        number,
        &Case { name, place, skip, fields, operation, always: Vec::new(), ports: Ports::Down, table },
    );
}

#[test]
fn immediate_of_set_icm_size() {
    let fields = vec![("aux_pages".into(), 0, 64)];
    immediate(10, Opcode::SET_ICM_SIZE, fields, work::nothing, caps::SET_ICM_SIZE);
}

#[test]
fn immediate_of_mgid_hash() {
    immediate(11, Opcode::MGID_HASH, fields::<MgidHash>(), work::join, queues::MGID_HASH);
}

/// An attribute that the device's own agent tells.
fn attribute<T: Layout>(number: u64, id: SmpAttribute, (operation, ports): (Operation, Ports), table: Table) {
    let name = id.name().unwrap_or("an attribute");
    let place = Place::Mad(id, std::mem::offset_of!(Smp, data));
    check(
        number,
        &Case { name, place, skip: 0, fields: fields::<T>(), operation, always: Vec::new(), ports, table },
    );
}

#[test]
fn port_info() {
    attribute::<PortInfo>(12, SmpAttribute::PORT_INFO, (work::port, Ports::Down), ports::PORT_INFO);
}

#[test]
fn node_info() {
    attribute::<NodeInfo>(13, SmpAttribute::NODE_INFO, (work::node, Ports::Down), ports::NODE_INFO);
}

#[test]
fn guid_info() {
    attribute::<GuidInfo>(14, SmpAttribute::GUID_INFO, (work::port_tables, Ports::Down), ports::GUID_INFO);
}

#[test]
fn pkey_table() {
    attribute::<PKeyTable>(
        15,
        SmpAttribute::P_KEY_TABLE,
        (work::port_tables, Ports::Down),
        ports::P_KEY_TABLE,
    );
}

#[test]
fn sl_to_vl_mapping_table() {
    let id = SmpAttribute::SL_TO_VL_MAPPING_TABLE;
    attribute::<SlToVlTable>(16, id, (work::send_mad, Ports::Up), ports::SL_TO_VL);
}

#[test]
fn header_of_an_agents_answer() {
    let mut fields = fields::<Smp>();
    fields.retain(|(path, ..)| path != "data");
    check(
        17,
        &Case {
            name: "Smp",
            place: Place::Mad(SmpAttribute::PORT_INFO, 0),
            skip: 0,
            fields,
            operation: work::port,
            always: Vec::new(),
            ports: Ports::Down,
            table: ports::SMP,
        },
    );
}

/// An entry of an event queue.
fn event<T: Layout>(
    (number, name): (u64, &'static str),
    of: fn(&Eqe) -> bool,
    (operation, ports): (Operation, Ports),
    table: Table,
) {
    let place = Place::Event(of, 0);
    check(
        number,
        &Case {
            name,
            place,
            skip: 0,
            fields: event_fields::<T>(),
            operation,
            always: Vec::new(),
            ports,
            table,
        },
    );
}

#[test]
fn event_of_a_command() {
    let of = |eqe: &Eqe| eqe.event_type() == EventType::COMMAND;
    event::<CommandEvent>((18, "EQE (command)"), of, (work::nothing, Ports::Down), events::COMMAND);
}

#[test]
fn event_of_a_completion() {
    let of = |eqe: &Eqe| eqe.event_type() == EventType::COMPLETION;
    event::<CqEvent>((19, "EQE (completion)"), of, (work::notified, Ports::Down), events::COMPLETION);
}

#[test]
fn event_of_a_queue_pair() {
    let of = |eqe: &Eqe| eqe.event_type() == EventType::SQ_DRAINED;
    event::<QpEvent>((20, "EQE (SQ drained)"), of, (work::drained, Ports::Down), events::QUEUE_PAIR);
}

#[test]
fn event_of_a_failed_completion_queue() {
    let of = |eqe: &Eqe| eqe.event_type() == EventType::CQ_ERROR;
    event::<CqErrorEvent>((21, "EQE (CQ error)"), of, (work::overrun, Ports::Down), events::CQ_ERROR);
}

#[test]
fn event_of_a_shared_receive_queue() {
    let of = |eqe: &Eqe| eqe.event_type() == EventType::SRQ_LIMIT;
    event::<SrqEvent>((22, "EQE (SRQ limit)"), of, (work::limit, Ports::Kept), events::SHARED_QUEUE);
}

#[test]
fn event_of_a_port() {
    let of = |eqe: &Eqe| eqe.event_type() == EventType::PORT_CHANGE;
    event::<PortChangeEvent>((23, "EQE (port change)"), of, (work::active, Ports::Up), events::PORT_CHANGE);
}

#[test]
fn event_of_port_info() {
    let of = |eqe: &Eqe| {
        eqe.event_type() == EventType::PORT_MANAGEMENT_CHANGE
            && eqe.subtype == PortManagementSubtype::PORT_INFO.0
    };
    event::<PortInfoEvent>((24, "EQE (PortInfo)"), of, (work::lid, Ports::Up), events::PORT_INFO);
}

/// The model raises none of these while a port comes up, so that of PortInfo says that it is one.
#[test]
fn event_of_a_table() {
    let place = Place::Event(|eqe| eqe.event_type() == EventType::PORT_MANAGEMENT_CHANGE, 0);
    let fields = event_fields::<TableChangeEvent>();
    let subtype = Lie::of(&fields, place, "subtype", PortManagementSubtype::PKEY_TABLE.0.into());
    check(
        25,
        &Case {
            name: "EQE (table)",
            place,
            skip: 0,
            fields,
            operation: work::table,
            always: vec![subtype],
            ports: Ports::Up,
            table: events::TABLE,
        },
    );
}

/// Numbers of queue pairs from this one on are those of the tests.
const FIRST_QPN: u32 = 72;

/// An entry of a completion queue.
fn completion(
    (number, name): (u64, &'static str),
    of: fn(&Cqe) -> bool,
    (operation, ports): (Operation, Ports),
    table: Table,
) {
    let (place, fields) = (Place::Completion(of), fields::<Cqe>());
    check(number, &Case { name, place, skip: 0, fields, operation, always: Vec::new(), ports, table });
}

#[test]
fn completion_with_error() {
    check(
        26,
        &Case {
            name: "ErrorCqe",
            place: Place::Completion(|_| true),
            skip: 0,
            fields: fields::<ErrorCqe>(),
            operation: work::flush,
            always: Vec::new(),
            ports: Ports::Down,
            table: queues::ERROR_CQE,
        },
    );
}

#[test]
fn completion_of_a_receive() {
    let of = |cqe: &Cqe| cqe.qp.qpn() >= FIRST_QPN && !cqe.owner.is_send();
    completion((27, "Cqe (receive)"), of, (work::send, Ports::Kept), queues::RECEIVE_CQE);
}

#[test]
fn completion_of_a_receive_from_a_shared_queue() {
    let of = |cqe: &Cqe| cqe.qp.qpn() >= FIRST_QPN && !cqe.owner.is_send();
    completion((28, "Cqe (shared receive)"), of, (work::send_shared, Ports::Kept), queues::RECEIVE_CQE);
}

#[test]
fn completion_of_an_rdma_write() {
    let of = |cqe: &Cqe| cqe.qp.qpn() >= FIRST_QPN && !cqe.owner.is_send();
    completion((29, "Cqe (RDMA write)"), of, (work::write, Ports::Kept), queues::RECEIVE_CQE);
}

#[test]
fn completion_of_a_send() {
    let of = |cqe: &Cqe| cqe.qp.qpn() >= FIRST_QPN && cqe.owner.is_send();
    completion((30, "Cqe (send)"), of, (work::send, Ports::Kept), queues::SEND_CQE);
}

#[test]
fn completion_of_an_rdma_read() {
    let of = |cqe: &Cqe| cqe.qp.qpn() >= FIRST_QPN && cqe.owner.is_send();
    completion((31, "Cqe (RDMA read)"), of, (work::read, Ports::Kept), queues::READ_CQE);
}

#[test]
fn completion_of_a_management_datagram() {
    let of = |cqe: &Cqe| cqe.qp.qpn() < FIRST_QPN && !cqe.owner.is_send();
    completion((32, "Cqe (special queue pair)"), of, (work::active, Ports::Up), queues::SPECIAL_CQE);
}

/// Where the model has its error buffer, as it tells in QUERY_FW, and its size.
const ERROR_BUFFER: u64 = 0x3_0000;
const ERROR_BUFFER_BYTES: u64 = 64;

/// Registers; those that the driver reads are no others.
fn registers(number: u64, name: &'static str, base: u64, fields: Vec<FieldAt>, table: Table) -> Vec<u64> {
    let lab = Lab::new(GUID + (number << 16));
    let place = Place::Registers(base);
    lab.check(&Case {
        name,
        place,
        skip: 0,
        fields,
        operation: work::alive,
        always: Vec::new(),
        ports: Ports::Down,
        table,
    });
    lab.registers_read()
}

#[test]
fn host_command_register() {
    registers(33, "Hcr", HCR_OFFSET, fields::<Hcr>(), events::HCR);
}

#[test]
fn ownership_word() {
    registers(34, "owner", OWNER_OFFSET, vec![("owner".into(), 0, 32)], events::OWNER);
}

#[test]
fn error_buffer() {
    let fields = vec![("error buffer".into(), 0, 32)];
    let read = registers(35, "error buffer", ERROR_BUFFER, fields, events::ERROR_BUFFER);
    let known = |offset: u64| {
        (HCR_OFFSET..HCR_OFFSET + HCR_BYTES).contains(&offset)
            || offset == OWNER_OFFSET
            || (ERROR_BUFFER..ERROR_BUFFER + ERROR_BUFFER_BYTES).contains(&offset)
    };
    assert!(read.iter().all(|offset| known(*offset)), "registers that no test lies in: {read:x?}");
}
