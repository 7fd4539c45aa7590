//! A guest that has one of everything, and a good request of every kind and shape.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use mlx4_wire::wqe::{BindAccess, BindKind, BindSeg, Opcode as WqeOpcode};
use mlx4_wire::{U32 as Be32, U64 as Be64};
use virtio_rdma::config::Config;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::completion::CreateCq;
use virtio_rdma::request::datagram::AttachMcast;
use virtio_rdma::request::domain::{AllocPd, OpenXrcd};
use virtio_rdma::request::management::RegisterServiceId;
use virtio_rdma::request::memory::{AccessFlags, AllocMw, MwType, RegMr};
use virtio_rdma::request::query::{DeviceAttributes, QueryDevice};
use virtio_rdma::request::queue_pair::{
    CreateQp, ModifyQp, QpAttrMask as Mask, QpAttributes, QpCap, QpCreated, QpState, QpType,
};
use virtio_rdma::request::shared_receive::{CreateSrq, SrqType};
use virtio_rdma::{Opcode, Reason, Status, U16, U32, U64, Verb};
use zerocopy::{FromZeros, IntoBytes};

use super::requests;
use crate::guest::{Guest, Reply, at};
use crate::objects::{
    DATA, Objects, RECORDS, SPARE, alloc_uar, create_cq, create_qp, create_srq, lid, reg_mr, transitions,
};
use crate::scene::Scene;

/// Where the rings of new objects are, which nobody ever uses, their records, and a doorbell area.
pub(crate) const RING: u64 = SPARE + 0x10_0000;
pub(crate) const RECORD: u64 = RECORDS + 0x800;
pub(crate) const MORE_AREA: u64 = SPARE + 0x14_0000;
/// The rings of queue pairs that are in RTS, in which nothing must ever seem to be posted.
const QUIET: u64 = SPARE + 0x1c_0000;
/// A list of one segment.
pub(crate) const LIST: u64 = SPARE + 0x18_0000;
/// Room for any reply.
const ROOM: u32 = 512;
/// A service ID that another guest has.
pub(crate) const FOREIGN_SERVICE: u64 = 0x7777_0000;
/// A multicast group.
pub(crate) const MLID: u16 = 0xc123;
pub(crate) const MGID: [u8; 16] = [0xff, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x42];

/// A good request.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) name: &'static str,
    pub(crate) opcode: Opcode,
    pub(crate) request: Vec<u8>,
    /// Why it is refused as it is: of a capability that the device doesn't have.
    pub(crate) refused: Option<Reason>,
}

/// Handles of objects, most of which are there to be named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) xrcd: U32,
    pub(crate) srq: U32,
    pub(crate) xrc_srq: U32,
    /// RC queue pairs in RESET, INIT, RTR and RTS.
    pub(crate) reset: U32,
    pub(crate) init: QpCreated,
    pub(crate) rtr: U32,
    pub(crate) rts: U32,
    /// UD queue pairs in RESET and RTS; the second one is in a group.
    pub(crate) ud_reset: U32,
    pub(crate) ud_rts: U32,
    pub(crate) mr: U32,
    /// A region that a window is bound to.
    pub(crate) windowed: U32,
    /// Nobody uses these.
    pub(crate) idle: Idle,
}

/// Objects to be destroyed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) pd: U32,
    pub(crate) uar: U32,
    pub(crate) xrcd: U32,
    pub(crate) mr: U32,
    pub(crate) mw: U32,
    pub(crate) cq: U32,
    pub(crate) srq: U32,
    pub(crate) qp: U32,
    pub(crate) registration: U32,
}

/// The guest, what it has, and what it has tried.
pub(crate) struct Stage<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) guest: Guest,
    pub(crate) mine: Objects,
    pub(crate) made: Made,
    pub(crate) device: DeviceAttributes,
    pub(crate) config: Config,
    pub(crate) lid: u16,
    pub(crate) bases: Vec<Base>,
    /// Another guest, that has a service ID.
    _other: Guest,
    had: [u64; 3],
    seen: BTreeSet<u8>,
    tried: BTreeSet<(u8, String)>,
}

/// A CQ of a page.
pub(crate) fn a_cq(mine: &Objects) -> CreateCq {
    create_cq(mine.uar, mine.entries, at(RECORD))
}

/// An SRQ of a page.
pub(crate) fn an_srq(mine: &Objects) -> CreateSrq {
    create_srq(mine.pd, at(RECORD))
}

/// The same for extended connections.
pub(crate) fn an_xrc_srq(mine: &Objects, xrcd: U32) -> CreateSrq {
    CreateSrq { xrcd, cq: mine.cq.cq, srq_type: SrqType::XRC, ..an_srq(mine) }
}

/// An RC queue pair in two pages.
pub(crate) fn a_qp(mine: &Objects) -> CreateQp {
    create_qp(mine.pd, mine.uar, mine.cq.cq.get(), at(RECORD))
}

/// One without a receive queue, in a page.
pub(crate) fn a_sender(mine: &Objects) -> CreateQp {
    let cap = QpCap { max_recv_wr: U32::ZERO, max_recv_sge: U32::ZERO, ..a_qp(mine).cap };
    CreateQp { log2_recv_wqes: 0, log2_recv_stride: 0, record: U64::ZERO, cap, ..a_qp(mine) }
}

/// A UD queue pair: 64 sends of 128 bytes, 64 receives of 64 bytes, in three pages.
pub(crate) fn a_ud_qp(mine: &Objects) -> CreateQp {
    CreateQp { qp_type: QpType::UD, log2_send_stride: 7, ..a_qp(mine) }
}

/// The changes of a UD queue pair to INIT, RTR and RTS.
pub(crate) fn ud_transitions(qp: U32) -> [ModifyQp; 3] {
    let zero = QpAttributes::new_zeroed();
    let init = QpAttributes { qp_state: QpState::INIT, port_num: 1, qkey: U32::new(0x1234), ..zero };
    let step = |attr_mask, attributes| ModifyQp { qp, attr_mask, attributes };
    [
        step(Mask::STATE | Mask::PKEY_INDEX | Mask::PORT | Mask::QKEY, init),
        step(Mask::STATE, QpAttributes { qp_state: QpState::RTR, ..zero }),
        step(Mask::STATE | Mask::SQ_PSN, QpAttributes { qp_state: QpState::RTS, ..zero }),
    ]
}

/// The request for service IDs.
pub(crate) fn a_service(service_id: u64) -> RegisterServiceId {
    RegisterServiceId {
        service_id: U64::new(service_id),
        mask: U64::new(u64::MAX),
        ..RegisterServiceId::new_zeroed()
    }
}

/// A region with a window bound to it, by a work request.
fn windowed(guest: &mut Guest, mine: &mut Objects) -> Result<U32> {
    let verb = reg_mr(mine.pd, at(DATA), 4096);
    let verb = RegMr { access: verb.access | AccessFlags::MW_BIND, ..verb };
    let region = guest.must(&verb, &[(at(DATA), 4096)])?;
    let window = AllocMw { pd: U32::new(mine.pd), mw_type: MwType::TYPE_2, ..AllocMw::new_zeroed() };
    let window = guest.must(&window, &[])?;
    let mut segment = BindSeg::new_zeroed();
    segment.access = BindAccess::new().with_remote_read(true);
    segment.kind = BindKind::new().with_type_2(true);
    segment.new_rkey = Be32::new(window.rkey.get());
    segment.lkey = Be32::new(region.lkey.get());
    (segment.start, segment.length) = (Be64::new(at(DATA)), Be64::new(4096));
    mine.post(guest, 0, WqeOpcode::BIND_MW, segment.as_bytes())?;
    let done = mine.completion(guest)?;
    ensure!(done.is_none(), "a bind ended in syndrome {done:x?}");
    Ok(region.mr)
}

impl Idle {
    fn new(guest: &mut Guest, mine: &Objects) -> Result<Self> {
        let window = AllocMw { pd: U32::new(mine.pd), mw_type: MwType::TYPE_2, ..AllocMw::new_zeroed() };
        Ok(Self {
            pd: guest.must(&AllocPd {}, &[])?.pd,
            uar: guest.must(&alloc_uar(at(MORE_AREA), 64), &[])?.uar,
            xrcd: guest.must(&OpenXrcd {}, &[])?.xrcd,
            mr: guest.must(&reg_mr(mine.pd, at(DATA), 4096), &[(at(DATA), 4096)])?.mr,
            mw: guest.must(&window, &[])?.mw,
            cq: guest.must(&a_cq(mine), &[(at(RING), 4096)])?.cq,
            srq: guest.must(&an_srq(mine), &[(at(RING), 4096)])?.srq,
            qp: guest.must(&a_qp(mine), &[(at(RING), 8192)])?.qp,
            registration: guest.must(&a_service(1), &[])?.registration,
        })
    }
}

impl Made {
    fn new(guest: &mut Guest, mine: &mut Objects, lid: u16) -> Result<Self> {
        let xrcd = guest.must(&OpenXrcd {}, &[])?.xrcd;
        let srq = guest.must(&an_srq(mine), &[(at(RING), 4096)])?.srq;
        // One that uses the SRQ.
        guest.must(&CreateQp { srq, ..a_sender(mine) }, &[(at(RING), 4096)])?;
        for slot in 0..3 * 4096 / 64 {
            guest.memory.write(QUIET + 64 * slot, &0x8000_0000u32.to_be_bytes())?;
        }
        let mut states = Vec::new();
        for steps in 0..4 {
            let made = guest.must(&a_qp(mine), &[(at(QUIET), 8192)])?;
            for step in &transitions(made.qp.get(), lid, made.qpn.get())[..steps] {
                guest.must(step, &[])?;
            }
            states.push(made);
        }
        let [reset, init, rtr, rts] = <[QpCreated; 4]>::try_from(states).ok().context("four queue pairs")?;
        let ud_rts = guest.must(&a_ud_qp(mine), &[(at(QUIET), 3 * 4096)])?.qp;
        for step in ud_transitions(ud_rts) {
            guest.must(&step, &[])?;
        }
        let group = AttachMcast { qp: ud_rts, mlid: U16::new(MLID), mgid: MGID, ..AttachMcast::new_zeroed() };
        guest.must(&group, &[])?;
        Ok(Self {
            xrcd,
            srq,
            xrc_srq: guest.must(&an_xrc_srq(mine, xrcd), &[(at(RING), 4096)])?.srq,
            reset: reset.qp,
            init,
            rtr: rtr.qp,
            rts: rts.qp,
            ud_reset: guest.must(&a_ud_qp(mine), &[(at(RING), 3 * 4096)])?.qp,
            ud_rts,
            mr: guest.must(&reg_mr(mine.pd, at(DATA), 4096), &[(at(DATA), 4096)])?.mr,
            windowed: windowed(guest, mine)?,
            idle: Idle::new(guest, mine)?,
        })
    }
}

impl<'a> Stage<'a> {
    pub(crate) fn new(scene: &'a Scene) -> Result<Self> {
        let mut other = scene.vm()?;
        other.must(&a_service(FOREIGN_SERVICE), &[])?;
        let mut guest = scene.guest()?;
        let mut mine = Objects::connected(&mut guest)?;
        let lid = lid(&mut guest)?;
        let made = Made::new(&mut guest, &mut mine, lid)?;
        let device = guest.must(&QueryDevice {}, &[])?;
        let config = guest.config()?;
        let list = [at(DATA).to_le_bytes(), 4096u64.to_le_bytes()].concat();
        guest.memory.write(LIST, &list)?;
        let mut stage = Self {
            scene,
            guest,
            mine,
            made,
            device,
            config,
            lid,
            bases: Vec::new(),
            _other: other,
            had: [0; 3],
            seen: BTreeSet::new(),
            tried: BTreeSet::new(),
        };
        requests::all(&mut stage)?;
        stage.had = stage.has()?;
        Ok(stage)
    }

    /// Objects, bytes registered, and what the HCA did not give back.
    fn has(&self) -> Result<[u64; 3]> {
        let stats = self.scene.stats("process")?;
        Ok([stats.objects.get().into(), stats.registered_bytes.get(), stats.quarantined.get().into()])
    }

    /// The guest has what it had.
    pub(crate) fn nothing_has_changed(&self) -> Result<()> {
        let now = self.has()?;
        ensure!(now == self.had, "objects, bytes, quarantined: {now:?}; before: {:?}", self.had);
        Ok(())
    }

    /// Adds a good request.
    pub(crate) fn base<V: Verb>(
        &mut self,
        name: &'static str,
        verb: &V,
        segments: &[(u64, u64)],
        mode: SegmentMode,
    ) -> Result<()> {
        let request = self.guest.request(verb, segments, mode)?;
        let mads = [Opcode::REGISTER_MAD_AGENT, Opcode::UNREGISTER_MAD_AGENT];
        let refused = mads.contains(&V::OPCODE).then_some(Reason::NOT_OFFERED);
        self.bases.push(Base { name, opcode: V::OPCODE, request, refused });
        Ok(())
    }

    /// A good request by its name.
    pub(crate) fn named(&self, name: &str) -> Result<Base> {
        let base = self.bases.iter().find(|base| base.name == name);
        base.cloned().with_context(|| format!("no request {name:?}"))
    }

    /// Sends a request.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<Reply> {
        self.guest.send(request, ROOM)
    }

    /// Sends a request that must be refused for a reason, and cost nothing.
    pub(crate) fn refused(&mut self, request: &[u8], reason: Reason) -> Result<()> {
        self.refused_in(request, ROOM, reason)
    }

    /// The same with so much room for the reply.
    pub(crate) fn refused_in(&mut self, request: &[u8], room: u32, reason: Reason) -> Result<()> {
        let (status, seen) = self.guest.send(request, room)?.ended()?;
        ensure!(seen == reason && status == reason.status(), "{seen} instead of {reason}: {request:02x?}");
        self.seen.insert(reason.0);
        self.nothing_has_changed()
    }

    /// Sends a request that must be carried out.
    pub(crate) fn carried_out(&mut self, request: &[u8]) -> Result<()> {
        let (status, reason) = self.ask(request)?.ended()?;
        ensure!(status == Status::OK, "{reason}: {request:02x?}");
        Ok(())
    }

    /// The guest has more, or less, on purpose.
    pub(crate) fn take_stock(&mut self) -> Result<()> {
        self.had = self.has()?;
        Ok(())
    }

    /// A bad value of a field was tried.
    pub(crate) fn tried(&mut self, opcode: Opcode, path: &str) {
        self.tried.insert((opcode.0, path.to_owned()));
    }

    pub(crate) fn has_tried(&self, opcode: Opcode, path: &str) -> bool {
        self.tried.contains(&(opcode.0, path.to_owned()))
    }

    /// A reason was given elsewhere.
    pub(crate) fn note(&mut self, reason: Reason) {
        self.seen.insert(reason.0);
    }

    pub(crate) fn has_seen(&self, reason: Reason) -> bool {
        self.seen.contains(&reason.0)
    }
}
