//! The subnet administrator: class 03 on QP1 of the subnet manager's port (IBTA vol. 1, ch. 15).
//!
//! It answers from what the manager has learnt, and keeps multicast groups itself. As the manager it is a
//! state machine: MADs come in, and MADs to send come out. All requesters are strangers: they see the ports
//! that they share a partition with, change only what is their own, and what they can make it hold has
//! limits.
//!
//! What it doesn't do: MultiPathRecord and other requests of several packets, trusted requesters (SM_Key),
//! joins by proxy.

mod guids;
mod measures;
mod membership;
mod multicast;
mod nodes;
mod path;
mod records;
mod request;
mod rmpp;
mod services;
mod subscriptions;

use std::collections::BTreeSet;
use std::time::Duration;

use mlx4_wire::mad::header::{ClassCapability2, ClassPortInfo, MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::notice::{Notice, NoticeType, Trap};
use mlx4_wire::mad::sa::{RmppType, SaAttribute, SaMad, capability, capability2};
use zerocopy::FromZeros;

use super::datagram::Datagram;
use super::sm::subnet::{End, Subnet};
use guids::GuidRequests;
pub(crate) use guids::GuidWrite;
use membership::Limits;
use multicast::Groups;
use records::{Outcome, Records, one};
use request::Request;
use rmpp::Transfers;
use services::Services;
use subscriptions::{Subscriptions, gid_notice};

/// The administrator answers within 4.096 µs × 2^n.
const RESPONSE_TIME: u32 = 16;

/// Bit of ClassPortInfo's capability mask 2: GUIDInfoRecord gives out alias GUIDs.
const ALIAS_GUIDS: u32 = 1 << 5;

/// The subnet administrator.
#[derive(Default)]
pub(crate) struct Administrator {
    now: Duration,
    life_time: u8,
    groups: Groups,
    services: Services,
    subscriptions: Subscriptions,
    guids: GuidRequests,
    transfers: Transfers,
    out: Vec<Datagram>,
}

/// Whether a request is answered at once.
enum Answer {
    Now(Outcome),
    Later,
}

impl Administrator {
    /// An administrator of an empty subnet. Packets live for 4.096 µs × 2^`life_time`.
    pub(crate) fn new(life_time: u8) -> Self {
        Self { life_time, ..Self::default() }
    }

    /// Tells the time, before anything else that happens at that time.
    pub(crate) fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// The manager knows its switch: from here on requests can come. `pkeys` are all partitions there are.
    pub(crate) fn subnet_is_up(&mut self, subnet: &Subnet, pkeys: &BTreeSet<u16>) {
        for pkey in pkeys {
            self.groups.configure_ipoib(*pkey, self.life_time, capacity(subnet));
        }
    }

    /// The end at a port of the switch is ACTIVE.
    pub(crate) fn port_is_up(&mut self, port: u8, subnet: &Subnet) {
        if let Some(end) = subnet.end(port) {
            self.report_gid(Trap::GID_IN_SERVICE, end, subnet);
        }
    }

    /// An end is gone, and with it all that it had asked for.
    pub(crate) fn port_is_gone(&mut self, port: u8, end: &End, subnet: &Subnet) {
        self.groups.leave_all(&end.guids);
        self.services.forget(port);
        self.subscriptions.forget(port);
        self.guids.forget(port);
        self.transfers.forget(end.lid);
        self.report_gid(Trap::GID_OUT_OF_SERVICE, end, subnet);
    }

    /// Alias GUIDs that a port doesn't have any more.
    pub(crate) fn guids_are_gone(&mut self, guids: &[u64]) {
        self.groups.leave_all(guids);
    }

    /// A port took a block of its GUID table, or didn't.
    pub(crate) fn guids_written(&mut self, port: u8, block: u8, taken: bool, subnet: &Subnet) {
        self.out.extend(self.guids.written(subnet, port, block, taken));
    }

    /// The blocks of GUID tables that the manager shall write.
    pub(crate) fn take_guid_writes(&mut self) -> Vec<GuidWrite> {
        self.guids.take_writes()
    }

    /// Tells subscribers of a trap that the end at a port sent, unless it is about security.
    pub(crate) fn forward_notice(&mut self, port: u8, mut notice: Notice, subnet: &Subnet) {
        let Some(end) = subnet.end(port).filter(|_| notice.kind.notice_type() != NoticeType::SECURITY) else {
            return;
        };
        notice.issuer_lid.set(end.lid);
        self.report(&notice, subnet, |subscriber| may_see(subscriber, end));
    }

    /// Tells subscribers of the multicast groups that came and went.
    pub(crate) fn report_groups(&mut self, subnet: &Subnet) {
        for event in self.groups.take_events() {
            let trap =
                if event.created { Trap::MULTICAST_GROUP_CREATED } else { Trap::MULTICAST_GROUP_DELETED };
            let notice = gid_notice(trap, subnet.manager_lid(), event.mgid);
            self.report(&notice, subnet, |subscriber| subscriber.shares_pkey(event.pkey));
        }
    }

    /// Takes in a packet for QP1.
    pub(crate) fn receive(&mut self, subnet: &Subnet, datagram: &Datagram) {
        let mad = SaMad::from_mad(&datagram.mad);
        let Some(request) = Request::read(datagram, mad, subnet) else { return };
        let header = &mad.header;
        if header.base_version != MadHeader::BASE_VERSION {
            return;
        }
        if header.mgmt_class != MgmtClass::SUBN_ADM || header.class_version != SaMad::CLASS_VERSION {
            if matches!(request.method(), Method::GET | Method::SET) {
                self.out.push(request.answer(subnet, Err(Status::BAD_VERSION)));
            }
        } else if request.method() == Method::REPORT_RESP {
            self.subscriptions.answered(datagram, &mad);
        } else if header.method.is_response() {
            log::debug!("LID {} sent a response that nobody waits for", datagram.headers.slid);
        } else if mad.rmpp.flags.active() {
            if mad.rmpp.rmpp_type != RmppType::DATA {
                self.transfers.control(self.now, datagram, &mut self.out);
            }
        } else {
            self.serve(subnet, &request);
        }
    }

    /// Does what is due by now.
    pub(crate) fn poll(&mut self) {
        self.services.expire(self.now);
        self.transfers.poll(self.now, &mut self.out);
        self.subscriptions.poll(self.now, &mut self.out);
    }

    /// When [`poll`](Self::poll) has something to do.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let deadlines = [self.services.deadline(), self.transfers.deadline(), self.subscriptions.deadline()];
        deadlines.into_iter().flatten().min()
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

    fn report_gid(&mut self, trap: Trap, end: &End, subnet: &Subnet) {
        let notice = gid_notice(trap, subnet.manager_lid(), subnet.gid(end.guid()));
        self.report(&notice, subnet, |subscriber| may_see(subscriber, end));
    }

    fn report(&mut self, notice: &Notice, subnet: &Subnet, may_know: impl Fn(&End) -> bool) {
        let may_know = |port| subnet.end(port).is_some_and(&may_know);
        self.subscriptions.report(self.now, subnet, notice, may_know, &mut self.out);
    }

    fn serve(&mut self, subnet: &Subnet, request: &Request<'_>) {
        let Answer::Now(outcome) = self.outcome(subnet, request) else { return };
        let answer = match (request.method(), outcome) {
            (Method::GET_TABLE, Ok(records)) => {
                match self.transfers.start(self.now, request, subnet, records, &mut self.out) {
                    Ok(()) => return,
                    Err(rmpp::TooMany) => Err(Status::SA_NO_RESOURCES),
                }
            }
            (Method::GET, Ok(records)) => single(records),
            (_, outcome) => outcome,
        };
        self.out.push(request.answer(subnet, answer.as_ref().map_err(|status| *status)));
    }

    fn outcome(&mut self, subnet: &Subnet, request: &Request<'_>) -> Answer {
        let changes = [Method::SET, Method::DELETE];
        match request.method() {
            Method::GET | Method::GET_TABLE => Answer::Now(self.query(subnet, request)),
            method if changes.contains(&method) => self.change(subnet, request),
            _ => Answer::Now(Err(Status::UNSUPPORTED_METHOD)),
        }
    }

    fn query(&self, subnet: &Subnet, request: &Request<'_>) -> Outcome {
        match request.attribute_id() {
            SaAttribute::CLASS_PORT_INFO if request.method() == Method::GET => one(&class_port_info()),
            SaAttribute::PATH_RECORD => path::query(request, subnet, &self.groups, self.life_time),
            SaAttribute::MC_MEMBER_RECORD => membership::query(request, &self.groups),
            SaAttribute::SERVICE_RECORD => self.services.query(self.now, request),
            SaAttribute::INFORM_INFO_RECORD => self.subscriptions.query(request, subnet),
            _ => {
                let act_count = u32::try_from(self.now.as_secs()).unwrap_or(0);
                let records = nodes::query(request, subnet, act_count);
                records.ok_or(Status::UNSUPPORTED_METHOD_ATTRIBUTE)
            }
        }
    }

    fn change(&mut self, subnet: &Subnet, request: &Request<'_>) -> Answer {
        Answer::Now(match request.attribute_id() {
            SaAttribute::MC_MEMBER_RECORD => {
                let limits = Limits { life_time: self.life_time, capacity: capacity(subnet) };
                membership::change(request, subnet, &mut self.groups, limits)
            }
            SaAttribute::SERVICE_RECORD => self.services.change(self.now, request, subnet),
            SaAttribute::GUID_INFO_RECORD => match self.guids.change(request, subnet, &self.groups) {
                Ok(()) => return Answer::Later,
                Err(status) => Err(status),
            },
            SaAttribute::INFORM_INFO if request.method() == Method::SET => {
                self.subscriptions.change(request, subnet)
            }
            _ => Err(Status::UNSUPPORTED_METHOD_ATTRIBUTE),
        })
    }
}

/// Whether ports are in one partition at least.
fn may_see(viewer: &End, end: &End) -> bool {
    end.pkeys.iter().any(|pkey| viewer.shares_pkey(*pkey))
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
    info.capability_mask.set(
        capability::OPTIONAL_RECORDS | capability::UD_MULTICAST | capability::PORT_INFO_CAPABILITY_MASK_MATCH,
    );
    info.capability2 = ClassCapability2::new()
        .with_capability_mask2(capability2::SEND_ONLY_FULL_MEMBER | ALIAS_GUIDS)
        .with_resp_time_value(RESPONSE_TIME);
    info
}
