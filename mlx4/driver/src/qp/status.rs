//! How a queue pair is, as the device tells it (QUERY_QP).

use mlx4_wire::ctx::qp::{Mtu, PathMigration, QpContext, QpState};

use super::context::Limits;
use crate::caps::PortCapabilities;
use crate::error::{FieldError, Fields};
use crate::path::Path;
use crate::port::LAST_UNICAST_LID;
use crate::region::Access;

/// Bits of an index in a port's tables.
const LOW_7: u8 = 0x7f;

/// How a queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpStatus {
    /// State.
    pub state: QpState,
    /// Path migration state.
    pub migration: PathMigration,
    /// Greatest packet.
    pub mtu: Mtu,
    /// Queue pair at the other end.
    pub remote_qpn: u32,
    /// Path to the other end.
    pub path: Path,
    /// Index in the port's P_Key table.
    pub pkey_index: u8,
    /// Local ACK timeout.
    pub timeout: u8,
    /// Q_Key.
    pub qkey: u32,
    /// Next PSN that goes out.
    pub send_psn: u32,
    /// Next PSN that is expected.
    pub receive_psn: u32,
    /// What the other end may do.
    pub access: Access,
    /// Retries after a timeout.
    pub retry_count: u8,
    /// Retries after an RNR NAK.
    pub rnr_retry: u8,
    /// Minimum RNR timer.
    pub min_rnr_timer: u8,
    /// Reads and atomics that this side has under way, at most.
    pub requester_reads: u8,
    /// Reads and atomics that the other end has under way, at most.
    pub responder_reads: u8,
}

impl QpStatus {
    /// Reads the context that the device tells.
    ///
    /// # Errors
    /// An index, a size or a code in it can't be.
    pub(super) fn read(
        context: &QpContext,
        ports: &[PortCapabilities],
        limits: &Limits,
    ) -> Result<Self, FieldError> {
        let fields = Fields("QUERY_QP");
        let state = context.flags.state();
        fields.holds("state", state.0, state.name().is_some(), "a state")?;
        // What the transitions to RTR and RTS have set.
        let connected = [QpState::RTR, QpState::RTS, QpState::SQD, QpState::SQ_DRAINING].contains(&state);
        let sends = connected && state != QpState::RTR;
        let mtu = context.mtu_message.mtu();
        fields.holds("mtu", mtu.0, !connected || mtu.bytes().is_some(), "an MTU")?;
        let path = &context.primary_path;
        // From 1.
        let port = path.sched_queue.port();
        fields.at_most("port_index", path.sched_queue.port_index(), ports.len().saturating_sub(1) as u64)?;
        let (gids, pkeys) = ports.get(usize::from(port) - 1).map_or((0, 0), |port| (port.gids, port.pkeys));
        let pkey_index = path.pkey_index & LOW_7;
        fields.at_most("pkey_index", pkey_index, u64::from(pkeys).saturating_sub(1))?;
        if path.source.grh() {
            fields.at_most("sgid_index", path.sgid_index & LOW_7, u64::from(gids).saturating_sub(1))?;
        }
        if connected {
            fields.at_most("remote_lid", path.remote_lid.get(), LAST_UNICAST_LID.into())?;
        }
        let responder_reads = context.responder.log2_max_reads();
        let requester_reads = context.requester.log2_max_reads();
        if connected {
            fields.at_most(
                "responder.log2_max_reads",
                responder_reads,
                limits.log2_responder_reads.into(),
            )?;
        }
        if sends {
            fields.at_most(
                "requester.log2_max_reads",
                requester_reads,
                limits.log2_requester_reads.into(),
            )?;
        }
        Ok(Self {
            state,
            migration: context.flags.path_migration(),
            mtu,
            remote_qpn: context.remote_qpn.number(),
            path: Path::read(path),
            pkey_index,
            timeout: path.timeout.ack_timeout(),
            qkey: context.qkey.get(),
            send_psn: context.next_send_psn.number(),
            receive_psn: context.rnr_next_psn.next_receive_psn(),
            access: Access {
                local_write: true,
                remote_read: context.responder.remote_read(),
                remote_write: context.responder.remote_write(),
                remote_atomic: context.responder.remote_atomic(),
            },
            retry_count: context.requester.retry_count(),
            rnr_retry: context.requester.rnr_retry(),
            min_rnr_timer: context.rnr_next_psn.min_rnr_timer(),
            // Three bits of log2.
            requester_reads: 1 << requester_reads,
            responder_reads: 1 << responder_reads,
        })
    }
}
