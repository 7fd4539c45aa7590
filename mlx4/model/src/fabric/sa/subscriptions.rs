//! InformInfo: who wants to hear of events, and the reports that tell them (IBTA vol. 1, 13.4.8.3, 13.4.11).

use std::time::Duration;

use mlx4_wire::mad::header::{CommonAttribute, MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::notice::{GidDetails, Notice, NoticeKind, NoticeType, Producer, ReportedNotice, Trap};
use mlx4_wire::mad::sa::SaMad;
use mlx4_wire::mad::sa::record::{InformInfo, InformInfoRecord};
use mlx4_wire::{U16, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::records::{Components, Outcome, Records, one};
use super::request::Request;
use crate::fabric::datagram::Datagram;
use crate::fabric::sm::subnet::Subnet;

/// Subscriptions of all ports together.
const MAX_SUBSCRIPTIONS: usize = 1024;
/// Subscriptions of one port.
const MAX_PER_PORT: usize = 32;
/// Reports to one port that wait for their response; more are dropped.
const MAX_REPORTS_PER_PORT: usize = 64;
/// How long to wait for the response to a report.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a report is sent.
const TRIES: u32 = 4;

const RECORD: Components = Components(&[128, 16, 48, 128, 16, 16, 16, 8, 8, 16, 16, 24, 3, 5, 8, 24]);

/// A subscription.
struct Subscription {
    /// The switch's port of the subscriber.
    port: u8,
    info: InformInfo,
    /// Headers of packets to the subscriber.
    to: Datagram,
}

/// A report that waits for its response.
struct Report {
    port: u8,
    id: u64,
    packet: Datagram,
    tries_left: u32,
    deadline: Duration,
}

/// All subscriptions, and the reports under way.
#[derive(Default)]
pub(super) struct Subscriptions {
    all: Vec<Subscription>,
    reports: Vec<Report>,
    last_id: u64,
}

impl Subscriptions {
    /// Answers Set of InformInfo.
    pub(super) fn change(&mut self, request: &Request<'_>, subnet: &Subnet) -> Outcome {
        let info: InformInfo = request.mad.attribute();
        let known = self.all.iter().position(|other| other.is_same(request, &info));
        match (info.subscribe, known) {
            (1, Some(_)) => (),
            (1, None) => self.subscribe(request, subnet, info)?,
            (0, Some(at)) => {
                self.all.swap_remove(at);
            }
            _ => return Err(Status::SA_REQ_INVALID),
        }
        one(&info)
    }

    /// Answers Get and GetTable of InformInfoRecord: the requester's own.
    pub(super) fn query(&self, request: &Request<'_>, subnet: &Subnet) -> Outcome {
        let wanted: InformInfoRecord = request.mad.attribute();
        let own = self.all.iter().filter(|subscription| subscription.port == request.port);
        let record = |(subscription, number): (&Subscription, u16)| InformInfoRecord {
            subscriber_gid: subnet.gid(request.end.guid()),
            subscriber_enum: U16::new(number),
            _reserved: [0; 6],
            inform_info: subscription.info,
        };
        let picked = own.zip(0..).map(record);
        let picked = picked.filter(|record| RECORD.match_masked(request.mask(), &wanted, record));
        Ok(Records::pack(&picked.collect::<Vec<_>>()))
    }

    /// Reports an event to those who subscribed to it, as far as `may_know` lets them, by switch port.
    pub(super) fn report(
        &mut self,
        now: Duration,
        subnet: &Subnet,
        notice: &Notice,
        may_know: impl Fn(u8) -> bool,
        out: &mut Vec<Datagram>,
    ) {
        let issuer = subnet.by_lid(notice.issuer_lid.get()).map_or(0, |(_, end)| end.guid());
        let reported = ReportedNotice { notice: *notice, issuer_gid: subnet.gid(issuer) };
        for subscription in &self.all {
            let waiting = self.reports.iter().filter(|report| report.port == subscription.port).count();
            if waiting >= MAX_REPORTS_PER_PORT
                || !subscription.wants(&reported)
                || !may_know(subscription.port)
            {
                continue;
            }
            self.last_id += 1;
            let report = subscription.report(self.last_id, now, &reported);
            out.push(report.packet);
            self.reports.push(report);
        }
    }

    /// A response to a report.
    pub(super) fn answered(&mut self, datagram: &Datagram, mad: &SaMad) {
        let id = mad.header.transaction_id.get();
        self.reports.retain(|report| report.id != id || report.packet.headers.dlid != datagram.headers.slid);
    }

    /// Sends reports again that weren't answered, and gives up those that were sent often enough.
    pub(super) fn poll(&mut self, now: Duration, out: &mut Vec<Datagram>) {
        self.reports.retain_mut(|report| {
            if report.deadline > now {
                return true;
            }
            if report.tries_left == 0 {
                return false;
            }
            report.tries_left -= 1;
            report.deadline = now + RESPONSE_TIMEOUT;
            out.push(report.packet);
            true
        });
    }

    /// When [`poll`](Self::poll) has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.reports.iter().map(|report| report.deadline).min()
    }

    /// Forgets the subscriptions of a port that is gone.
    pub(super) fn forget(&mut self, port: u8) {
        self.all.retain(|subscription| subscription.port != port);
        self.reports.retain(|report| report.port != port);
    }

    fn subscribe(&mut self, request: &Request<'_>, subnet: &Subnet, info: InformInfo) -> Result<(), Status> {
        let security = info.notice_type.get() == u16::from(NoticeType::SECURITY.0)
            || (Trap::BAD_M_KEY.0..=Trap::BAD_P_KEY_AT_SWITCH_PORT.0).contains(&info.trap_number.get());
        if info.is_generic == 1 && security {
            return Err(Status::SA_REQ_DENIED);
        }
        let of_port = self.all.iter().filter(|other| other.port == request.port).count();
        if self.all.len() >= MAX_SUBSCRIPTIONS || of_port >= MAX_PER_PORT {
            return Err(Status::SA_NO_RESOURCES);
        }
        let to = request.datagram.answer(subnet.manager_lid(), SaMad::new_zeroed().to_mad());
        self.all.push(Subscription { port: request.port, info, to });
        Ok(())
    }
}

impl Subscription {
    /// Whether a request is about this subscription.
    fn is_same(&self, request: &Request<'_>, info: &InformInfo) -> bool {
        let same_qp = self.to.headers.dest_qp == request.datagram.headers.src_qp;
        let same = InformInfo { subscribe: self.info.subscribe, qp: self.info.qp, ..*info } == self.info;
        self.port == request.port && same_qp && same
    }

    fn wants(&self, reported: &ReportedNotice) -> bool {
        let (info, notice) = (&self.info, &reported.notice);
        let is = |wanted: u32, all: u32, value: u32| wanted == all || wanted == value;
        let all = u32::from(InformInfo::ALL);
        let (first, last) = (info.lid_range_begin.get(), info.lid_range_end.get());
        let issued_there = if info.gid == [0; 16] {
            let lid = notice.issuer_lid.get();
            first == InformInfo::ALL || (first..=last.max(first)).contains(&lid)
        } else {
            info.gid == reported.issuer_gid
        };
        issued_there
            && (info.is_generic == 1) == notice.kind.is_generic()
            && is(info.notice_type.get().into(), all, notice.kind.notice_type().0.into())
            && is(info.trap_number.get().into(), all, notice.trap_number.get().into())
            && is(info.producer.get(), InformInfo::ALL_PRODUCERS, notice.kind.producer().0)
    }

    fn report(&self, id: u64, now: Duration, reported: &ReportedNotice) -> Report {
        let mut mad = SaMad::new_zeroed();
        mad.header = MadHeader {
            base_version: MadHeader::BASE_VERSION,
            mgmt_class: MgmtClass::SUBN_ADM,
            class_version: SaMad::CLASS_VERSION,
            method: Method::REPORT,
            transaction_id: U64::new(id),
            attribute_id: U16::new(CommonAttribute::NOTICE.0),
            ..MadHeader::new_zeroed()
        };
        mad.set_attribute(reported);
        let packet = Datagram { headers: self.to.headers, mad: mad.to_mad() };
        let deadline = now + RESPONSE_TIMEOUT;
        Report { port: self.port, id, packet, tries_left: TRIES - 1, deadline }
    }
}

/// The notice of traps 64 to 67: a port or a multicast group, by its GID, came or went.
pub(super) fn gid_notice(trap: Trap, issuer_lid: u16, gid: [u8; 16]) -> Notice {
    let mut notice = Notice::new_zeroed();
    notice.kind = NoticeKind::new()
        .with_is_generic(true)
        .with_notice_type(NoticeType::SUBNET_MANAGEMENT)
        .with_producer(Producer::CLASS_MANAGER);
    notice.trap_number = U16::new(trap.0);
    notice.issuer_lid = U16::new(issuer_lid);
    let details = GidDetails { gid, ..GidDetails::new_zeroed() };
    notice.details.copy_from_slice(details.as_bytes());
    notice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_add_up_to_the_record() {
        assert_eq!(RECORD.0.iter().sum::<usize>(), 8 * size_of::<InformInfoRecord>());
    }

    #[test]
    fn notice_of_a_port_has_its_gid_at_16() {
        let notice = gid_notice(Trap::GID_IN_SERVICE, 1, [9; 16]);
        assert_eq!(notice.as_bytes()[..8], [0x83, 0, 0, 4, 0, 64, 0, 1]);
        assert_eq!(notice.as_bytes()[0x10..0x20], [9; 16]);
    }
}
