//! Multicast groups of the subnet: the port joins those that guests' queue pairs are in, as another card sees it
//! that asks the subnet administrator and sends to them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::guest::Guest;
use common::rings::datagram;
use common::{PATIENCE, Rig, config, eventually, impatient};
use mlx4::{MadAddress, MadQueue, MadSink, ReceivedMad};
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_wire::mad::QP1_QKEY;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::sa::path::{McMemberRecord, ScopeJoin, join_state};
use mlx4_wire::mad::sa::{SaAttribute, SaMad};
use mlx4_wire::wqe::Opcode;
use mlx4_wire::{U16, U32, U64};
use paraverbs_hca::Mlx4Config;
use paraverbs_tenant::hca::{Gid, Grh, Hca, McastGroup, Path, PortInfo};
use zerocopy::FromZeros;

const QKEY: u32 = 0x1234;
/// Bytes in front of a datagram's payload.
const GRH_BYTES: usize = 40;
const MGID: [u8; 16] = [0xff, 0x12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
/// Switch port of the card that is plugged in first.
const FIRST: u8 = 1;

/// Hands datagrams to a test.
struct Mads(Mutex<Sender<ReceivedMad>>);

impl MadSink for Mads {
    fn received(&self, mad: &ReceivedMad) -> bool {
        self.0.lock().unwrap().send(*mad).is_ok()
    }
}

/// Another card, whose guest sends to groups, and whose owner asks the administrator.
struct Witness {
    rig: Rig,
    mads: Receiver<ReceivedMad>,
    asked: u64,
    guest: Guest,
}

impl Witness {
    fn new(fabric: &Arc<Fabric>) -> Self {
        let (sender, mads) = channel();
        let mads_to = Arc::new(Mads(Mutex::new(sender)));
        let rig = Rig::on(fabric, 0x0002_c903_00d9_0000, Mlx4Config { mads: mads_to, ..config() });
        rig.active();
        let guest = Guest::of_datagrams(&rig.hca, 9);
        guest.start(QKEY);
        Self { rig, mads, asked: 0, guest }
    }

    /// Asks about membership in the group.
    fn ask(&mut self, method: Method, mask: u64, record: &McMemberRecord) -> (Status, McMemberRecord) {
        self.asked += 1;
        let mut mad = SaMad::new_zeroed();
        mad.header.base_version = MadHeader::BASE_VERSION;
        mad.header.mgmt_class = MgmtClass::SUBN_ADM;
        mad.header.class_version = SaMad::CLASS_VERSION;
        mad.header.method = method;
        mad.header.attribute_id = U16::new(SaAttribute::MC_MEMBER_RECORD.0);
        mad.header.transaction_id = U64::new(self.asked);
        mad.component_mask = U64::new(mask | McMemberRecord::MASK_MGID);
        mad.set_attribute(&McMemberRecord { mgid: MGID, ..*record });
        let dlid = self.rig.active().sm_lid;
        let to = MadAddress { dlid, sl: 0, path_bits: 0, qpn: 1, qkey: QP1_QKEY, pkey_index: 0, grh: None };
        let sent = self.rig.hca.driver(|driver| driver.send_mad(1, MadQueue::Gsi, &to, &mad.to_mad()));
        sent.unwrap().unwrap();
        loop {
            let answer = SaMad::from_mad(&self.mads.recv_timeout(PATIENCE).unwrap().mad);
            if answer.header.transaction_id.get() == self.asked {
                return (answer.status(), answer.attribute());
            }
        }
    }

    /// Creates the group; its LID.
    fn create(&mut self) -> u16 {
        let record = McMemberRecord {
            port_gid: self.rig.hca.query_gid(1, 0).unwrap().0,
            q_key: U32::new(QKEY),
            p_key: U16::new(0xffff),
            scope_join: ScopeJoin::new().with_join_state(join_state::FULL_MEMBER),
            ..McMemberRecord::new_zeroed()
        };
        let mask = McMemberRecord::MASK_PORT_GID
            | McMemberRecord::MASK_JOIN_STATE
            | McMemberRecord::MASK_Q_KEY
            | McMemberRecord::MASK_TCLASS
            | McMemberRecord::MASK_P_KEY
            | McMemberRecord::MASK_FLOW_LABEL
            | McMemberRecord::MASK_SL;
        let (status, group) = self.ask(Method::SET, mask, &record);
        assert_eq!(status, Status::GOOD);
        group.mlid.get()
    }

    /// Whether the administrator has a port in the group.
    fn has(&mut self, port_gid: Gid) -> bool {
        let record = McMemberRecord { port_gid: port_gid.0, ..McMemberRecord::new_zeroed() };
        match self.ask(Method::GET, McMemberRecord::MASK_PORT_GID, &record).0 {
            Status::GOOD => true,
            Status::SA_NO_RECORDS => false,
            other => panic!("{other:?}"),
        }
    }

    fn waits_until(&mut self, port_gid: Gid, is_member: bool) {
        let what = if is_member { "a member" } else { "no member" };
        eventually(what, || (self.has(port_gid) == is_member).then_some(()));
    }

    /// Sends a message to the group.
    fn send(&mut self, mlid: u16, text: &[u8]) {
        let grh = Grh { dgid: Gid(MGID), sgid_index: 0, flow_label: 0, hop_limit: 0, traffic_class: 0 };
        let path = Path {
            port: 1,
            dlid: mlid,
            sl: 0,
            src_path_bits: 0,
            static_rate: 0,
            grh: Some(grh),
            dmac: [0; 6],
        };
        let vector = self.rig.hca.address_vector(self.guest.pd, &path).unwrap();
        self.guest.write(0, text);
        let payload = self.guest.data(0, u32::try_from(text.len()).unwrap());
        self.guest.post(Opcode::SEND, &[datagram(&vector.0, 0xff_ffff, QKEY), payload].concat());
        self.guest.sent();
    }

    fn close(self) {
        self.guest.destroy();
        self.rig.close();
    }
}

/// A card with a guest's queue pair, and a witness on the same fabric.
struct Scene {
    fabric: Arc<Fabric>,
    rig: Rig,
    port: PortInfo,
    gid: Gid,
    witness: Witness,
}

impl Scene {
    fn new() -> Self {
        let fabric = Fabric::new(FabricConfig::default()).unwrap();
        let rig = Rig::on(&fabric, 0x0002_c903_00d8_0000, config());
        let port = rig.active();
        let gid = rig.hca.query_gid(1, 0).unwrap();
        let witness = Witness::new(&fabric);
        Self { fabric, rig, port, gid, witness }
    }

    fn guest(&self, n: u64) -> Guest {
        Guest::of_datagrams(&self.rig.hca, n)
    }

    fn attach(&self, guest: &Guest) {
        self.rig.hca.attach_mcast(guest.qp.id, &group()).unwrap();
    }

    fn detach(&self, guest: &Guest) {
        self.rig.hca.detach_mcast(guest.qp.id, &group()).unwrap();
    }

    /// What the witness sends arrives.
    fn arrives(&mut self, guest: &mut Guest, mlid: u16, text: &str) {
        guest.post_receive(0x1000, 4096);
        self.witness.send(mlid, text.as_bytes());
        assert_eq!(guest.completion().bytes as usize, GRH_BYTES + text.len());
        assert_eq!(guest.read(0x1000 + GRH_BYTES, text.len()), text.as_bytes());
    }

    fn close(self) {
        self.witness.close();
        self.rig.close();
    }
}

/// Its LID is for senders.
fn group() -> McastGroup {
    McastGroup { mgid: Gid(MGID), mlid: 0xc000 }
}

#[test]
fn port_is_in_a_group_from_the_first_queue_pair_to_the_last() {
    let mut scene = Scene::new();
    let mlid = scene.witness.create();
    let mut guests = [0, 1].map(|n| scene.guest(n));
    guests.iter().for_each(|guest| guest.start(QKEY));
    scene.attach(&guests[0]);
    scene.attach(&guests[1]);
    // At once, without waiting.
    scene.arrives(&mut guests[0], mlid, "to both");
    scene.detach(&guests[0]);
    scene.arrives(&mut guests[1], mlid, "to one");
    assert!(scene.witness.has(scene.gid));
    scene.detach(&guests[1]);
    scene.witness.waits_until(scene.gid, false);
    guests.into_iter().for_each(Guest::destroy);
    scene.close();
}

#[test]
fn group_that_is_created_later_is_joined_then() {
    let mut scene = Scene::new();
    let mut guest = scene.guest(0);
    guest.start(QKEY);
    scene.attach(&guest);
    let mlid = scene.witness.create();
    scene.witness.waits_until(scene.gid, true);
    scene.arrives(&mut guest, mlid, "at last");
    scene.detach(&guest);
    guest.destroy();
    scene.close();
}

#[test]
fn queue_pair_without_a_port_joins_when_it_has_one() {
    let mut scene = Scene::new();
    let mlid = scene.witness.create();
    let mut guest = scene.guest(0);
    scene.attach(&guest);
    assert!(!scene.witness.has(scene.gid));
    guest.start(QKEY);
    scene.witness.waits_until(scene.gid, true);
    scene.arrives(&mut guest, mlid, "in time");
    scene.detach(&guest);
    scene.witness.waits_until(scene.gid, false);
    guest.destroy();
    scene.close();
}

#[test]
fn port_that_was_down_joins_its_groups_again() {
    let mut scene = Scene::new();
    let mlid = scene.witness.create();
    let mut guest = scene.guest(0);
    guest.start(QKEY);
    scene.attach(&guest);
    assert!(scene.witness.has(scene.gid));
    scene.fabric.set_cable(FIRST, false).unwrap();
    scene.witness.waits_until(scene.gid, false);
    scene.fabric.set_cable(FIRST, true).unwrap();
    scene.witness.waits_until(scene.gid, true);
    assert_eq!(scene.rig.active().lid, scene.port.lid);
    scene.arrives(&mut guest, mlid, "again");
    scene.detach(&guest);
    guest.destroy();
    scene.close();
}

#[test]
fn card_that_starts_again_is_in_no_group_that_nobody_is_in() {
    let mut scene = Scene::new();
    scene.witness.create();
    let guest = scene.guest(0);
    guest.start(QKEY);
    scene.attach(&guest);
    assert!(scene.witness.has(scene.gid));
    scene.rig.hca.restart().unwrap();
    scene.rig.active();
    assert!(!scene.witness.has(scene.gid));
    guest.bare.leave();
    scene.close();
}

#[test]
fn without_a_subnet_administrator_groups_are_the_card_s_own() {
    let fabric = Fabric::new(FabricConfig { subnet_manager: None, ..FabricConfig::default() }).unwrap();
    for config in [config(), impatient()] {
        let rig = Rig::on(&fabric, 0x0002_c903_00da_0000, config);
        let guest = Guest::of_datagrams(&rig.hca, 0);
        guest.start(QKEY);
        rig.hca.attach_mcast(guest.qp.id, &group()).unwrap();
        rig.hca.detach_mcast(guest.qp.id, &group()).unwrap();
        guest.destroy();
        rig.close();
    }
}
