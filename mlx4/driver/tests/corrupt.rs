//! Every field that the driver reads from the device, with a lie in it: the driver ends in an error that names
//! the field, or the value is legal, or the table here says why nobody looks.

mod common;
mod fields;

use std::time::{Duration, Instant};

use mlx4::{Access, Attributes, CompletionQueue, Error, Hca, QueuePair, QueuePairConfig, RegisteredMemory};
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use mlx4_wire::cmd::fw::{QueryAdapter, QueryFw};
use mlx4_wire::cmd::misc::MgidHash;
use mlx4_wire::cmd::port::QueryPort;
use mlx4_wire::cqe::ErrorCqe;
use mlx4_wire::ctx::mcg::McgHeader;
use mlx4_wire::ctx::qp::QpState;
use mlx4_wire::eqe::{CommandEvent, Eqe, EventType};
use mlx4_wire::layout::Layout;
use mlx4_wire::mad::attr::{GuidInfo, PKeyTable};
use mlx4_wire::mad::header::MadHeader;
use mlx4_wire::mad::portinfo::PortInfo;
use mlx4_wire::mad::smp::{Smp, SmpAttribute};

use fields::Expect::{NotChecked, Refused, RefusedOr};
use fields::tables::{
    ANY, EQE, ERROR_CQE, PORT_INFO, QUERY_DEV_CAP, QUERY_FW, QUERY_PORT, READ_MCG, SMP, Table, UNUSED,
};
use fields::{Case, Lab, Operation, Place, fields};

fn nothing(_: &Hca) -> Result<(), Error> {
    Ok(())
}

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
        table: QUERY_DEV_CAP,
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
        table: QUERY_PORT,
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

#[test]
fn immediate_of_set_icm_size() {
    Lab::new(0x0002_c903_0005_0000).check(&Case {
        name: "SET_ICM_SIZE",
        place: Place::Immediate(Opcode::SET_ICM_SIZE),
        skip: 0,
        fields: vec![("aux_pages".into(), 0, 64)],
        operation: nothing,
        table: &[(&["aux_pages"], RefusedOr(&["MAP_ICM_AUX", "MAP_ICM", "INIT_HCA"]))],
    });
}

fn read_port(hca: &Hca) -> Result<(), Error> {
    hca.port(1).map(drop)
}

fn read_tables(hca: &Hca) -> Result<(), Error> {
    hca.gids(1)?;
    hca.pkeys(1).map(drop)
}

fn attribute<T: Layout>(name: &'static str, id: SmpAttribute, operation: Operation, table: Table) {
    // Behind the header, the M_Key, the LIDs and what is reserved.
    let place = Place::Mad(id, std::mem::offset_of!(Smp, data));
    let case = Case { name, place, skip: 0, fields: fields::<T>(), operation, table };
    Lab::new(0x0002_c903_0007_0000 + u64::from(id.0)).check(&case);
}

#[test]
fn port_info() {
    attribute::<PortInfo>("PortInfo", SmpAttribute::PORT_INFO, read_port, PORT_INFO);
}

#[test]
fn guid_info() {
    attribute::<GuidInfo>("GUIDInfo", SmpAttribute::GUID_INFO, read_tables, &[(&["guids"], NotChecked(ANY))]);
}

#[test]
fn pkey_table() {
    attribute::<PKeyTable>(
        "P_KeyTable",
        SmpAttribute::P_KEY_TABLE,
        read_tables,
        &[(&["p_keys"], NotChecked(ANY))],
    );
}

#[test]
fn event_queue_entry() {
    // Of commands, from NOP on.
    let mut all = fields::<Eqe>();
    all.retain(|(path, ..)| path != "data");
    let data = fields::<CommandEvent>();
    all.extend(data.into_iter().map(|(path, at, width)| (path, at + 32, width)));
    Lab::new(0x0002_c903_0008_0000).check(&Case {
        name: "EQE (command)",
        place: Place::Event(EventType::COMMAND.0, 0),
        skip: 0,
        fields: all,
        operation: nothing,
        table: EQE,
    });
}

#[test]
fn header_of_an_agents_answer() {
    Lab::new(0x0002_c903_0006_0000).check(&Case {
        name: "MadHeader",
        place: Place::Mad(SmpAttribute::PORT_INFO, 0),
        skip: 0,
        fields: fields::<MadHeader>(),
        operation: read_port,
        table: SMP,
    });
}

/// A datagram queue pair in INIT, with what it works with.
fn with_queue_pair(
    hca: &Hca,
    work: impl FnOnce(&QueuePair, &CompletionQueue, &RegisteredMemory) -> Result<(), Error>,
) -> Result<(), Error> {
    let (pd, uar) = (hca.pd()?, hca.uar()?);
    let cq = hca.completion_queue(16, &uar, 0, || ())?;
    let memory = hca.memory(&pd, 4096, Access::ALL)?;
    let config = QueuePairConfig {
        service: Service::Ud,
        pd: &pd,
        uar: &uar,
        send_cq: &cq,
        receive_cq: &cq,
        send: SendSize { requests: 16, sges: 1, inline: 0 },
        receives: 16,
        receive_sges: 1,
        srq: None,
    };
    let qp = hca.queue_pair(&config)?;
    let init = Attributes { port: Some(1), pkey_index: Some(0), qkey: Some(1), ..Attributes::default() };
    qp.modify(QpState::INIT, &init)?;
    let result = work(&qp, &cq, &memory);
    qp.destroy()?;
    cq.destroy()?;
    memory.destroy()?;
    result
}

/// Flushes a receive request.
fn flush(hca: &Hca) -> Result<(), Error> {
    with_queue_pair(hca, |qp, cq, memory| {
        qp.post_receive([(77, &[memory.piece(0, 64)][..])])?;
        qp.modify(QpState::ERR, &Attributes::default())?;
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut found = None;
        while found.is_none() {
            cq.poll(1, |completion| found = Some(completion))?;
            if Instant::now() > deadline {
                return Err(Error::Exhausted("completion"));
            }
        }
        assert_eq!(found.map(|completion| completion.wr_id), Some(77));
        Ok(())
    })
}

#[test]
fn completion_with_error() {
    Lab::new(0x0002_c903_0009_0000).check(&Case {
        name: "ErrorCqe",
        place: Place::Completion,
        skip: 0,
        fields: fields::<ErrorCqe>(),
        operation: flush,
        table: ERROR_CQE,
    });
}

/// Joins a group and leaves it.
fn join(hca: &Hca) -> Result<(), Error> {
    with_queue_pair(hca, |qp, _, _| {
        let group = [0xff; 16];
        hca.attach_multicast(qp.object(), &group, false)?;
        hca.detach_multicast(qp.object(), &group)
    })
}

#[test]
fn immediate_of_mgid_hash() {
    Lab::new(0x0002_c903_000a_0000).check(&Case {
        name: "MGID_HASH",
        place: Place::Immediate(Opcode::MGID_HASH),
        skip: 32,
        fields: fields::<MgidHash>(),
        operation: join,
        table: &[(&["hash"], Refused)],
    });
}

#[test]
fn multicast_entry() {
    Lab::new(0x0002_c903_000b_0000).check(&Case {
        name: "READ_MCG",
        place: Place::Mailbox(Opcode::READ_MCG),
        skip: 0,
        fields: fields::<McgHeader>(),
        operation: join,
        table: READ_MCG,
    });
}
