//! The sending half of RMPP (IBTA vol. 1, 13.6): tables as segments, a window of them at a time.

use std::time::Duration;

use mlx4_wire::U32;
use mlx4_wire::mad::header::Method;
use mlx4_wire::mad::sa::{RmppFlags, RmppHeader, RmppStatus, RmppType, SaMad};

use super::records::Records;
use super::request::{Request, stride_units};
use crate::fabric::datagram::Datagram;
use crate::fabric::sm::subnet::Subnet;

/// Transfers under way for all requesters together.
const MAX_TRANSFERS: usize = 128;
/// Transfers under way for one requester.
const MAX_PER_REQUESTER: usize = 8;
/// How long to wait for an ACK before the window is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a window is sent before the transfer is given up.
const TRIES: u32 = 4;

/// One table on its way.
struct Transfer {
    /// Headers of each segment; LIDs and queue pairs included.
    template: Datagram,
    data: Vec<u8>,
    segments: u32,
    /// Highest segment that is acknowledged.
    acked: u32,
    /// Highest segment that may be sent.
    window: u32,
    tries_left: u32,
    deadline: Duration,
}

/// All tables on their way.
#[derive(Default)]
pub(super) struct Transfers(Vec<Transfer>);

/// Why a table can't be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Transfers {
    /// Answers a GetTable request. A second answer to the same request replaces the first.
    pub(super) fn start(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        subnet: &Subnet,
        records: Records,
        out: &mut Vec<Datagram>,
    ) -> Result<(), TooMany> {
        let mut mad = request.blank_answer();
        if records.len() > 0 {
            mad.attribute_offset = stride_units(&records);
        }
        let template = request.datagram.answer(subnet.manager_lid(), mad.to_mad());
        self.0.retain(|transfer| !transfer.is_same(&template));
        let of_requester = |transfer: &&Transfer| transfer.template.headers.dlid == template.headers.dlid;
        if self.0.len() >= MAX_TRANSFERS || self.0.iter().filter(of_requester).count() >= MAX_PER_REQUESTER {
            return Err(TooMany);
        }
        let segments = records.bytes.len().div_ceil(SaMad::DATA_SIZE).max(1);
        let segments = u32::try_from(segments).map_err(|_| TooMany)?;
        let mut transfer = Transfer {
            template,
            data: records.bytes,
            segments,
            acked: 0,
            window: 1,
            tries_left: TRIES,
            deadline: now,
        };
        transfer.send_window(now, out);
        self.0.push(transfer);
        Ok(())
    }

    /// Takes in an ACK, STOP or ABORT of a receiver.
    pub(super) fn control(&mut self, now: Duration, datagram: &Datagram, out: &mut Vec<Datagram>) {
        let mad = SaMad::from_mad(&datagram.mad);
        let Some(at) = self.0.iter().position(|transfer| transfer.is_acked_by(datagram, &mad)) else {
            return;
        };
        let rmpp = &mad.rmpp;
        if rmpp.rmpp_type != RmppType::ACK {
            self.0.swap_remove(at);
            return;
        }
        let transfer = &mut self.0[at];
        let (segment, window) = (rmpp.segment_number.get(), rmpp.length_or_window.get());
        let fault = if window < segment {
            Some(RmppStatus::NEW_WINDOW_LAST_TOO_SMALL)
        } else if segment > transfer.segments || segment > transfer.window {
            Some(RmppStatus::SEGMENT_NUMBER_TOO_BIG)
        } else {
            None
        };
        if let Some(status) = fault {
            out.push(transfer.abort(status));
            self.0.swap_remove(at);
        } else if segment == transfer.segments {
            self.0.swap_remove(at);
        } else if segment >= transfer.acked {
            transfer.advance(now, segment, window, out);
        }
    }

    /// Sends again what wasn't acknowledged in time.
    pub(super) fn poll(&mut self, now: Duration, out: &mut Vec<Datagram>) {
        self.0.retain_mut(|transfer| {
            if transfer.deadline > now {
                return true;
            }
            if transfer.tries_left == 0 {
                out.push(transfer.abort(RmppStatus::TOO_MANY_RETRIES));
                return false;
            }
            transfer.send_window(now, out);
            true
        });
    }

    /// When [`poll`](Self::poll) has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.0.iter().map(|transfer| transfer.deadline).min()
    }

    /// Forgets what is on its way to a LID: its port is gone.
    pub(super) fn forget(&mut self, lid: u16) {
        self.0.retain(|transfer| transfer.template.headers.dlid != lid);
    }
}

impl Transfer {
    fn is_same(&self, template: &Datagram) -> bool {
        let (own, other) = (SaMad::from_mad(&self.template.mad), SaMad::from_mad(&template.mad));
        self.template.headers.dlid == template.headers.dlid
            && self.template.headers.dest_qp == template.headers.dest_qp
            && own.header.transaction_id == other.header.transaction_id
    }

    /// An ACK has the method of the answer without the response bit, and the rest of its identity.
    fn is_acked_by(&self, datagram: &Datagram, mad: &SaMad) -> bool {
        let own = SaMad::from_mad(&self.template.mad);
        datagram.headers.slid == self.template.headers.dlid
            && datagram.headers.src_qp == self.template.headers.dest_qp
            && mad.header.transaction_id == own.header.transaction_id
            && mad.header.attribute_id == own.header.attribute_id
            && mad.header.method == Method(own.header.method.0 & !Method::RESPONSE)
    }

    fn advance(&mut self, now: Duration, segment: u32, window: u32, out: &mut Vec<Datagram>) {
        let progress = segment > self.acked || window > self.window;
        self.acked = segment;
        self.window = self.window.max(window.min(self.segments));
        if progress {
            self.tries_left = TRIES;
            self.send_window(now, out);
        }
    }

    fn send_window(&mut self, now: Duration, out: &mut Vec<Datagram>) {
        self.tries_left = self.tries_left.saturating_sub(1);
        self.deadline = now + ACK_TIMEOUT;
        for segment in self.acked + 1..=self.window.min(self.segments) {
            out.push(self.segment(segment));
        }
    }

    fn segment(&self, number: u32) -> Datagram {
        let (first, last) = (number == 1, number == self.segments);
        let from = usize::try_from(number - 1).unwrap_or(0) * SaMad::DATA_SIZE;
        let part = &self.data[from.min(self.data.len())..];
        let part = &part[..part.len().min(SaMad::DATA_SIZE)];
        let headers = usize::try_from(self.segments).unwrap_or(0) * SaMad::SA_HEADER_SIZE;
        let length = match (first, last) {
            (true, _) => headers + self.data.len(),
            (false, true) => SaMad::SA_HEADER_SIZE + part.len(),
            (false, false) => 0,
        };
        let mut mad = SaMad::from_mad(&self.template.mad);
        mad.rmpp = RmppHeader {
            version: RmppHeader::VERSION,
            rmpp_type: RmppType::DATA,
            flags: RmppFlags::new().with_first(first).with_last(last).with_active(true),
            status: RmppStatus::NORMAL,
            segment_number: U32::new(number),
            length_or_window: U32::new(u32::try_from(length).unwrap_or(0)),
        };
        mad.data[..part.len()].copy_from_slice(part);
        Datagram { headers: self.template.headers, mad: mad.to_mad() }
    }

    fn abort(&self, status: RmppStatus) -> Datagram {
        let mut mad = SaMad::from_mad(&self.template.mad);
        mad.rmpp = RmppHeader {
            version: RmppHeader::VERSION,
            rmpp_type: RmppType::ABORT,
            flags: RmppFlags::new().with_active(true),
            status,
            segment_number: U32::new(0),
            length_or_window: U32::new(0),
        };
        Datagram { headers: self.template.headers, mad: mad.to_mad() }
    }
}
