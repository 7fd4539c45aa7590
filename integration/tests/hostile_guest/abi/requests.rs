//! A good request of every kind and shape. They are carried out in this order in the end.

use anyhow::Result;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::completion::{DestroyCq, ModifyCq, ResizeCq};
use virtio_rdma::request::datagram::{AttachMcast, CreateAh, DetachMcast};
use virtio_rdma::request::domain::{AllocPd, CloseXrcd, DeallocPd, DeallocUar, OpenXrcd};
use virtio_rdma::request::management::{RegisterMadAgent, UnregisterMadAgent, UnregisterServiceId};
use virtio_rdma::request::memory::{AllocMw, DeallocMw, DeregMr, MwType, ReregFlags, ReregMr};
use virtio_rdma::request::query::{QueryDevice, QueryGid, QueryPkey, QueryPort, QueryStats};
use virtio_rdma::request::queue_pair::{
    AhAttributes, CreateQp, DestroyQp, ModifyQp, QpAttrMask as Mask, QpAttributes, QpState, QpType, QueryQp,
};
use virtio_rdma::request::shared_receive::{DestroySrq, ModifySrq, QuerySrq, SrqAttrMask};
use virtio_rdma::{U16, U32};
use zerocopy::FromZeros;

use super::stage::{
    LIST, MGID, MLID, MORE_AREA, RING, Stage, a_cq, a_qp, a_sender, a_service, a_ud_qp, an_srq, an_xrc_srq,
    ud_transitions,
};
use crate::guest::at;
use crate::objects::{DATA, alloc_uar, reg_mr, transitions};

const DIRECT: SegmentMode = SegmentMode::DIRECT;
const PAGE: [(u64, u64); 1] = [(at_const(RING), 4096)];
const TWO_PAGES: [(u64, u64); 1] = [(at_const(RING), 8192)];
const THREE_PAGES: [(u64, u64); 1] = [(at_const(RING), 3 * 4096)];

/// [`at`], for constants.
const fn at_const(offset: u64) -> u64 {
    crate::guest::BASE + offset
}

/// Adds all of them.
pub(crate) fn all(stage: &mut Stage<'_>) -> Result<()> {
    queries(stage)?;
    domains(stage)?;
    memory(stage)?;
    completion_queues(stage)?;
    shared_receive_queues(stage)?;
    queue_pairs(stage)?;
    changes(stage)?;
    datagrams(stage)?;
    management(stage)?;
    stage.bases.sort_by_key(|base| base.opcode.destroys());
    Ok(())
}

fn queries(stage: &mut Stage<'_>) -> Result<()> {
    stage.base("QUERY_DEVICE", &QueryDevice {}, &[], DIRECT)?;
    stage.base("QUERY_PORT", &QueryPort { port: 1, ..QueryPort::new_zeroed() }, &[], DIRECT)?;
    stage.base("QUERY_PORT 2", &QueryPort { port: 2, ..QueryPort::new_zeroed() }, &[], DIRECT)?;
    stage.base("QUERY_GID", &QueryGid { port: 1, ..QueryGid::new_zeroed() }, &[], DIRECT)?;
    stage.base("QUERY_PKEY", &QueryPkey { port: 1, ..QueryPkey::new_zeroed() }, &[], DIRECT)?;
    stage.base("QUERY_STATS", &QueryStats {}, &[], DIRECT)
}

fn domains(stage: &mut Stage<'_>) -> Result<()> {
    let idle = stage.made.idle;
    stage.base("ALLOC_PD", &AllocPd {}, &[], DIRECT)?;
    stage.base("DEALLOC_PD", &DeallocPd { pd: idle.pd, ..DeallocPd::new_zeroed() }, &[], DIRECT)?;
    stage.base("ALLOC_UAR", &alloc_uar(at(MORE_AREA + 0x2_0000), 64), &[], DIRECT)?;
    stage.base("DEALLOC_UAR", &DeallocUar { uar: idle.uar, ..DeallocUar::new_zeroed() }, &[], DIRECT)?;
    stage.base("OPEN_XRCD", &OpenXrcd {}, &[], DIRECT)?;
    stage.base("CLOSE_XRCD", &CloseXrcd { xrcd: idle.xrcd, ..CloseXrcd::new_zeroed() }, &[], DIRECT)
}

fn memory(stage: &mut Stage<'_>) -> Result<()> {
    let (idle, pd) = (stage.made.idle, stage.mine.pd);
    let (region, page) = (reg_mr(pd, at(DATA), 4096), [(at(DATA), 4096)]);
    stage.base("REG_MR", &region, &page, DIRECT)?;
    stage.base("REG_MR of a list", &region, &[(at(LIST), 16)], SegmentMode::INDIRECT)?;
    let all = ReregFlags::TRANSLATION | ReregFlags::PD | ReregFlags::ACCESS;
    let again = ReregMr {
        mr: stage.made.mr,
        change: all,
        pd: region.pd,
        access: region.access,
        iova: region.iova,
        length: region.length,
    };
    stage.base("REREG_MR", &again, &page, DIRECT)?;
    stage.base("DEREG_MR", &DeregMr { mr: idle.mr, ..DeregMr::new_zeroed() }, &[], DIRECT)?;
    let window = AllocMw { pd: region.pd, mw_type: MwType::TYPE_2, ..AllocMw::new_zeroed() };
    stage.base("ALLOC_MW", &window, &[], DIRECT)?;
    stage.base("DEALLOC_MW", &DeallocMw { mw: idle.mw, ..DeallocMw::new_zeroed() }, &[], DIRECT)
}

fn completion_queues(stage: &mut Stage<'_>) -> Result<()> {
    let cq = stage.made.idle.cq;
    stage.base("CREATE_CQ", &a_cq(&stage.mine), &PAGE, DIRECT)?;
    stage.base("MODIFY_CQ", &ModifyCq { cq, count: U16::new(4), period: U16::new(4) }, &[], DIRECT)?;
    let resize = ResizeCq { cq, entries: U32::new(stage.mine.entries) };
    stage.base("RESIZE_CQ", &resize, &PAGE, DIRECT)?;
    stage.base("DESTROY_CQ", &DestroyCq { cq, ..DestroyCq::new_zeroed() }, &[], DIRECT)
}

fn shared_receive_queues(stage: &mut Stage<'_>) -> Result<()> {
    let (srq, xrcd) = (stage.made.idle.srq, stage.made.xrcd);
    stage.base("CREATE_SRQ", &an_srq(&stage.mine), &PAGE, DIRECT)?;
    stage.base("CREATE_SRQ of XRC", &an_xrc_srq(&stage.mine, xrcd), &PAGE, DIRECT)?;
    let limit =
        ModifySrq { srq, attr_mask: SrqAttrMask::LIMIT, limit: U32::new(8), ..ModifySrq::new_zeroed() };
    stage.base("MODIFY_SRQ", &limit, &[], DIRECT)?;
    stage.base("QUERY_SRQ", &QuerySrq { srq, ..QuerySrq::new_zeroed() }, &[], DIRECT)?;
    stage.base("DESTROY_SRQ", &DestroySrq { srq, ..DestroySrq::new_zeroed() }, &[], DIRECT)
}

fn queue_pairs(stage: &mut Stage<'_>) -> Result<()> {
    let (mine, made) = (stage.mine, stage.made);
    stage.base("CREATE_QP", &a_qp(&mine), &TWO_PAGES, DIRECT)?;
    stage.base("CREATE_QP of UD", &a_ud_qp(&mine), &THREE_PAGES, DIRECT)?;
    let sharer = CreateQp { srq: made.srq, ..a_sender(&mine) };
    stage.base("CREATE_QP with an SRQ", &sharer, &PAGE, DIRECT)?;
    let initiator = CreateQp { qp_type: QpType::XRC_SEND, recv_cq: U32::ZERO, ..a_sender(&mine) };
    stage.base("CREATE_QP of an initiator", &initiator, &PAGE, DIRECT)?;
    let target = CreateQp { qp_type: QpType::XRC_RECV, xrcd: made.xrcd, ..CreateQp::new_zeroed() };
    stage.base("CREATE_QP of a target", &target, &[], DIRECT)?;
    let qp = made.idle.qp;
    stage.base("QUERY_QP", &QueryQp { qp, ..QueryQp::new_zeroed() }, &[], DIRECT)?;
    stage.base("DESTROY_QP", &DestroyQp { qp, ..DestroyQp::new_zeroed() }, &[], DIRECT)
}

fn changes(stage: &mut Stage<'_>) -> Result<()> {
    let (made, lid) = (stage.made, stage.lid);
    let dest = made.init.qpn.get();
    let [init, ..] = transitions(made.reset.get(), lid, dest);
    let [_, rtr, _] = transitions(made.init.qp.get(), lid, dest);
    let [.., rts] = transitions(made.rtr.get(), lid, dest);
    stage.base("MODIFY_QP to INIT", &init, &[], DIRECT)?;
    stage.base("MODIFY_QP to RTR", &rtr, &[], DIRECT)?;
    stage.base("MODIFY_QP to RTS", &rts, &[], DIRECT)?;
    let zero = QpAttributes::new_zeroed();
    let second = QpAttributes { port_num: 2, ..init.attributes };
    stage.base("MODIFY_QP to INIT at port 2", &ModifyQp { attributes: second, ..init }, &[], DIRECT)?;
    let in_rts = |qp, more, attributes| ModifyQp { qp, attr_mask: Mask::STATE | more, attributes };
    let same = QpAttributes { qp_state: QpState::RTS, cur_qp_state: QpState::RTS, ..zero };
    stage.base("MODIFY_QP in RTS", &in_rts(made.rts, Mask::CUR_STATE, same), &[], DIRECT)?;
    stage.base("MODIFY_QP of UD in RTS", &in_rts(made.ud_rts, Mask::CUR_STATE, same), &[], DIRECT)?;
    let drain = QpAttributes { qp_state: QpState::SQD, en_sqd_async_notify: 1, ..zero };
    let drained = in_rts(made.rts, Mask::EN_SQD_ASYNC_NOTIFY, drain);
    stage.base("MODIFY_QP to SQD", &drained, &[], DIRECT)?;
    let [init, ..] = ud_transitions(made.ud_reset);
    stage.base("MODIFY_QP of UD to INIT", &init, &[], DIRECT)
}

fn datagrams(stage: &mut Stage<'_>) -> Result<()> {
    let (pd, made, lid) = (U32::new(stage.mine.pd), stage.made, stage.lid);
    let path = AhAttributes { dlid: U16::new(lid), port_num: 1, ..AhAttributes::new_zeroed() };
    let handle = |attributes| CreateAh { pd, attributes, ..CreateAh::new_zeroed() };
    stage.base("CREATE_AH", &handle(path), &[], DIRECT)?;
    let second = AhAttributes { port_num: 2, ..path };
    stage.base("CREATE_AH at port 2", &handle(second), &[], DIRECT)?;
    let global = AhAttributes { is_global: 1, ..path };
    stage.base("CREATE_AH with a GRH", &handle(global), &[], DIRECT)?;
    let (mlid, mut mgid) = (U16::new(MLID), MGID);
    let detach = DetachMcast { qp: made.ud_rts, mlid, mgid, ..DetachMcast::new_zeroed() };
    mgid[15] += 1;
    let attach = AttachMcast { qp: made.ud_rts, mlid, mgid, ..AttachMcast::new_zeroed() };
    stage.base("ATTACH_MCAST", &attach, &[], DIRECT)?;
    stage.base("DETACH_MCAST", &detach, &[], DIRECT)
}

fn management(stage: &mut Stage<'_>) -> Result<()> {
    let registration = stage.made.idle.registration;
    stage.base("REGISTER_SERVICE_ID", &a_service(2), &[], DIRECT)?;
    let less = UnregisterServiceId { registration, ..UnregisterServiceId::new_zeroed() };
    stage.base("UNREGISTER_SERVICE_ID", &less, &[], DIRECT)?;
    let agent = RegisterMadAgent { port: 1, qp: 1, ..RegisterMadAgent::new_zeroed() };
    stage.base("REGISTER_MAD_AGENT", &agent, &[], DIRECT)?;
    let less = UnregisterMadAgent { agent: U32::new(1), ..UnregisterMadAgent::new_zeroed() };
    stage.base("UNREGISTER_MAD_AGENT", &less, &[], DIRECT)
}
