//! Shared receive queues.

use virtio_rdma::config::Capabilities;
use virtio_rdma::request::shared_receive::{
    CreateSrq, DestroySrq, ModifySrq, QuerySrq, SrqAttrMask, SrqAttributes, SrqCreated, SrqType,
};
use virtio_rdma::request::{Destroyed, Done, Request};
use virtio_rdma::{Reason, Reserved, U32};

use super::CarryOut;
use crate::destroy::Kind;
use crate::events::Subject;
use crate::hca::{Cookie, SrqGeometry, SrqKind, SrqSpec};
use crate::objects::{Base, Parents, Srq, found};
use crate::state::State;

/// The kind of the SRQ, and the objects that it uses.
fn kind(state: &State, body: &CreateSrq) -> Result<(SrqKind, Parents), Reason> {
    let pd = body.pd.get();
    match body.srq_type {
        SrqType::BASIC if body.xrcd.get() != 0 || body.cq.get() != 0 => Err(Reason::MISMATCH),
        SrqType::BASIC => Ok((SrqKind::Basic, Parents::pd(pd))),
        SrqType::XRC if !state.capabilities.contains(Capabilities::XRC) => Err(Reason::NOT_OFFERED),
        SrqType::XRC => {
            let (xrcd, cq) = (state.objects.xrcd(body.xrcd.get())?, state.objects.cq(body.cq.get())?);
            let parents =
                Parents { xrcd: Some(body.xrcd.get()), recv_cq: Some(body.cq.get()), ..Parents::pd(pd) };
            Ok((SrqKind::Xrc { xrcd, cq }, parents))
        }
        _ => Err(Reason::BAD_TYPE),
    }
}

impl CarryOut for CreateSrq {
    fn carry_out(&self, state: &mut State, request: &Request<'_>) -> Result<SrqCreated, Reason> {
        let pd = state.objects.pd(self.pd.get())?;
        let (kind, parents) = kind(state, self)?;
        let geometry = SrqGeometry {
            log2_wqes: self.log2_wqes,
            log2_stride: self.log2_stride,
            max_wr: self.max_wr.get(),
            max_sge: self.max_sge.get(),
        };
        if geometry.max_wr > state.info.max_srq_wr || geometry.max_sge > state.info.max_srq_sge {
            return Err(Reason::BEYOND_CAPABILITY);
        }
        let layout = state.hca().srq_layout(&geometry).map_err(|error| error.reason())?;
        let ring = state.ring(request, self.record.get(), layout)?;
        let handle = state.objects.srqs.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let held = state.hold_ring(&ring)?;
        state.events.open(Subject::Srq, handle, 0);
        let result = state.hca().create_srq(&SrqSpec {
            guest: state.guest,
            cookie: Cookie(handle),
            pd,
            kind,
            geometry,
            memory: ring.memory(),
        });
        let (srq, held) = state.settle(held, &parents, result).inspect_err(|_| {
            state.events.close(Subject::Srq, handle);
        })?;
        state.objects.use_parents(&parents);
        let base = Base::new(srq.id, srq.number, held, parents);
        let handle = state.objects.srqs.insert(Srq { base, kind, geometry }).ok_or(Reason::OBJECT_LIMIT)?;
        Ok(SrqCreated { srq: U32::new(handle), srqn: U32::new(srq.number) })
    }
}

impl CarryOut for ModifySrq {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        let srq = found(state.objects.srqs.get(self.srq.get()))?;
        let id = srq.base.live()?;
        if self.attr_mask != SrqAttrMask::LIMIT {
            return Err(Reason::BAD_ATTRIBUTE_MASK);
        }
        if self.limit.get() > srq.geometry.max_wr {
            return Err(Reason::BAD_ATTRIBUTE);
        }
        state.hca().arm_srq(id, self.limit.get()).map_err(|error| error.reason())?;
        Ok(Done {})
    }
}

impl CarryOut for QuerySrq {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<SrqAttributes, Reason> {
        let srq = found(state.objects.srqs.get(self.srq.get()))?;
        let now = state.hca().query_srq(srq.base.live()?).map_err(|error| error.reason())?;
        Ok(SrqAttributes {
            max_wr: U32::new(srq.geometry.max_wr),
            max_sge: U32::new(srq.geometry.max_sge),
            limit: U32::new(now.limit),
            reserved: Reserved::ZERO,
        })
    }
}

impl CarryOut for DestroySrq {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Destroyed, Reason> {
        state.destroy(Kind::Srq, self.srq.get())
    }
}
