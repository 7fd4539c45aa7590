//! Connections within a port: nobody gets into another guest's, and whoever belongs together comes together.

use std::sync::Arc;

use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::domain::AllocPd;
use virtio_rdma::request::query::Mtu;
use virtio_rdma::request::queue_pair::{
    AhAttributes, DestroyQp, ModifyQp, QpAttrMask as Mask, QpAttributes, QpState,
};
use virtio_rdma::{Reason, U16, U32};
use zerocopy::FromZeros;

use super::fake::FakeHca;
use super::scene::{alloc_uar, call, create_cq, create_qp, guest};
use crate::hca::{HcaError, QpState as State};
use crate::{GuestConfig, Host, Tenant};

/// The LID of port 1 of the fake, and one that isn't its own.
const OWN: u16 = 1;
const FAR: u16 = 77;

/// A guest's queue pair.
#[derive(Clone, Copy, Debug)]
struct End {
    handle: u32,
    qpn: u32,
}

/// Guests of one HCA.
struct Guests {
    hca: Arc<FakeHca>,
    host: Arc<Host>,
    tenants: Vec<Tenant>,
}

impl Guests {
    fn new(count: usize) -> Self {
        let hca = FakeHca::new();
        let host = Host::new(hca.clone());
        let tenants = (0..count).map(|_| guest(&host, GuestConfig::default()).0).collect();
        Self { hca, host, tenants }
    }

    fn ask<V: virtio_rdma::Verb>(
        &self,
        guest: usize,
        verb: &V,
        memory: &[(u64, u64)],
    ) -> Result<V::Answer, Reason> {
        call(&self.tenants[guest], verb, memory, SegmentMode::DIRECT, 1)
    }

    /// Queue pairs of a guest, which has nothing yet.
    fn ends<const N: usize>(&self, guest: usize) -> [End; N] {
        let pd = self.ask(guest, &AllocPd {}, &[]).unwrap().pd.get();
        let uar = self.ask(guest, &alloc_uar(0x10_0000), &[]).unwrap().uar.get();
        let cq = self.ask(guest, &create_cq(uar, 0x20_0000), &[(0x21_0000, 0x1000)]).unwrap().cq.get();
        std::array::from_fn(|n| {
            let n = n as u64;
            let verb = create_qp(pd, cq, uar, 0x20_0040 + 8 * n);
            let made = self.ask(guest, &verb, &[(0x22_0000 + 0x2000 * n, 0x2000)]).unwrap();
            End { handle: made.qp.get(), qpn: made.qpn.get() }
        })
    }

    /// Takes a queue pair to INIT.
    fn init(&self, guest: usize, end: End) {
        let attributes = QpAttributes { qp_state: QpState::INIT, port_num: 1, ..QpAttributes::new_zeroed() };
        let attr_mask = Mask::STATE | Mask::PKEY_INDEX | Mask::PORT | Mask::ACCESS_FLAGS;
        self.ask(guest, &ModifyQp { qp: U32::new(end.handle), attr_mask, attributes }, &[]).unwrap();
    }

    /// Takes a queue pair from INIT to RTR by a path.
    fn connect_by(&self, guest: usize, end: End, ah_attr: AhAttributes, to: u32) -> Result<(), Reason> {
        let attributes = QpAttributes {
            qp_state: QpState::RTR,
            ah_attr: AhAttributes { port_num: 1, ..ah_attr },
            path_mtu: Mtu::B1024,
            dest_qp_num: U32::new(to),
            ..QpAttributes::new_zeroed()
        };
        let path = Mask::AV | Mask::PATH_MTU | Mask::DEST_QPN | Mask::RQ_PSN;
        let attr_mask = Mask::STATE | path | Mask::MAX_DEST_RD_ATOMIC | Mask::MIN_RNR_TIMER;
        let verb = ModifyQp { qp: U32::new(end.handle), attr_mask, attributes };
        self.ask(guest, &verb, &[]).map(drop)
    }

    /// Takes a queue pair from RESET to RTR.
    fn connect(&self, guest: usize, end: End, dlid: u16, to: u32) -> Result<(), Reason> {
        self.init(guest, end);
        let path = AhAttributes { dlid: U16::new(dlid), ..AhAttributes::new_zeroed() };
        self.connect_by(guest, end, path, to)
    }

    fn reset(&self, guest: usize, end: End) {
        let attributes = QpAttributes { qp_state: QpState::RESET, ..QpAttributes::new_zeroed() };
        let verb = ModifyQp { qp: U32::new(end.handle), attr_mask: Mask::STATE, attributes };
        self.ask(guest, &verb, &[]).unwrap();
    }

    fn destroy(&self, guest: usize, end: End) {
        let verb = DestroyQp { qp: U32::new(end.handle), ..DestroyQp::new_zeroed() };
        self.ask(guest, &verb, &[]).unwrap();
    }

    /// Changes to ERR that the HCA was asked for.
    fn put_to_error(&self) -> usize {
        self.hca.lock().modified.iter().filter(|modify| modify.to == State::Err).count()
    }

    fn end(self) {
        for tenant in &self.tenants {
            tenant.close();
        }
        assert_eq!(self.hca.lock().wrong, Vec::<String>::new());
    }
}

#[test]
fn two_guests_connect_in_either_order_and_again() {
    for [first, second] in [[0, 1], [1, 0]] {
        let guests = Guests::new(2);
        let ends = [guests.ends::<1>(0)[0], guests.ends::<1>(1)[0]];
        for _ in 0..2 {
            guests.connect(first, ends[first], OWN, ends[second].qpn).unwrap();
            guests.connect(second, ends[second], OWN, ends[first].qpn).unwrap();
            guests.reset(first, ends[first]);
            // One end comes back while the other still names it.
            guests.connect(first, ends[first], OWN, ends[second].qpn).unwrap();
            guests.reset(first, ends[first]);
            guests.reset(second, ends[second]);
        }
        assert_eq!(guests.put_to_error(), 0);
        guests.end();
    }
}

#[test]
fn queue_pair_that_is_connected_to_another_can_not_be_named_by_a_third_guest() {
    let guests = Guests::new(3);
    let [one, other, thief] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
    guests.connect(0, one, OWN, other.qpn).unwrap();
    guests.connect(1, other, OWN, one.qpn).unwrap();
    let asked = guests.hca.lock().modified.len();
    for victim in [one, other] {
        assert_eq!(guests.connect(2, thief, OWN, victim.qpn).err(), Some(Reason::TAKEN));
        guests.reset(2, thief);
    }
    // To INIT and to RESET; never to RTR.
    assert_eq!(guests.hca.lock().modified.len(), asked + 4);
    // When they are gone it is a queue pair like any other.
    guests.reset(0, one);
    guests.connect(2, thief, OWN, one.qpn).unwrap();
    guests.end();
}

#[test]
fn bit_of_extended_targets_does_not_lead_around_the_rule() {
    const TARGET: u32 = 1 << 23;
    let guests = Guests::new(3);
    let ([ambush, late], [one], [other]) = (guests.ends(0), guests.ends(1), guests.ends(2));
    // Whoever waits by the other form of the number is stopped too.
    guests.connect(0, ambush, OWN, one.qpn ^ TARGET).unwrap();
    guests.connect(1, one, OWN, other.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 1);
    for form in [one.qpn, one.qpn ^ TARGET] {
        assert_eq!(guests.connect(0, late, OWN, form), Err(Reason::TAKEN));
    }
    guests.connect(2, other, OWN, one.qpn ^ TARGET).unwrap();
    assert_eq!(guests.put_to_error(), 1);
    guests.end();
}

#[test]
fn guest_that_names_a_queue_pair_first_loses_to_the_one_that_it_names() {
    let guests = Guests::new(3);
    let [one, other, thief] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
    guests.connect(2, thief, OWN, one.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 0);
    guests.connect(0, one, OWN, other.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 1, "the one that was first is put to ERR");
    guests.connect(1, other, OWN, one.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 1);
    // Also if the number is nobody's yet, and becomes somebody's: three objects are made before it.
    guests.reset(2, thief);
    guests.reset(0, one);
    guests.connect(2, thief, OWN, thief.qpn + 4).unwrap();
    let [late] = guests.ends::<1>(1);
    assert_eq!(late.qpn, thief.qpn + 4);
    guests.connect(1, late, OWN, one.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 2);
    guests.end();
}

#[test]
fn guest_that_can_not_be_stopped_keeps_the_connection_from_being_made() {
    let guests = Guests::new(3);
    let [one, other, thief] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
    guests.connect(2, thief, OWN, one.qpn).unwrap();
    guests.init(0, one);
    guests.hca.lock().faults.insert("modify qp".into(), (HcaError::Failed, 1));
    let path = AhAttributes { dlid: U16::new(OWN), ..AhAttributes::new_zeroed() };
    assert_eq!(guests.connect_by(0, one, path, other.qpn).err(), Some(Reason::COMMAND_FAILED));
    assert_eq!(guests.put_to_error(), 0);
    guests.connect_by(0, one, path, other.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 1);
    guests.end();
}

#[test]
fn guest_whose_queue_pair_the_hca_does_not_put_to_err_is_stopped_only_if_it_can_not_send() {
    for (state, stopped) in [
        (State::Rts, false),
        (State::Rtr, false),
        (State::Init, false),
        (State::Sqd, false),
        (State::Err, true),
        (State::Reset, true),
    ] {
        let guests = Guests::new(3);
        let [one, other, thief] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
        guests.connect(2, thief, OWN, one.qpn).unwrap();
        guests.init(0, one);
        guests.hca.lock().state = Some(state);
        guests.hca.lock().faults.insert("modify qp".into(), (HcaError::Refused, 1));
        let path = AhAttributes { dlid: U16::new(OWN), ..AhAttributes::new_zeroed() };
        let connected = guests.connect_by(0, one, path, other.qpn);
        assert_eq!(connected.err(), (!stopped).then_some(Reason::COMMAND_FAILED), "{state:?}");
        // The next attempt finds the thief as it was, or not at all.
        if !stopped {
            guests.connect_by(0, one, path, other.qpn).unwrap();
        }
        assert_eq!(guests.put_to_error(), usize::from(!stopped), "{state:?}");
        guests.end();
    }
}

#[test]
fn guest_whose_queue_pair_can_not_be_looked_at_keeps_the_connection_from_being_made() {
    let guests = Guests::new(3);
    let [one, other, thief] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
    guests.connect(2, thief, OWN, one.qpn).unwrap();
    guests.init(0, one);
    guests.hca.lock().faults.insert("modify qp".into(), (HcaError::Refused, 1));
    guests.hca.lock().faults.insert("query qp".into(), (HcaError::Refused, 1));
    let path = AhAttributes { dlid: U16::new(OWN), ..AhAttributes::new_zeroed() };
    assert_eq!(guests.connect_by(0, one, path, other.qpn).err(), Some(Reason::COMMAND_REFUSED));
    guests.connect_by(0, one, path, other.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 1);
    guests.end();
}

#[test]
fn all_queue_pairs_that_name_one_are_stopped_however_many() {
    let guests = Guests::new(5);
    let [one, other] = [0, 1].map(|guest| guests.ends::<1>(guest)[0]);
    let of = |guest| guests.ends::<3>(guest).map(|end| (guest, end));
    let thieves = [of(2), of(3), of(4)].concat();
    thieves.iter().for_each(|(guest, thief)| guests.connect(*guest, *thief, OWN, one.qpn).unwrap());
    guests.init(0, one);
    // Seven are stopped when one can't be: the connection isn't made, and can be made later.
    let path = || AhAttributes { dlid: U16::new(OWN), ..AhAttributes::new_zeroed() };
    guests.hca.lock().faults_after.insert("modify qp".into(), 7);
    guests.hca.lock().faults.insert("modify qp".into(), (HcaError::Failed, 1));
    assert_eq!(guests.connect_by(0, one, path(), other.qpn).err(), Some(Reason::COMMAND_FAILED));
    assert_eq!(guests.put_to_error(), 7);
    let (guest, thief) = thieves[0];
    guests.reset(guest, thief);
    guests.connect(guest, thief, OWN, one.qpn).unwrap();
    guests.connect_by(0, one, path(), other.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 10);
    guests.reset(guest, thief);
    assert_eq!(guests.connect(guest, thief, OWN, one.qpn).err(), Some(Reason::TAKEN));
    guests.end();
}

#[test]
fn own_queue_pairs_of_a_guest_are_connected_as_it_likes() {
    let guests = Guests::new(1);
    let ends = guests.ends::<3>(0);
    guests.connect(0, ends[0], OWN, ends[1].qpn).unwrap();
    guests.connect(0, ends[2], OWN, ends[1].qpn).unwrap();
    guests.connect(0, ends[1], OWN, ends[0].qpn).unwrap();
    assert_eq!(guests.put_to_error(), 0);
    guests.end();
}

#[test]
fn connections_that_leave_the_port_are_left_alone() {
    let guests = Guests::new(2);
    let [one, other] = [0, 1].map(|guest| guests.ends::<1>(guest)[0]);
    // A number on another host that happens to be the one of a queue pair here, in either order.
    guests.connect(0, one, OWN, 0x77).unwrap();
    guests.connect(1, other, FAR, one.qpn).unwrap();
    guests.reset(0, one);
    guests.connect(0, one, OWN, 0x78).unwrap();
    // Nothing from this port's LID reaches one that is connected to another LID.
    guests.reset(0, one);
    guests.reset(1, other);
    guests.connect(0, one, FAR, 0x79).unwrap();
    guests.connect(1, other, OWN, one.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 0);
    guests.end();
}

#[test]
fn path_bits_and_own_gids_do_not_lead_around_the_rule() {
    let guests = Guests::new(3);
    guests.hca.lock().lmc = 2;
    let [one, other, thief] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
    // LIDs 0 to 3 are the port's; any of them at either end.
    guests.connect(0, one, 3, other.qpn).unwrap();
    for dlid in [1, 2, 3] {
        assert_eq!(guests.connect(2, thief, dlid, one.qpn).err(), Some(Reason::TAKEN), "{dlid}");
        guests.reset(2, thief);
    }
    // By a router and back, to the port's own GID.
    guests.init(2, thief);
    let around =
        AhAttributes { dlid: U16::new(FAR), is_global: 1, dgid: [1; 16], ..AhAttributes::new_zeroed() };
    assert_eq!(guests.connect_by(2, thief, around, one.qpn).err(), Some(Reason::TAKEN));
    let away = AhAttributes { dgid: [9; 16], ..around };
    guests.connect_by(2, thief, away, one.qpn).unwrap();
    guests.end();
}

#[test]
fn connection_that_the_hca_refuses_binds_nobody() {
    let guests = Guests::new(3);
    let [one, other, third] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
    guests.init(0, one);
    guests.hca.lock().faults.insert("modify qp".into(), (HcaError::Refused, 1));
    let path = AhAttributes { dlid: U16::new(OWN), ..AhAttributes::new_zeroed() };
    assert_eq!(guests.connect_by(0, one, path, other.qpn).err(), Some(Reason::COMMAND_REFUSED));
    guests.connect(2, third, OWN, one.qpn).unwrap();
    guests.end();
}

#[test]
fn queue_pairs_that_are_gone_bind_nobody() {
    let guests = Guests::new(3);
    let [one, other, third] = [0, 1, 2].map(|guest| guests.ends::<1>(guest)[0]);
    guests.connect(0, one, OWN, other.qpn).unwrap();
    guests.destroy(0, one);
    guests.connect(2, third, OWN, one.qpn).unwrap();
    guests.reset(2, third);
    guests.connect(1, other, OWN, 0x79).unwrap();
    // The guest goes with all that it has.
    guests.tenants[1].close();
    guests.connect(2, third, OWN, other.qpn).unwrap();
    assert_eq!(guests.put_to_error(), 0);
    guests.end();
}

#[test]
fn queue_pair_whose_destruction_failed_counts_until_the_reset() {
    for abandoned in [false, true] {
        let mut guests = Guests::new(4);
        let [named, third, fourth, lost] = [0, 1, 2, 3].map(|guest| guests.ends::<1>(guest)[0]);
        guests.connect(3, lost, OWN, named.qpn).unwrap();
        let owner = guests.tenants.pop().unwrap();
        if abandoned {
            drop(owner);
        } else {
            guests.hca.lock().faults.insert("destroy qp".into(), (HcaError::Failed, 1));
            owner.close();
        }
        // It may have packets under way to the one that it names.
        assert_eq!(guests.connect(0, named, OWN, third.qpn).err(), Some(Reason::COMMAND_FAILED));
        // And it has a connection.
        assert_eq!(guests.connect(2, fourth, OWN, lost.qpn).err(), Some(Reason::TAKEN));
        guests.connect(1, third, OWN, fourth.qpn).unwrap();
        assert_eq!(guests.put_to_error(), 0);

        // With the reset it is gone, and numbers begin anew; there is one guest less.
        guests.hca.lock().forget_all();
        guests.hca.lock().next = 1;
        guests.tenants.iter().for_each(|tenant| tenant.device_lost(1));
        guests.host.after_reset();
        guests.tenants.iter().for_each(|tenant| tenant.device_ready().unwrap());
        let again = guests.ends::<1>(0)[0];
        assert_eq!(again.qpn, named.qpn);
        guests.connect(0, again, OWN, third.qpn).unwrap();
    }
}
