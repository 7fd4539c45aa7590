//! The subnet administrator: class 03 on QP1 of the subnet manager's port (IBTA vol. 1, ch. 15).
//!
//! It answers from what the manager has learnt, and keeps multicast groups itself. As the manager it is a
//! state machine: MADs come in, and MADs to send come out. All requesters are strangers: they see the ports
//! that they share a partition with, change only what is their own, and what they can make it hold has
//! limits.
//!
//! What it doesn't do: MultiPathRecord and other requests of several packets, trusted requesters (SM_Key),
//! joins by proxy.

mod measures;
mod membership;
mod multicast;
mod path;
mod records;
mod request;
mod rmpp;

use std::collections::BTreeSet;
use std::time::Duration;

use mlx4_wire::mad::header::{ClassCapability2, ClassPortInfo, MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::sa::{RmppType, SaAttribute, SaMad, capability, capability2};
use zerocopy::FromZeros;

use super::datagram::Datagram;
use super::sm::subnet::{End, Subnet};
use membership::Limits;
use multicast::Groups;
use records::{Outcome, Records, one};
use request::Request;
use rmpp::Transfers;

/// The administrator answers within 4.096 µs × 2^n.
const RESPONSE_TIME: u32 = 16;

/// The subnet administrator.
pub(crate) struct Administrator {
    life_time: u8,
    groups: Groups,
    transfers: Transfers,
    out: Vec<Datagram>,
}

impl Administrator {
    /// An administrator of an empty subnet. Packets live for 4.096 µs × 2^`life_time`.
    pub(crate) fn new(life_time: u8) -> Self {
        Self { life_time, groups: Groups::default(), transfers: Transfers::default(), out: Vec::new() }
    }

    /// The manager knows its switch: from here on requests can come. `pkeys` are all partitions there are.
    pub(crate) fn subnet_is_up(&mut self, subnet: &Subnet, pkeys: &BTreeSet<u16>) {
        for pkey in pkeys {
            self.groups.configure_ipoib(*pkey, self.life_time, capacity(subnet));
        }
    }

    /// A port is ACTIVE.
    pub(crate) fn port_is_up(&mut self, _end: &End, _subnet: &Subnet) {}

    /// A port is gone, and with it all that it had asked for.
    pub(crate) fn port_is_gone(&mut self, end: &End, _subnet: &Subnet) {
        self.groups.leave_all(&end.guids);
        self.transfers.forget(end.lid);
    }

    /// Takes in a packet for QP1.
    pub(crate) fn receive(&mut self, now: Duration, subnet: &Subnet, datagram: &Datagram) {
        let mad = SaMad::from_mad(&datagram.mad);
        if mad.header.base_version != MadHeader::BASE_VERSION || mad.header.method.is_response() {
            return;
        }
        let Some(request) = Request::read(datagram, mad, subnet) else { return };
        if mad.header.mgmt_class != MgmtClass::SUBN_ADM || mad.header.class_version != SaMad::CLASS_VERSION {
            if matches!(request.method(), Method::GET | Method::SET) {
                self.out.push(request.answer(subnet, Err(Status::BAD_VERSION)));
            }
        } else if mad.rmpp.flags.active() {
            if mad.rmpp.rmpp_type != RmppType::DATA {
                self.transfers.control(now, datagram, &mut self.out);
            }
        } else {
            self.serve(now, subnet, &request);
        }
    }

    /// Does what is due by now.
    pub(crate) fn poll(&mut self, now: Duration, _subnet: &Subnet) {
        self.transfers.poll(now, &mut self.out);
    }

    /// When [`poll`](Self::poll) has something to do.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.transfers.deadline()
    }

    /// The MADs to send.
    pub(crate) fn take_out(&mut self) -> Vec<Datagram> {
        std::mem::take(&mut self.out)
    }

    /// The multicast LIDs whose members changed.
    pub(crate) fn take_changed_groups(&mut self) -> BTreeSet<u16> {
        self.groups.take_changed()
    }

    /// The switch's ports that receive what is sent to a multicast LID.
    pub(crate) fn ports_of(&self, mlid: u16, subnet: &Subnet) -> Vec<u8> {
        self.groups.ports_of(mlid, subnet)
    }

    fn serve(&mut self, now: Duration, subnet: &Subnet, request: &Request<'_>) {
        let outcome = self.outcome(subnet, request);
        let answer = match (request.method(), outcome) {
            (Method::GET_TABLE, Ok(records)) => {
                match self.transfers.start(now, request, subnet, records, &mut self.out) {
                    Ok(()) => return,
                    Err(rmpp::TooMany) => Err(Status::SA_NO_RESOURCES),
                }
            }
            (Method::GET, Ok(records)) => single(records),
            (_, outcome) => outcome,
        };
        self.out.push(request.answer(subnet, answer.as_ref().map_err(|status| *status)));
    }

    fn outcome(&mut self, subnet: &Subnet, request: &Request<'_>) -> Outcome {
        let method = request.method();
        let is_query = matches!(method, Method::GET | Method::GET_TABLE);
        if !is_query && !matches!(method, Method::SET | Method::DELETE) {
            return Err(Status::UNSUPPORTED_METHOD);
        }
        match request.attribute_id() {
            SaAttribute::CLASS_PORT_INFO if method == Method::GET => one(&class_port_info()),
            SaAttribute::PATH_RECORD if is_query => {
                path::query(request, subnet, &self.groups, self.life_time)
            }
            SaAttribute::MC_MEMBER_RECORD if is_query => membership::query(request, &self.groups),
            SaAttribute::MC_MEMBER_RECORD => {
                let limits = Limits { life_time: self.life_time, capacity: capacity(subnet) };
                membership::change(request, subnet, &mut self.groups, limits)
            }
            _ => Err(Status::UNSUPPORTED_METHOD_ATTRIBUTE),
        }
    }
}

/// A Get is answered with exactly one record.
fn single(records: Records) -> Outcome {
    match records.len() {
        0 => Err(Status::SA_NO_RECORDS),
        1 => Ok(records),
        _ => Err(Status::SA_TOO_MANY_RECORDS),
    }
}

/// Multicast LIDs that the switch routes.
fn capacity(subnet: &Subnet) -> u16 {
    subnet.switch_info.map_or(0, |info| info.multicast_fdb_cap.get())
}

fn class_port_info() -> ClassPortInfo {
    let mut info = ClassPortInfo::new_zeroed();
    info.base_version = MadHeader::BASE_VERSION;
    info.class_version = SaMad::CLASS_VERSION;
    info.capability_mask.set(capability::OPTIONAL_RECORDS | capability::UD_MULTICAST);
    info.capability2 = ClassCapability2::new()
        .with_capability_mask2(capability2::SEND_ONLY_FULL_MEMBER)
        .with_resp_time_value(RESPONSE_TIME);
    info
}
