//! Changes of queue pairs: the values of attributes, and the state that the tenant assumes.

use std::sync::Arc;

use virtio_rdma::Reason;
use virtio_rdma::request::queue_pair::{
    MigState, ModifyQp, QpAttrMask as Mask, QpAttributes, QpState as AbiState,
};
use virtio_rdma::request::{Done, Request};

use super::queue_pair::remote_access;
use super::{CarryOut, path, transition};
use crate::hca::{AlternatePath, HcaError, Migration, Path, QpId, QpModify, QpState};
use crate::objects::{Qp, found};
use crate::state::State;

/// Numbers of queue pairs and PSNs have 24 bits.
const LAST_24_BITS: u32 = (1 << 24) - 1;
/// A Q_Key with this bit is a privileged one: it reaches QP1s (IBTA 10.2.5).
const PRIVILEGED_QKEY: u32 = 1 << 31;
/// The last code of timeouts and RNR timers: 5 bits.
const LAST_TIMER: u8 = 31;
/// Retry counts have 3 bits.
const LAST_RETRY: u8 = 7;

fn known_state(code: AbiState) -> Result<QpState, Reason> {
    Ok(match code {
        AbiState::RESET => QpState::Reset,
        AbiState::INIT => QpState::Init,
        AbiState::RTR => QpState::Rtr,
        AbiState::RTS => QpState::Rts,
        AbiState::SQD => QpState::Sqd,
        AbiState::SQE => QpState::Sqe,
        AbiState::ERR => QpState::Err,
        _ => return Err(Reason::BAD_ATTRIBUTE),
    })
}

fn known_migration(code: MigState) -> Result<Migration, Reason> {
    Ok(match code {
        MigState::MIGRATED => Migration::Migrated,
        MigState::REARM => Migration::Rearm,
        MigState::ARMED => Migration::Armed,
        _ => return Err(Reason::BAD_ATTRIBUTE),
    })
}

/// A value that is at most `last`.
fn up_to<T: PartialOrd>(value: T, last: T) -> Result<T, Reason> {
    if value <= last { Ok(value) } else { Err(Reason::BAD_ATTRIBUTE) }
}

fn qkey(qkey: u32) -> Result<u32, Reason> {
    if qkey & PRIVILEGED_QKEY != 0 { Err(Reason::PRIVILEGED_QKEY) } else { Ok(qkey) }
}

/// The state that a queue pair is assumed in: what the tenant last knew, unless the guest knows of a change that
/// the HCA made by itself. The HCA checks it.
fn assumed(known: QpState, attributes: &QpAttributes, mask: Mask) -> Result<QpState, Reason> {
    if !mask.contains(Mask::CUR_STATE) {
        return Ok(known);
    }
    let said = known_state(attributes.cur_qp_state)?;
    let by_itself =
        matches!(known, QpState::Rts | QpState::Sqd) && matches!(said, QpState::Sqe | QpState::Rts);
    if said == known || by_itself { Ok(said) } else { Err(Reason::BAD_TRANSITION) }
}

/// A request's attributes, of which the mask says which count.
struct Asked<'a> {
    attributes: &'a QpAttributes,
    mask: Mask,
}

impl Asked<'_> {
    /// An attribute that the mask names, checked.
    fn get<T>(
        &self,
        bit: Mask,
        value: impl FnOnce(&QpAttributes) -> Result<T, Reason>,
    ) -> Result<Option<T>, Reason> {
        self.mask.contains(bit).then(|| value(self.attributes)).transpose()
    }

    fn modify(&self, state: &State, port: u8, from: QpState, to: QpState) -> Result<QpModify, Reason> {
        let info = &state.info;
        Ok(QpModify {
            sqd_event: self.get(Mask::EN_SQD_ASYNC_NOTIFY, |a| Ok(up_to(a.en_sqd_async_notify, 1)? == 1))?,
            access: self.get(Mask::ACCESS_FLAGS, |a| Ok(remote_access(a.qp_access_flags)))?,
            pkey_index: self.get(Mask::PKEY_INDEX, |a| path::pkey_index(state, port, a.pkey_index.get()))?,
            port: self.get(Mask::PORT, |_| Ok(port))?,
            qkey: self.get(Mask::QKEY, |a| qkey(a.qkey.get()))?,
            path: self.get(Mask::AV, |a| primary_path(state, a, port))?,
            path_mtu: self.get(Mask::PATH_MTU, |a| mtu(a.path_mtu.0))?,
            timeout: self.get(Mask::TIMEOUT, |a| up_to(a.timeout, LAST_TIMER))?,
            retry_count: self.get(Mask::RETRY_CNT, |a| up_to(a.retry_cnt, LAST_RETRY))?,
            rnr_retry: self.get(Mask::RNR_RETRY, |a| up_to(a.rnr_retry, LAST_RETRY))?,
            rq_psn: self.get(Mask::RQ_PSN, |a| up_to(a.rq_psn.get(), LAST_24_BITS))?,
            sq_psn: self.get(Mask::SQ_PSN, |a| up_to(a.sq_psn.get(), LAST_24_BITS))?,
            max_rd_atomic: self
                .get(Mask::MAX_QP_RD_ATOMIC, |a| up_to(a.max_rd_atomic, info.max_rd_atomic))?,
            max_dest_rd_atomic: self
                .get(Mask::MAX_DEST_RD_ATOMIC, |a| up_to(a.max_dest_rd_atomic, info.max_dest_rd_atomic))?,
            alternate: self.get(Mask::ALT_PATH, |a| alternate_path(state, a))?,
            min_rnr_timer: self.get(Mask::MIN_RNR_TIMER, |a| up_to(a.min_rnr_timer, LAST_TIMER))?,
            migration: self.get(Mask::PATH_MIG_STATE, |a| known_migration(a.path_mig_state))?,
            dest_qpn: self.get(Mask::DEST_QPN, |a| up_to(a.dest_qp_num.get(), LAST_24_BITS))?,
            ..QpModify::state(from, to)
        })
    }
}

fn mtu(code: u8) -> Result<u8, Reason> {
    if (1..=5).contains(&code) { Ok(code) } else { Err(Reason::BAD_ATTRIBUTE) }
}

/// The primary path, which leaves by the primary port.
fn primary_path(state: &State, attributes: &QpAttributes, port: u8) -> Result<Path, Reason> {
    let path = path::connected_from_guest(state, &attributes.ah_attr)?;
    if path.port == port { Ok(path) } else { Err(Reason::MISMATCH) }
}

fn alternate_path(state: &State, attributes: &QpAttributes) -> Result<AlternatePath, Reason> {
    if !state.info.features.path_migration {
        return Err(Reason::NOT_OFFERED);
    }
    let path = path::connected_from_guest(state, &attributes.alt_ah_attr)?;
    if path.port != attributes.alt_port_num {
        return Err(Reason::MISMATCH);
    }
    Ok(AlternatePath {
        path,
        pkey_index: path::pkey_index(state, path.port, attributes.alt_pkey_index.get())?,
        timeout: up_to(attributes.alt_timeout, LAST_TIMER)?,
    })
}

/// Whether the change keeps port and P_Key together: a P_Key's index is one of a port's table, and must not be left
/// behind for another port's, where it may be another P_Key than those that the guest may use.
fn check_partition(state: &State, qp: &Qp, from: QpState, mask: Mask, port: u8) -> Result<(), Reason> {
    let all = Mask::PORT | Mask::PKEY_INDEX | Mask::AV;
    if state.config.partitions.is_none() || !mask.intersects(all) {
        return Ok(());
    }
    let moves = port != qp.port;
    let needed = match from {
        // Without a path yet.
        QpState::Reset | QpState::Init if moves => Mask::PKEY_INDEX,
        _ if moves || qp.strays => all,
        _ => Mask::NONE,
    };
    if mask.contains(needed) { Ok(()) } else { Err(Reason::BAD_ATTRIBUTE_MASK) }
}

/// The queue pair, and its change, checked.
fn checked(body: &ModifyQp, state: &State) -> Result<(QpId, QpModify, u8), Reason> {
    let (attributes, mask) = (&body.attributes, body.attr_mask);
    let qp = found(state.objects.qps.get(body.qp.get()))?;
    let id = qp.base.live()?;
    let from = assumed(qp.state, attributes, mask)?;
    let to = if mask.contains(Mask::STATE) { known_state(attributes.qp_state)? } else { from };
    transition::check(qp.geometry.kind, from, to, mask)?;
    let port = if mask.contains(Mask::PORT) { attributes.port_num } else { qp.port };
    if mask.intersects(Mask::PORT | Mask::PKEY_INDEX | Mask::AV) {
        path::check_port(state, port)?;
    }
    check_partition(state, qp, from, mask, port)?;
    let modify = Asked { attributes, mask }.modify(state, port, from, to)?;
    Ok((id, modify, port))
}

impl CarryOut for ModifyQp {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        let (id, modify, port) = checked(self, state)?;
        let number = found(state.objects.qps.get(self.qp.get()))?.base.number;
        let (host, hca) = (Arc::clone(&state.host), state.hca());
        let link = host.links().connect(&*hca, number, &modify)?;
        let result = hca.modify_qp(id, &modify);
        match (result, link) {
            (Ok(()), _) if matches!(modify.to, QpState::Reset | QpState::Err) => {
                host.links().disconnect(number);
            }
            (Err(error), Some(pending)) if !error.leaves_open() => host.links().withdraw(pending),
            _ => {}
        }
        let qp = found(state.objects.qps.get_mut(self.qp.get()))?;
        if result.is_ok() || result.is_err_and(HcaError::leaves_open) {
            qp.strays |= modify.alternate.is_some_and(|alternate| alternate.path.port != port);
            qp.port = if result.is_err() && modify.port.is_some() { 0 } else { port };
        }
        result.map_err(|error| error.reason())?;
        qp.state = modify.to;
        if modify.to == QpState::Reset {
            (qp.port, qp.strays) = (0, false);
        }
        Ok(Done {})
    }
}
