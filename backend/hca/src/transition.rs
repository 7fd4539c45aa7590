//! Changes of queue pairs, and what they have.

use mlx4::{Access, Attributes, QpStatus};
use mlx4_wire::ctx::qp::{Mtu, PathMigration, QpState as WireState};
use paraverbs_tenant::hca::{
    HcaError, Migration, QpAttributes, QpId, QpKind, QpModify, QpState, RemoteAccess,
};

use crate::datagram;
use crate::hca::Running;
use crate::objects::{Qp, known};

impl Running {
    pub(crate) fn modify_qp(&self, qp: QpId, modify: &QpModify) -> Result<(), HcaError> {
        let qp = known(&self.objects().qps, qp.0)?;
        // Every state goes to these, whichever it is.
        if !matches!(modify.to, QpState::Reset | QpState::Err) {
            self.check_from(&qp, modify)?;
        }
        let attributes = attributes(modify)?;
        qp.driver.modify(state_to_driver(modify.to), &attributes).map_err(|error| {
            log::debug!("queue pair {:#x}: {error}", qp.driver.number());
            self.fail(&error)
        })?;
        if let Some(port) = attributes.port.filter(|_| qp.kind == QpKind::Ud) {
            self.moved(&qp, port);
        }
        Ok(())
    }

    /// Whether a queue pair is in the state that a change is from. The HCA takes it to error states by itself, so
    /// what the driver remembers may be old.
    fn check_from(&self, qp: &Qp, modify: &QpModify) -> Result<(), HcaError> {
        // A change within RTS is also what the driver makes of one from SQE, which this isn't.
        let ambiguous = modify.from == QpState::Rts && modify.to == QpState::Rts;
        let remembered = state_from_driver(qp.driver.state())?.0;
        if remembered == modify.from && !ambiguous {
            return Ok(());
        }
        let now = qp.driver.query().map_err(|error| self.fail(&error))?;
        if state_from_driver(now.state)?.0 == modify.from { Ok(()) } else { Err(HcaError::Refused) }
    }

    pub(crate) fn query_qp(&self, qp: QpId) -> Result<QpAttributes, HcaError> {
        let qp = known(&self.objects().qps, qp.0)?;
        let status = qp.driver.query().map_err(|error| self.fail(&error))?;
        told(qp.kind, &status)
    }
}

fn state_to_driver(state: QpState) -> WireState {
    match state {
        QpState::Reset => WireState::RST,
        QpState::Init => WireState::INIT,
        QpState::Rtr => WireState::RTR,
        QpState::Rts => WireState::RTS,
        QpState::Sqd => WireState::SQD,
        QpState::Sqe => WireState::SQER,
        QpState::Err => WireState::ERR,
    }
}

/// A state, and whether the send queue is being drained.
fn state_from_driver(state: WireState) -> Result<(QpState, bool), HcaError> {
    Ok(match state {
        WireState::RST => (QpState::Reset, false),
        WireState::INIT => (QpState::Init, false),
        WireState::RTR => (QpState::Rtr, false),
        WireState::RTS => (QpState::Rts, false),
        WireState::SQD => (QpState::Sqd, false),
        WireState::SQ_DRAINING => (QpState::Sqd, true),
        WireState::SQER => (QpState::Sqe, false),
        WireState::ERR => (QpState::Err, false),
        // A state that no queue pair has.
        _ => return Err(HcaError::Failed),
    })
}

fn attributes(modify: &QpModify) -> Result<Attributes, HcaError> {
    if modify.alternate.is_some() || modify.migration.is_some_and(|state| state != Migration::Migrated) {
        return Err(HcaError::Unsupported);
    }
    let pkey = |index: u16| u8::try_from(index).map_err(|_| HcaError::Refused);
    Ok(Attributes {
        pkey_index: modify.pkey_index.map(pkey).transpose()?,
        // A path has its port.
        port: modify.port.filter(|_| modify.path.is_none()),
        access: modify.access.map(|access| Access {
            local_write: true,
            remote_read: access.read,
            remote_write: access.write,
            remote_atomic: access.atomic,
        }),
        qkey: modify.qkey,
        path: modify.path.as_ref().map(datagram::to_driver).transpose()?,
        mtu: modify.path_mtu.map(Mtu),
        remote_qpn: modify.dest_qpn,
        receive_psn: modify.rq_psn,
        responder_reads: modify.max_dest_rd_atomic,
        min_rnr_timer: modify.min_rnr_timer,
        send_psn: modify.sq_psn,
        timeout: modify.timeout,
        retry_count: modify.retry_count,
        rnr_retry: modify.rnr_retry,
        requester_reads: modify.max_rd_atomic,
        alternate: None,
        migration: modify.migration.map(|_| PathMigration::MIGRATED),
        drained_event: modify.sqd_event.unwrap_or(false),
    })
}

/// What a queue pair has, of what its state and its type define.
fn told(kind: QpKind, status: &QpStatus) -> Result<QpAttributes, HcaError> {
    let (state, draining) = state_from_driver(status.state)?;
    let made = state != QpState::Reset;
    let connected = made && state != QpState::Init && kind != QpKind::Ud;
    let reliable = connected && kind != QpKind::Uc;
    let (requests, responds) = (reliable && kind != QpKind::XrcRecv, reliable && kind != QpKind::XrcSend);
    let when = |defined: bool, value: u8| if defined { value } else { 0 };
    let number = |defined: bool, value: u32| if defined { value } else { 0 };
    Ok(QpAttributes {
        state,
        draining,
        access: RemoteAccess {
            read: made && status.access.remote_read,
            write: made && status.access.remote_write,
            atomic: made && status.access.remote_atomic,
        },
        pkey_index: when(made, status.pkey_index).into(),
        port: when(made, status.path.port),
        qkey: number(made && kind == QpKind::Ud, status.qkey),
        path: connected.then(|| datagram::from_driver(&status.path)),
        alternate: None,
        path_mtu: when(connected, status.mtu.0),
        timeout: when(reliable, status.timeout),
        retry_count: when(requests, status.retry_count),
        rnr_retry: when(requests, status.rnr_retry),
        rq_psn: number(made, status.receive_psn),
        sq_psn: number(made, status.send_psn),
        max_rd_atomic: when(requests, status.requester_reads),
        max_dest_rd_atomic: when(responds, status.responder_reads),
        min_rnr_timer: when(responds, status.min_rnr_timer),
        migration: match status.migration {
            PathMigration::REARM => Migration::Rearm,
            PathMigration::ARMED => Migration::Armed,
            _ => Migration::Migrated,
        },
        dest_qpn: number(connected, status.remote_qpn),
    })
}
