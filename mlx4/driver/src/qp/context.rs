//! The mailbox of a transition, built field by field.
//!
//! What never changes is repeated in each, as the stock driver does, but for where the queues lie: that is told
//! on the way out of RESET only. Of the rest, only fields are filled in that were given, with their bits in the
//! mask.

use mlx4_wire::ctx::RingPages;
use mlx4_wire::ctx::path::{FORCE_SGID, SchedQueue};
use mlx4_wire::ctx::qp::{
    Mtu, MtuMessage, PathMigration, QpFlags, QpMailbox, QpSrq, QpState, QpXrcd, RequesterParams, ServiceType,
    WqSize,
};
use mlx4_wire::{Number24, U32, U64};
use zerocopy::FromZeros;

use super::attributes::{Attributes, Role};
use crate::error::{Error, Result};
use crate::path::{NO_COUNTER, path_timeout};
use crate::region::Access;

/// log2 of the packets from one request for an ACK to the next, as the stock driver has it.
const LOG2_ACK_REQUEST: u8 = 8;

/// log2 of the greatest message of datagram and special queue pairs.
const LOG2_UD_MESSAGE: u8 = 13;
const LOG2_MLX_MESSAGE: u8 = 11;

/// What of a queue pair never changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    pub(super) service: ServiceType,
    pub(super) qpn: u32,
    pub(super) pd: u32,
    pub(super) uar: u32,
    pub(super) send_cqn: u32,
    pub(super) receive_cqn: u32,
    pub(super) srqn: Option<u32>,
    pub(super) send: WqSize,
    /// Zero without a receive queue.
    pub(super) receive: WqSize,
    pub(super) pages: RingPages,
    pub(super) record: u64,
    /// Of the target of an extended connection: its domain.
    pub(super) xrcd: Option<u16>,
    /// Fast register requests are allowed.
    pub(super) fast_register: bool,
    /// Datagrams can be cut out of long messages.
    pub(super) lso: bool,
    /// Datagrams have this source GID, whatever their address vector says.
    pub(super) forced_gid: Option<u8>,
    /// The schedule queue of port 1 and service level 0.
    pub(super) sched_queue: SchedQueue,
}

/// What a transition changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) from: QpState,
    pub(super) to: QpState,
    pub(super) attributes: &'a Attributes,
    /// What the other end may do from now on.
    pub(super) access: Access,
    /// Whether there are resources to answer reads and atomics with.
    pub(super) responds: bool,
    /// The port, from 1.
    pub(super) port: u8,
}

/// Limits of the device that attributes are held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) ports: u8,
    pub(super) log2_max_message: u8,
    pub(super) log2_max_lso: u8,
    pub(super) log2_requester_reads: u8,
    pub(super) log2_responder_reads: u8,
}

impl Fixed {
    /// What the queue pair is, as far as its attributes go.
    pub(super) fn role(&self) -> Role {
        match (self.service, self.xrcd) {
            (ServiceType::RC, _) => Role::Rc,
            (ServiceType::UC, _) => Role::Uc,
            (ServiceType::XRC, None) => Role::XrcSend,
            (ServiceType::XRC, Some(_)) => Role::XrcReceive,
            _ => Role::Datagram,
        }
    }

    /// The mailbox of a transition, whose attributes have been checked to be of it.
    pub(super) fn mailbox(&self, limits: &Limits, change: &Change<'_>) -> Result<QpMailbox> {
        let Change { from, to, attributes, .. } = *change;
        let mut mailbox = self.base(to, attributes);
        if from == QpState::RST {
            mailbox.context.record_address = U64::new(self.record);
            mailbox.context.pages = self.pages;
        }
        self.path(&mut mailbox, limits, change)?;
        self.messages(&mut mailbox, limits, attributes);
        requester(&mut mailbox, limits, attributes)?;
        responder(&mut mailbox, limits, attributes)?;
        if attributes.access.is_some() || attributes.responder_reads.is_some() {
            rights(&mut mailbox, change.access, change.responds);
        }
        if let Some(qkey) = attributes.qkey {
            mailbox.context.qkey = U32::new(qkey);
            mailbox.optional.set_qkey(true);
        }
        Ok(mailbox)
    }

    fn base(&self, to: QpState, attributes: &Attributes) -> QpMailbox {
        let mut mailbox = QpMailbox::new_zeroed();
        let context = &mut mailbox.context;
        let migration = attributes.migration.unwrap_or(PathMigration::MIGRATED);
        context.flags =
            QpFlags::new().with_state(to).with_service(self.service).with_path_migration(migration);
        context.pd = Number24::wrapping(self.pd);
        (context.rq_size, context.sq_size) = (self.receive, self.send);
        context.uar_page = Number24::wrapping(self.uar);
        context.local_qpn = Number24::wrapping(self.qpn);
        context.requester = RequesterParams::new()
            .with_log2_ack_request(LOG2_ACK_REQUEST)
            .with_fast_register(self.fast_register);
        context.xrcd = QpXrcd::new().with_xrcd(self.xrcd.unwrap_or(0));
        context.send_cqn = Number24::wrapping(self.send_cqn);
        context.receive_cqn = Number24::wrapping(self.receive_cqn);
        if let Some(srqn) = self.srqn {
            context.srq = QpSrq::new().with_enable(true).with_srqn(srqn & Number24::MAX);
            context.responder.set_invalid_credits(true);
        }
        if to == QpState::RTR {
            context.primary_path.counter_index = NO_COUNTER;
        }
        mailbox.optional.set_path_migration(attributes.migration.is_some());
        mailbox
    }

    fn path(&self, mailbox: &mut QpMailbox, limits: &Limits, change: &Change<'_>) -> Result<()> {
        let Change { to, attributes, port, .. } = *change;
        if port == 0 || port > limits.ports {
            return Err(Error::argument("port", port));
        }
        let primary = &mut mailbox.context.primary_path;
        // Datagrams have their path in the request, but their port here.
        if attributes.port.is_some() || to == QpState::RTR {
            primary.sched_queue = self.sched_queue.with_port_index((port - 1) & 1);
        }
        if let Some(index) = self.forced_gid.filter(|_| to == QpState::RTR) {
            primary.sgid_index = FORCE_SGID | index;
        }
        if let Some(path) = attributes.path {
            *primary = path.address(limits.ports)?;
            mailbox.optional.set_primary_path(true);
            mailbox.optional.set_sched_queue(true);
        }
        if let Some(index) = attributes.pkey_index {
            primary.pkey_index = pkey_index(index)?;
            mailbox.optional.set_pkey_index(true);
        }
        if let Some(timeout) = attributes.timeout {
            primary.timeout = path_timeout(timeout)?;
            mailbox.optional.set_ack_timeout(true);
        }
        if let Some(alternate) = attributes.alternate {
            let mut path = alternate.path.address(limits.ports)?;
            path.pkey_index = pkey_index(alternate.pkey_index)?;
            path.timeout = path_timeout(alternate.timeout)?;
            mailbox.context.alternate_path = path;
            mailbox.optional.set_alternate_path(true);
        }
        Ok(())
    }

    fn messages(&self, mailbox: &mut QpMailbox, limits: &Limits, attributes: &Attributes) {
        let (mtu, log2) = match self.service {
            ServiceType::UD if self.lso => (Mtu::MTU_4096, limits.log2_max_lso),
            ServiceType::UD => (Mtu::MTU_4096, LOG2_UD_MESSAGE),
            ServiceType::MLX => (Mtu::MTU_4096, LOG2_MLX_MESSAGE),
            _ => match attributes.mtu {
                Some(mtu) => (mtu, limits.log2_max_message),
                None => return,
            },
        };
        mailbox.context.mtu_message = MtuMessage::new().with_mtu(mtu).with_log2_max_message(log2);
    }
}

fn pkey_index(index: u8) -> Result<u8> {
    if index < 128 { Ok(index) } else { Err(Error::argument("P_Key index", index)) }
}

fn number24(what: &'static str, number: u32) -> Result<Number24> {
    Number24::new().with_number_checked(number).map_err(|()| Error::argument(what, number))
}

/// log2 of a number of reads, rounded up.
fn log2_reads(what: &'static str, reads: u8, log2_limit: u8) -> Result<u8> {
    if u32::from(reads) > 1 << log2_limit {
        return Err(Error::argument(what, reads));
    }
    // At most 7.
    Ok(u8::try_from(reads.max(1).next_power_of_two().trailing_zeros()).unwrap_or(0))
}

fn requester(mailbox: &mut QpMailbox, limits: &Limits, attributes: &Attributes) -> Result<()> {
    let (context, optional) = (&mut mailbox.context, &mut mailbox.optional);
    if let Some(psn) = attributes.send_psn {
        context.next_send_psn = number24("send PSN", psn)?;
    }
    if let Some(count) = attributes.retry_count {
        context.requester = context
            .requester
            .with_retry_count_checked(count)
            .map_err(|()| Error::argument("retry count", count))?;
        optional.set_retry_count(true);
    }
    if let Some(count) = attributes.rnr_retry {
        context.requester = context
            .requester
            .with_rnr_retry_checked(count)
            .map_err(|()| Error::argument("RNR retry count", count))?;
        optional.set_rnr_retry(true);
    }
    if let Some(reads) = attributes.requester_reads {
        let log2 = log2_reads("requester reads", reads, limits.log2_requester_reads)?;
        context.requester.set_log2_max_reads(log2);
        optional.set_requester_reads(true);
    }
    Ok(())
}

fn responder(mailbox: &mut QpMailbox, limits: &Limits, attributes: &Attributes) -> Result<()> {
    let (context, optional) = (&mut mailbox.context, &mut mailbox.optional);
    if let Some(qpn) = attributes.remote_qpn {
        context.remote_qpn = number24("remote QP number", qpn)?;
    }
    if let Some(psn) = attributes.receive_psn {
        context.rnr_next_psn.set_next_receive_psn(number24("receive PSN", psn)?.number());
    }
    if let Some(mtu) = attributes.mtu
        && mtu.bytes().is_none()
    {
        return Err(Error::argument("MTU", mtu.0));
    }
    if let Some(timer) = attributes.min_rnr_timer {
        context.rnr_next_psn = context
            .rnr_next_psn
            .with_min_rnr_timer_checked(timer)
            .map_err(|()| Error::argument("minimum RNR timer", timer))?;
        optional.set_min_rnr_timer(true);
    }
    if let Some(reads) = attributes.responder_reads {
        let log2 = log2_reads("responder reads", reads, limits.log2_responder_reads)?;
        context.responder.set_log2_max_reads(log2);
        optional.set_responder_reads(true);
    }
    Ok(())
}

/// Rights of the other end. It reads and does atomics only if this side has resources to answer with.
fn rights(mailbox: &mut QpMailbox, access: Access, responds: bool) {
    let (responder, optional) = (&mut mailbox.context.responder, &mut mailbox.optional);
    responder.set_remote_write(access.remote_write);
    responder.set_remote_read(access.remote_read && responds);
    responder.set_remote_atomic(access.remote_atomic && responds);
    optional.set_remote_write(true);
    optional.set_remote_read(true);
    optional.set_remote_atomic(true);
}
