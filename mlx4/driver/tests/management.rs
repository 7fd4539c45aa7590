//! Management datagrams through the driver: questions to the subnet administrator, traps, performance
//! management, and what the driver doesn't know.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use common::{Card, PATIENCE, config, eventually, fabric};
use mlx4::{Event, Hca, MadAddress, MadQueue, MadSink, PortEvent, ReceivedMad};
use mlx4_wire::mad::header::{CommonAttribute, MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::portinfo::PortState;
use mlx4_wire::mad::sa::record::NodeRecord;
use mlx4_wire::mad::sa::{SaAttribute, SaMad};
use mlx4_wire::mad::{MAD_SIZE, QP1_QKEY};
use mlx4_wire::{U16, U64};
use zerocopy::{FromBytes, FromZeros};

/// Hands datagrams to a test.
struct Mads(Mutex<std::sync::mpsc::Sender<ReceivedMad>>);

impl MadSink for Mads {
    fn received(&self, mad: &ReceivedMad) -> bool {
        self.0.lock().expect("no panic while sending").send(*mad).is_ok()
    }
}

struct Witness {
    card: Card,
    hca: Hca,
    mads: Receiver<ReceivedMad>,
    lid: u16,
}

impl Witness {
    fn new(fabric: &Arc<mlx4_model::fabric::Fabric>, guid: u64) -> Self {
        let card = Card::new(fabric, guid, 1);
        let (sender, mads) = channel();
        let (events, received) = channel();
        let config = mlx4::Config {
            mads: Arc::new(Mads(Mutex::new(sender))),
            events: Arc::new(common::Events::new(events)),
            ..config()
        };
        let hca = Hca::open(card.seam(), &config).unwrap();
        let active = Event::Port { port: 1, event: PortEvent::Active };
        while received.recv_timeout(PATIENCE).unwrap() != active {}
        let lid = hca.port(1).unwrap().lid;
        Self { card, hca, mads, lid }
    }

    fn gsi(&self, dlid: u16) -> MadAddress {
        MadAddress { dlid, sl: 0, path_bits: 0, qpn: 1, qkey: QP1_QKEY, pkey_index: 0, grh: None }
    }

    /// Sends a datagram to QP1 of a port, and waits for the answer with its transaction id.
    fn ask(&self, dlid: u16, mad: &[u8; MAD_SIZE]) -> ReceivedMad {
        let (asked, _) = MadHeader::read_from_prefix(mad).unwrap();
        self.hca.send_mad(1, MadQueue::Gsi, &self.gsi(dlid), mad).unwrap();
        loop {
            let answer = self.mads.recv_timeout(PATIENCE).unwrap();
            let (header, _) = MadHeader::read_from_prefix(&answer.mad).unwrap();
            if header.transaction_id == asked.transaction_id {
                return answer;
            }
        }
    }

    fn close(self) {
        self.hca.close().unwrap();
        assert_eq!(self.card.device.refused(), 0);
    }
}

fn header(class: MgmtClass, version: u8, method: Method, attribute: u16, id: u64) -> MadHeader {
    let mut header = MadHeader::new_zeroed();
    header.base_version = MadHeader::BASE_VERSION;
    header.mgmt_class = class;
    header.class_version = version;
    header.method = method;
    header.attribute_id = U16::new(attribute);
    header.transaction_id = U64::new(id);
    header
}

fn mad(header: &MadHeader) -> [u8; MAD_SIZE] {
    let mut mad = [0; MAD_SIZE];
    mad[..24].copy_from_slice(zerocopy::IntoBytes::as_bytes(header));
    mad
}

/// What the subnet administrator says of the node at a LID.
fn node_description(witness: &Witness, lid: u16) -> String {
    let sm_lid = witness.hca.port(1).unwrap().sm_lid;
    let mut question = SaMad::new_zeroed();
    question.header = header(MgmtClass::SUBN_ADM, 2, Method::GET, SaAttribute::NODE_RECORD.0, 0x77);
    question.component_mask = U64::new(NodeRecord::MASK_LID);
    question.data[..2].copy_from_slice(&lid.to_be_bytes());
    let answer = witness.ask(sm_lid, &zerocopy::transmute!(question));
    assert_eq!((answer.arrival.slid, answer.arrival.source_qpn), (sm_lid, 1));
    let answer: SaMad = zerocopy::transmute!(answer.mad);
    assert_eq!((answer.header.method, answer.header.status.get()), (Method::GET_RESP, 0));
    let (record, _) = NodeRecord::read_from_prefix(&answer.data).unwrap();
    String::from_utf8_lossy(&record.node_description).trim_end_matches('\0').into()
}

#[test]
fn trap_of_the_firmware_reaches_the_subnet_manager() {
    let fabric = fabric();
    let witness = Witness::new(&fabric, 0x0002_c903_0021_0000);
    eventually("the first description at the subnet manager", || {
        node_description(&witness, witness.lid).starts_with("ConnectX-3").then_some(())
    });
    witness.hca.set_node_description("paraverbs mlx4_0").unwrap();
    eventually("the new description at the subnet manager", || {
        (node_description(&witness, witness.lid) == "paraverbs mlx4_0").then_some(())
    });
    witness.close();
}

#[test]
fn performance_management_is_answered_by_the_firmware() {
    let fabric = fabric();
    let witness = Witness::new(&fabric, 0x0002_c903_0022_0000);
    let other = Witness::new(&fabric, 0x0002_c903_0022_0100);
    let question = header(MgmtClass::PERF_MGT, 1, Method::GET, CommonAttribute::CLASS_PORT_INFO.0, 0x99);
    let answer = witness.ask(other.lid, &mad(&question));
    let (header, _) = MadHeader::read_from_prefix(&answer.mad).unwrap();
    assert_eq!((header.method, header.status.get()), (Method::GET_RESP, 0));
    assert_eq!(answer.arrival.slid, other.lid);
    assert!(other.mads.try_recv().is_err(), "nobody but the firmware sees it");
    witness.close();
    other.close();
}

#[test]
fn datagram_of_another_class_is_for_the_sink_and_refused_without_one() {
    let fabric = fabric();
    let witness = Witness::new(&fabric, 0x0002_c903_0023_0000);
    let other = Witness::new(&fabric, 0x0002_c903_0023_0100);
    let message = header(MgmtClass::COMM_MGT, 2, Method::SEND, 0x10, 0x55);
    witness.hca.send_mad(1, MadQueue::Gsi, &witness.gsi(other.lid), &mad(&message)).unwrap();
    let taken = other.mads.recv_timeout(PATIENCE).unwrap();
    assert_eq!((taken.mad, taken.port, taken.arrival.slid), (mad(&message), 1, witness.lid));

    // The sink of this one is gone, so it takes nothing.
    let Witness { card, hca, mads, lid } = other;
    drop(mads);
    let question = header(MgmtClass::DEV_MGT, 1, Method::GET, 0x10, 0x56);
    let answer = witness.ask(lid, &mad(&question));
    let (header, _) = MadHeader::read_from_prefix(&answer.mad).unwrap();
    assert_eq!(header.method, Method::GET_RESP);
    assert_eq!(header.status.get(), Status::UNSUPPORTED_METHOD_ATTRIBUTE.0);
    hca.close().unwrap();
    assert_eq!(card.device.refused(), 0);
    witness.close();
}

#[test]
fn bring_up_tells_of_lid_subnet_manager_and_reregistration() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0024_0000, 1);
    let host = card.open();
    let mut told = Vec::new();
    loop {
        match host.events.recv_timeout(PATIENCE).unwrap() {
            Event::Port { port: 1, event: PortEvent::Active } => break,
            Event::Port { port: 1, event } => told.push(event),
            other => panic!("{other:?}"),
        }
    }
    for event in [PortEvent::Sm, PortEvent::Lid, PortEvent::Reregister] {
        assert!(told.contains(&event), "{event:?} isn't in {told:?}");
    }
    assert_eq!(host.hca.port(1).unwrap().state, PortState::ACTIVE);
    host.hca.close().unwrap();
}

#[test]
fn address_out_of_range_is_refused() {
    let fabric = fabric();
    let witness = Witness::new(&fabric, 0x0002_c903_0025_0000);
    let send = |port, address: MadAddress| {
        witness.hca.send_mad(port, MadQueue::Gsi, &address, &[0; MAD_SIZE]).is_err()
    };
    assert!(send(2, witness.gsi(1)));
    assert!(send(1, MadAddress { sl: 16, ..witness.gsi(1) }));
    assert!(send(1, MadAddress { pkey_index: 200, ..witness.gsi(1) }));
    witness.close();
}
