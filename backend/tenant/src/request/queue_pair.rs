//! Queue pairs: creation, query, destruction. Their changes are in `modify`.

use std::collections::BTreeSet;

use virtio_rdma::config::Capabilities;
use virtio_rdma::doorbell::DoorbellPlace;
use virtio_rdma::request::memory::AccessFlags;
use virtio_rdma::request::query::Mtu;
use virtio_rdma::request::queue_pair::{
    AhAttributes, CreateQp, DestroyQp, MigState, QpAttributes as AbiAttributes, QpCap, QpCreated, QpFlags,
    QpQueried, QpState as AbiState, QpType, QueryQp,
};
use virtio_rdma::request::{Destroyed, Request};
use virtio_rdma::{Reason, Reserved, U16, U32};
use zerocopy::FromZeros;

use super::{CarryOut, path};
use crate::destroy::Kind;
use crate::events::Subject;
use crate::hca::{
    Cookie, Migration, QpAttributes, QpGeometry, QpKind, QpSpec, QpState, QueueGeometry, RemoteAccess,
    SrqKind, Target,
};
use crate::links;
use crate::objects::{Base, Parents, Qp, found};
use crate::state::State;

/// The remote operations among access flags.
pub(super) fn remote_access(flags: AccessFlags) -> RemoteAccess {
    RemoteAccess {
        read: flags.contains(AccessFlags::REMOTE_READ),
        write: flags.contains(AccessFlags::REMOTE_WRITE),
        atomic: flags.contains(AccessFlags::REMOTE_ATOMIC),
    }
}

fn access_flags(access: RemoteAccess) -> AccessFlags {
    let flags = [
        (access.read, AccessFlags::REMOTE_READ),
        (access.write, AccessFlags::REMOTE_WRITE),
        (access.atomic, AccessFlags::REMOTE_ATOMIC),
    ];
    flags.iter().filter(|(set, _)| *set).fold(AccessFlags::NONE, |all, (_, flag)| all | *flag)
}

/// The type of a queue pair, if the guest may have it.
fn kind(state: &State, qp_type: QpType) -> Result<QpKind, Reason> {
    let (kind, needed) = match qp_type {
        QpType::RC => (QpKind::Rc, Capabilities::NONE),
        QpType::UC => (QpKind::Uc, Capabilities::UC),
        QpType::UD => (QpKind::Ud, Capabilities::UD),
        QpType::XRC_SEND => (QpKind::XrcSend, Capabilities::XRC),
        QpType::XRC_RECV => (QpKind::XrcRecv, Capabilities::XRC),
        _ => return Err(Reason::BAD_TYPE),
    };
    if state.capabilities.contains(needed) { Ok(kind) } else { Err(Reason::NOT_OFFERED) }
}

/// Whether a request's handle is there (`wanted`), or 0.
fn handle(handle: U32, wanted: bool) -> Result<Option<u32>, Reason> {
    match (handle.get(), wanted) {
        (0, false) => Ok(None),
        (0, true) => Err(Reason::BAD_HANDLE),
        (_, false) => Err(Reason::MISMATCH),
        (handle, true) => Ok(Some(handle)),
    }
}

/// Which objects a queue pair uses, by its type.
fn parents(body: &CreateQp, kind: QpKind) -> Result<Parents, Reason> {
    let xrc = matches!(kind, QpKind::XrcSend | QpKind::XrcRecv);
    let sends = kind != QpKind::XrcRecv;
    Ok(Parents {
        pd: handle(body.pd, sends)?,
        uar: handle(body.uar, sends)?,
        xrcd: handle(body.xrcd, !sends)?,
        send_cq: handle(body.send_cq, sends)?,
        recv_cq: handle(body.recv_cq, !xrc)?,
        srq: handle(body.srq, !xrc && body.srq.get() != 0)?,
    })
}

/// A queue of a request: its log2s, and what it can hold; `None` if it has none.
fn queue(log2_wqes: u8, log2_stride: u8, max_wr: u32, max_sge: u32) -> Result<Option<QueueGeometry>, Reason> {
    match (log2_wqes, log2_stride) {
        (0, 0) => Ok(None),
        (_, 0) => Err(Reason::BAD_GEOMETRY),
        _ => Ok(Some(QueueGeometry { log2_wqes, log2_stride, max_wr, max_sge })),
    }
}

/// The geometry of a queue pair, as far as it is no matter of the format.
fn geometry(state: &State, body: &CreateQp, kind: QpKind) -> Result<QpGeometry, Reason> {
    let cap = &body.cap;
    let (send_wr, send_sge) = (cap.max_send_wr.get(), cap.max_send_sge.get());
    let (recv_wr, recv_sge) = (cap.max_recv_wr.get(), cap.max_recv_sge.get());
    let send = queue(body.log2_send_wqes, body.log2_send_stride, send_wr, send_sge)?;
    let receive = queue(body.log2_recv_wqes, body.log2_recv_stride, recv_wr, recv_sge)?;
    let no_receive = body.srq.get() != 0 || matches!(kind, QpKind::XrcSend | QpKind::XrcRecv);
    if (no_receive && receive.is_some()) || (kind == QpKind::XrcRecv && send.is_some()) {
        return Err(Reason::MISMATCH);
    }
    let too_much =
        |queue: &QueueGeometry| queue.max_wr > state.info.max_qp_wr || queue.max_sge > state.info.max_sge;
    if send.iter().chain(&receive).any(too_much) {
        return Err(Reason::BEYOND_CAPABILITY);
    }
    Ok(QpGeometry { kind, send, receive, max_inline: cap.max_inline_data.get() })
}

/// Whether the flags fit the type.
fn check_flags(state: &State, flags: QpFlags, kind: QpKind) -> Result<(), Reason> {
    if flags != QpFlags::NONE && kind != QpKind::Ud {
        return Err(Reason::MISMATCH);
    }
    if flags.contains(QpFlags::UD_LSO) && state.info.max_lso_bytes == 0 {
        return Err(Reason::BEYOND_CAPABILITY);
    }
    Ok(())
}

/// The SRQ of a queue pair, which is none of XRC.
fn srq(state: &State, parents: &Parents) -> Result<Option<crate::hca::SrqId>, Reason> {
    let Some(handle) = parents.srq else { return Ok(None) };
    let srq = found(state.objects.srqs.get(handle))?;
    if srq.kind != SrqKind::Basic {
        return Err(Reason::MISMATCH);
    }
    srq.base.live().map(Some)
}

/// The GID that all datagrams of the guest have as their source, if it has GIDs of its own.
fn own_gid(state: &State) -> Option<u16> {
    state.config.own_gids.as_ref().and_then(|own| own.first().copied())
}

impl CarryOut for CreateQp {
    fn carry_out(&self, state: &mut State, request: &Request<'_>) -> Result<QpCreated, Reason> {
        let kind = kind(state, self.qp_type)?;
        check_flags(state, self.flags, kind)?;
        let parents = parents(self, kind)?;
        let objects = &state.objects;
        let pd = parents.pd.map(|pd| objects.pd(pd)).transpose()?;
        let send_cq = parents.send_cq.map(|cq| objects.cq(cq)).transpose()?;
        let recv_cq = parents.recv_cq.map(|cq| objects.cq(cq)).transpose()?;
        let xrcd = parents.xrcd.map(|xrcd| objects.xrcd(xrcd)).transpose()?;
        let uar = parents.uar.map(|uar| objects.uar(uar)).transpose()?;
        let srq = srq(state, &parents)?;
        let geometry = geometry(state, self, kind)?;
        let layout = state.hca().qp_layout(&geometry).map_err(|error| error.reason())?;
        let ring = state.ring(request, self.record.get(), layout)?;
        let handle = state.objects.qps.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let held = state.hold_ring(&ring)?;
        let slots = uar.as_ref().map(|(_, slots)| slots);
        let slot = slots.and_then(|slots| slots.take());
        if slots.is_some() && slot.is_none() {
            state.release(held);
            return Err(Reason::SLOT_LIMIT);
        }
        state.events.open(Subject::Qp, handle, 0);
        let result = state.hca().create_qp(&QpSpec {
            guest: state.guest,
            cookie: Cookie(handle),
            pd,
            uar: uar.as_ref().map(|(uar, _)| *uar),
            send_cq,
            recv_cq,
            srq,
            xrcd,
            geometry,
            memory: ring.memory(),
            lso: self.flags.contains(QpFlags::UD_LSO),
            block_loopback: self.flags.contains(QpFlags::BLOCK_SELF_MCAST_LB),
            forced_gid: if kind == QpKind::Ud { own_gid(state) } else { None },
        });
        let (qp, held) = state.settle(held, &parents, result).inspect_err(|_| {
            if let (Some(slots), Some(slot)) = (slots, slot) {
                slots.free(slot);
            }
            state.events.close(Subject::Qp, handle);
        })?;
        state.objects.use_parents(&parents);
        let base = Base::new(qp.id, qp.number, held, parents);
        let object = Qp {
            base,
            slot,
            state: QpState::Reset,
            port: 0,
            strays: false,
            geometry,
            groups: BTreeSet::new(),
        };
        let handle = state.objects.qps.insert(object).ok_or(Reason::OBJECT_LIMIT)?;
        if links::is_connected(kind) {
            let end = links::End::new(state.guest, qp.id, Cookie(handle), &state.events);
            state.host.links().insert(qp.number, end);
        }
        state.let_ring(&parents, slot, Target::Send(qp.id));
        let send = slot.map_or(DoorbellPlace::NONE, DoorbellPlace::of_slot);
        Ok(QpCreated { qp: U32::new(handle), qpn: U32::new(qp.number), send })
    }
}

impl CarryOut for QueryQp {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<QpQueried, Reason> {
        let qp = found(state.objects.qps.get(self.qp.get()))?;
        let now = state.hca().query_qp(qp.base.live()?).map_err(|error| error.reason())?;
        let answer = QpQueried {
            attributes: attributes(state, &now),
            cap: cap(&qp.geometry),
            qpn: U32::new(qp.base.number),
            reserved: Reserved::ZERO,
        };
        if let Some(qp) = state.objects.qps.get_mut(self.qp.get()) {
            qp.state = now.state;
        }
        Ok(answer)
    }
}

fn cap(geometry: &QpGeometry) -> QpCap {
    let number = |queue: Option<QueueGeometry>, get: fn(QueueGeometry) -> u32| U32::new(queue.map_or(0, get));
    QpCap {
        max_send_wr: number(geometry.send, |queue| queue.max_wr),
        max_recv_wr: number(geometry.receive, |queue| queue.max_wr),
        max_send_sge: number(geometry.send, |queue| queue.max_sge),
        max_recv_sge: number(geometry.receive, |queue| queue.max_sge),
        max_inline_data: U32::new(geometry.max_inline),
    }
}

/// The state in the ABI's code.
const fn state_code(state: QpState) -> AbiState {
    match state {
        QpState::Reset => AbiState::RESET,
        QpState::Init => AbiState::INIT,
        QpState::Rtr => AbiState::RTR,
        QpState::Rts => AbiState::RTS,
        QpState::Sqd => AbiState::SQD,
        QpState::Sqe => AbiState::SQE,
        QpState::Err => AbiState::ERR,
    }
}

const fn migration_code(migration: Migration) -> MigState {
    match migration {
        Migration::Migrated => MigState::MIGRATED,
        Migration::Rearm => MigState::REARM,
        Migration::Armed => MigState::ARMED,
    }
}

/// What the HCA says of a queue pair, in the guest's view of ports.
fn attributes(state: &State, now: &QpAttributes) -> AbiAttributes {
    let alternate = now.alternate;
    let alt_port = alternate.map_or(0, |alternate| alternate.path.port);
    AbiAttributes {
        ah_attr: now.path.map_or_else(AhAttributes::new_zeroed, |path| path::to_guest(state, &path)),
        alt_ah_attr: alternate
            .map_or_else(AhAttributes::new_zeroed, |alternate| path::to_guest(state, &alternate.path)),
        qkey: U32::new(now.qkey),
        rq_psn: U32::new(now.rq_psn),
        sq_psn: U32::new(now.sq_psn),
        dest_qp_num: U32::new(now.dest_qpn),
        qp_access_flags: access_flags(now.access),
        pkey_index: U16::new(path::pkey_index_of_guest(state, now.port, now.pkey_index)),
        alt_pkey_index: U16::new(
            alternate.map_or(0, |alternate| path::pkey_index_of_guest(state, alt_port, alternate.pkey_index)),
        ),
        qp_state: state_code(now.state),
        cur_qp_state: state_code(now.state),
        path_mtu: Mtu(now.path_mtu),
        path_mig_state: migration_code(now.migration),
        sq_draining: u8::from(now.draining),
        max_rd_atomic: now.max_rd_atomic,
        max_dest_rd_atomic: now.max_dest_rd_atomic,
        min_rnr_timer: now.min_rnr_timer,
        port_num: now.port,
        timeout: now.timeout,
        retry_cnt: now.retry_count,
        rnr_retry: now.rnr_retry,
        alt_port_num: alt_port,
        alt_timeout: alternate.map_or(0, |alternate| alternate.timeout),
        ..AbiAttributes::new_zeroed()
    }
}

impl CarryOut for DestroyQp {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Destroyed, Reason> {
        state.destroy(Kind::Qp, self.qp.get())
    }
}
