//! A queue pair's context in the form that the engine works with: checked once, at each transition.

use std::sync::Arc;

use mlx4_wire::cmd::Status;
use mlx4_wire::ctx::path::AddressPath;
use mlx4_wire::ctx::qp::{QpContext, ServiceType, WqSize};

use crate::hca::burst::Burst;
use crate::hca::caps;
use crate::hca::cq::Cq;
use crate::hca::ring::{RingBudget, RingMemory};
use crate::hca::running::Running;
use crate::hca::srq::Srq;

/// The send or receive queue inside the buffer that the two share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    /// Byte offset of the first WQE in the buffer.
    pub(crate) offset: u64,
    /// Number of WQE slots, a power of two.
    pub(crate) entries: u32,
    /// Size of a slot in bytes, a power of two.
    pub(crate) stride: u32,
}

impl Queue {
    /// Byte offset of the slot of a free-running counter.
    pub(crate) fn slot(&self, counter: u16) -> u64 {
        self.offset + u64::from(u32::from(counter) & (self.entries - 1)) * u64::from(self.stride)
    }
}

/// What the engine knows of a queue pair.
#[derive(Debug)]
pub(crate) struct Attrs {
    pub(crate) qpn: u32,
    pub(crate) service: ServiceType,
    pub(crate) pd: u32,
    pub(crate) send_cq: Arc<Cq>,
    pub(crate) receive_cq: Arc<Cq>,
    pub(crate) srq: Option<Arc<Srq>>,
    /// The domain of an XRC target; each request names an SRQ of it.
    pub(crate) xrcd: Option<u16>,
    pub(crate) memory: Arc<RingMemory>,
    pub(crate) sq: Queue,
    /// `None` where receive work requests come from SRQs, or not at all.
    pub(crate) rq: Option<Queue>,
    /// Bus address of the receive queue's doorbell record.
    pub(crate) record: u64,
    /// Port, from 1.
    pub(crate) port: u8,
    pub(crate) path: AddressPath,
    pub(crate) remote_qpn: u32,
    /// Path MTU in bytes.
    pub(crate) mtu: u32,
    /// Largest message in bytes.
    pub(crate) max_message: u64,
    pub(crate) qkey: u32,
    pub(crate) remote_read: bool,
    pub(crate) remote_write: bool,
    pub(crate) remote_atomic: bool,
    /// RDMA reads and atomics that it may have under way at once.
    pub(crate) requester_depth: u32,
    /// RDMA reads and atomics that the other end may have under way at once.
    pub(crate) responder_depth: u32,
    /// Fast register work requests are allowed.
    pub(crate) fast_register: bool,
    pub(crate) retry_count: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) min_rnr_timer: u8,
    /// QP0 (`Some(0)`) or QP1 (`Some(1)`) of its port.
    pub(crate) special: Option<u32>,
}

impl Attrs {
    /// Whether its service is a connected one.
    pub(crate) fn is_connected(&self) -> bool {
        ![ServiceType::UD, ServiceType::MLX].contains(&self.service)
    }

    /// Whether its service is one with acknowledgements.
    pub(crate) fn is_reliable(&self) -> bool {
        [ServiceType::RC, ServiceType::XRC].contains(&self.service)
    }

    /// Decodes a context; `before` is what was decoded at the last transition, whose queues stay.
    ///
    /// # Errors
    /// BAD_PARAM for a value out of range, BAD_RESOURCE for a CQ or SRQ that isn't there, EXCEED_LIM for too much
    /// memory of queues.
    pub(super) fn decode(
        burst: &Burst,
        running: &Running,
        qpn: u32,
        context: &QpContext,
        before: Option<&Attrs>,
    ) -> Result<Self, Status> {
        let service = context.flags.service();
        use ServiceType as S;
        if ![S::RC, S::UC, S::UD, S::XRC, S::MLX].contains(&service) {
            log::debug!("QP {qpn:#x}: service type {service:?} isn't offered");
            return Err(Status::BAD_PARAM);
        }
        let xrc = service == S::XRC;
        let srq = match context.srq.enable() && !xrc {
            true => Some(running.srqs.get(context.srq.srqn()).ok_or(Status::BAD_RESOURCE)?),
            false => None,
        };
        let cq = |number| running.cqs.get(number).ok_or(Status::BAD_RESOURCE);
        let (memory, sq, rq) = match before {
            Some(before) => (before.memory.clone(), before.sq, before.rq),
            None => queues(burst, &running.rings, context, srq.is_some() || xrc)?,
        };
        let special = special(running, qpn);
        Ok(Self {
            qpn,
            service,
            pd: context.pd.number(),
            send_cq: cq(context.send_cqn.number())?,
            receive_cq: cq(context.receive_cqn.number())?,
            srq,
            xrcd: (xrc && qpn & XRC_TARGET != 0).then(|| context.xrcd.xrcd()),
            memory,
            sq,
            rq,
            record: context.record_base(),
            port: special.map_or(context.primary_path.sched_queue.port(), |(_, port)| port),
            path: context.primary_path,
            remote_qpn: context.remote_qpn.number(),
            mtu: context.mtu_message.mtu().bytes().unwrap_or(256),
            max_message: 1 << context.mtu_message.log2_max_message().min(31),
            qkey: context.qkey.get(),
            remote_read: context.responder.remote_read(),
            remote_write: context.responder.remote_write(),
            remote_atomic: context.responder.remote_atomic(),
            requester_depth: 1 << context.requester.log2_max_reads().min(caps::LOG2_MAX_REQUESTER_READS),
            responder_depth: 1 << context.responder.log2_max_reads().min(caps::LOG2_MAX_RESPONDER_READS),
            fast_register: context.requester.fast_register(),
            retry_count: context.requester.retry_count(),
            rnr_retry: context.requester.rnr_retry(),
            min_rnr_timer: context.rnr_next_psn.min_rnr_timer(),
            special: special.map(|(number, _)| number),
        })
    }
}

/// Set in the number of a queue pair of service XRC that receives.
const XRC_TARGET: u32 = 1 << 23;

/// Which special queue pair a number is, and its port.
fn special(running: &Running, qpn: u32) -> Option<(u32, u8)> {
    let base = running.special_base();
    let index = qpn.checked_sub(base).filter(|&index| base != 0 && index < 4)?;
    Some((index / 2, if index % 2 == 0 { 1 } else { 2 }))
}

/// Places the two queues in their buffer: the one with the larger stride first, the send queue if equal.
fn queues(
    burst: &Burst,
    rings: &RingBudget,
    context: &QpContext,
    no_receive_queue: bool,
) -> Result<(Arc<RingMemory>, Queue, Option<Queue>), Status> {
    let log2_page = context.pages.log2_page();
    let queue = |size: WqSize| Queue { offset: 0, entries: size.entries(), stride: size.stride() };
    let mut sq = queue(context.sq_size);
    let mut rq = (!no_receive_queue && context.rq_size != NO_RQ).then(|| queue(context.rq_size));
    let too_many = |q: &Queue| q.entries > 1 << caps::LOG2_MAX_QP_ENTRIES;
    if log2_page > 31 || too_many(&sq) || rq.as_ref().is_some_and(too_many) {
        return Err(Status::BAD_PARAM);
    }
    let bytes = |q: &Queue| u64::from(q.entries) * u64::from(q.stride);
    let base = u64::from(context.page_offset());
    sq.offset = base;
    let mut total = base + bytes(&sq);
    if let Some(rq) = &mut rq {
        total += bytes(rq);
        if rq.stride > sq.stride {
            rq.offset = base;
            sq.offset = base + bytes(rq);
        } else {
            rq.offset = base + bytes(&sq);
        }
    }
    let memory = RingMemory::resolve(burst, rings, context.pages.mtt_base(), log2_page, total)?;
    Ok((Arc::new(memory), sq, rq))
}

/// What Linux leaves in the size of a receive queue that isn't there: a shift of zero, less four.
const NO_RQ: WqSize = WqSize::from_bits(0xfc);
