//! The driver on the model: bring-up, ports, and teardown.

mod common;

use common::end::{End, connect_from, request, sent};
use common::{Card, Tampered, config, eventually, fabric};
use mlx4::{Config, Error, Event, Hca, PortEvent};
use mlx4_pci::DoorbellKind;
use mlx4_queue::geometry::Service;
use mlx4_queue::request::{Data, Operation};
use mlx4_wire::mad::portinfo::PortState;
use mlx4_wire::regs::OWNER_OFFSET;

#[test]
fn driver_brings_the_model_up_to_active_and_leaves_nothing_behind() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0000_1000, 1);
    let before = card.dump();
    let host = card.open();
    assert_eq!(host.hca.firmware().version, (2, 42, 5700));
    assert_eq!(host.hca.capabilities().board_id, "MT_1090120019");
    let lid = host.active(1);
    let port = host.hca.port(1).unwrap();
    assert_eq!((port.state, port.lid), (PortState::ACTIVE, lid));
    assert!(lid != 0 && port.sm_lid != 0);
    assert_eq!(host.hca.pkeys(1).unwrap()[0], 0xffff);
    assert_eq!(host.hca.gids(1).unwrap()[0][8..], 0x0002_c903_0000_1001u64.to_be_bytes());
    host.hca.close().unwrap();
    assert_eq!(card.dump(), before);
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}

#[test]
fn driver_can_be_opened_again_after_it_was_closed() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0000_2000, 2);
    for _ in 0..2 {
        let host = card.open();
        assert_ne!(host.active(1), host.active(2));
        host.hca.close().unwrap();
    }
}

#[test]
fn link_of_one_port_goes_down_and_comes_up_and_the_other_works_on() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0000_6000, 2);
    let host = card.open();
    let lids = [host.active(1), host.active(2)];
    let told = |port, event| host.wait_for(Event::Port { port, event });
    for _ in 0..3 {
        card.device.hca().set_link(2, false);
        told(2, PortEvent::Down);
        assert_eq!(host.hca.port(2).unwrap().state, PortState::DOWN);
        assert_eq!(host.hca.port(1).unwrap().state, PortState::ACTIVE);
        card.device.hca().set_link(2, true);
        told(2, PortEvent::Active);
        assert_eq!(host.hca.port(2).unwrap().lid, lids[1]);
    }
    // From one port to the other.
    let ends = [0, 1].map(|_| End::new(&host.hca, Service::Rc));
    connect_from(&ends[0].qp, 1, lids[1], ends[1].qp.number());
    connect_from(&ends[1].qp, 2, lids[0], ends[0].qp.number());
    ends[1].qp.post_receive([(9, &[ends[1].memory.piece(0, 64)][..])]).unwrap();
    ends[0].qp.post_send(&[request(1, Operation::Send, Data::Inline(&[b"across"]))]).unwrap();
    sent(&ends[0], 1);
    assert_eq!(ends[1].completion().wr_id, 9);
    assert_eq!([ends[0].qp.query().unwrap().path.port, ends[1].qp.query().unwrap().path.port], [1, 2]);
    ends.into_iter().for_each(End::destroy);
    host.hca.close().unwrap();
}

/// What the driver sends is never sent: it takes what the subnet manager asks on QP0, and stays mute.
#[test]
fn driver_whose_qp0_is_mute_leaves_its_port_in_init() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0000_3000, 1);
    let mute = Tampered::losing(&card, |kind| matches!(kind, DoorbellKind::Send(_)));
    let hca = Hca::open(mute, &config()).unwrap();
    eventually("a link", || (hca.port(1).unwrap().state == PortState::INIT).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(hca.port(1).unwrap().state, PortState::INIT);
    assert_ne!(card.device.hca().counters().datagrams.get(), 0, "the subnet manager has asked");
    hca.close().unwrap();
}

#[test]
fn driver_without_special_queue_pairs_leaves_its_port_down() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0000_3100, 1);
    let hca = Hca::open(card.seam(), &Config { ports: false, ..config() }).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(hca.port(1).unwrap().state, PortState::DOWN);
    hca.close().unwrap();
}

#[test]
fn device_with_an_owner_is_left_alone() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0000_4000, 1);
    let before = card.dump();
    let owned = Tampered::new(&card, |offset, value| if offset == OWNER_OFFSET { 7 } else { value });
    let error = Hca::open(owned, &config()).unwrap_err();
    assert!(matches!(error, Error::Owned { owner: 7, .. }), "{error}");
    assert_eq!(card.dump(), before);
}

#[test]
fn device_that_reads_as_all_ones_is_gone() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0000_5000, 1);
    let gone = Tampered::new(&card, |_, _| u32::MAX);
    assert!(matches!(Hca::open(gone, &config()).unwrap_err(), Error::Gone(_)));
    let gone = Tampered::new(&card, |offset, value| if offset == OWNER_OFFSET { value } else { u32::MAX });
    let error = Hca::open(gone, &config()).unwrap_err();
    assert_eq!(error.to_string(), "QUERY_FW can't be posted: the device is gone");
}
