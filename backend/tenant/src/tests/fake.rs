//! A recording fake of the HCA: it has no hardware, but knows what would be wrong to ask of some.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::hca::*;
use crate::memory::GuestPiece;

/// An object: its kind and id.
pub(crate) type Name = (&'static str, u32);

#[derive(Debug, Default)]
struct Object {
    guest: u32,
    memory: Vec<(u64, u64)>,
    parents: Vec<Name>,
    groups: BTreeSet<McastGroup>,
    cookie: u32,
    /// Its destruction failed: the HCA may use its memory.
    lost: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Fake {
    objects: BTreeMap<Name, Object>,
    pub(crate) maps: BTreeMap<u64, u64>,
    sinks: BTreeMap<u32, Arc<dyn EventSink>>,
    /// The last number of whatever.
    pub(crate) next: u32,
    /// Every call that changed something, in order.
    pub(crate) log: Vec<String>,
    /// What should not have been asked.
    pub(crate) wrong: Vec<String>,
    /// Calls that fail, by name, how, and how often.
    pub(crate) faults: BTreeMap<String, (HcaError, u32)>,
    /// How often such calls work before.
    pub(crate) faults_after: BTreeMap<String, u32>,
    /// Regions with windows bound to them.
    pub(crate) bound: BTreeSet<u32>,
    pub(crate) max_maps: usize,
    /// LMC of each port, whose LID is its number.
    pub(crate) lmc: u8,
    pub(crate) modified: Vec<QpModify>,
    /// What queries of queue pairs tell as their state, instead of ERR.
    pub(crate) state: Option<QpState>,
    pub(crate) rung: Vec<(Doorbell, u64)>,
}

#[derive(Debug)]
pub(crate) struct FakeHca(Mutex<Fake>);

impl Fake {
    fn call(&mut self, call: &str) -> Result<(), HcaError> {
        self.log.push(call.to_owned());
        if let Some(left) = self.faults_after.get_mut(call).filter(|left| **left > 0) {
            *left -= 1;
            return Ok(());
        }
        match self.faults.get_mut(call) {
            Some((error, left)) if *left > 0 => {
                *left -= 1;
                Err(*error)
            }
            _ => Ok(()),
        }
    }

    fn complain(&mut self, what: String) -> HcaError {
        self.wrong.push(what);
        HcaError::Refused
    }

    fn create(&mut self, kind: &'static str, mut object: Object) -> Result<u32, HcaError> {
        if let Err(error) = self.call(&format!("create {kind}")) {
            for parent in object.parents.iter().filter(|_| error.leaves_open()) {
                self.lose(*parent);
            }
            return Err(error);
        }
        for parent in object.parents.clone() {
            match self.objects.get(&parent) {
                Some(found) if found.lost => return Err(self.complain(format!("{kind} on lost {parent:?}"))),
                Some(found) if object.guest == 0 => object.guest = found.guest,
                Some(found) if found.guest == object.guest => {}
                _ => return Err(self.complain(format!("{kind} on {parent:?} of another"))),
            }
        }
        self.check_mapped(kind, &object.memory)?;
        self.next += 1;
        self.objects.insert((kind, self.next), object);
        Ok(self.next)
    }

    fn check_mapped(&mut self, kind: &str, memory: &[(u64, u64)]) -> Result<(), HcaError> {
        for (start, length) in memory {
            let (mut at, end) = (*start, start + length);
            while at < end {
                match self.maps.range(..=at).next_back() {
                    Some((map, bytes)) if map + bytes > at => at = map + bytes,
                    _ => return Err(self.complain(format!("{kind} in unmapped {at:#x}"))),
                }
            }
        }
        Ok(())
    }

    fn destroy(&mut self, kind: &'static str, id: u32) -> Result<(), HcaError> {
        let name = (kind, id);
        if self.objects.get(&name).is_none_or(|object| object.lost) {
            return Err(self.complain(format!("destroy {name:?}, which is not there")));
        }
        if kind == "mr" && self.bound.contains(&id) {
            return Err(HcaError::Busy);
        }
        if let Err(error) = self.call(&format!("destroy {kind}")) {
            self.lose(name);
            return Err(error);
        }
        if let Some((user, _)) = self.objects.iter().find(|(_, other)| other.parents.contains(&name)) {
            let user = *user;
            return Err(self.complain(format!("destroy {name:?}, which {user:?} uses")));
        }
        if self.objects.get(&name).is_some_and(|object| !object.groups.is_empty()) {
            self.complain(format!("destroy {name:?} in groups"));
        }
        self.objects.remove(&name);
        Ok(())
    }

    /// The HCA keeps an object, and with it what it uses.
    fn lose(&mut self, name: Name) {
        let Some(object) = self.objects.get_mut(&name) else { return };
        object.lost = true;
        for parent in object.parents.clone() {
            self.lose(parent);
        }
    }

    fn known(&mut self, kind: &'static str, id: u32, call: &str) -> Result<&mut Object, HcaError> {
        self.call(call)?;
        if self.objects.get(&(kind, id)).is_none_or(|object| object.lost) {
            return Err(self.complain(format!("{call} of {kind} {id}, which is not there")));
        }
        self.objects.get_mut(&(kind, id)).ok_or(HcaError::Refused)
    }

    /// Objects that the HCA has and has not lost.
    pub(crate) fn alive(&self) -> Vec<Name> {
        self.objects.iter().filter(|(_, object)| !object.lost).map(|(name, _)| *name).collect()
    }

    /// As after a reset of the HCA.
    pub(crate) fn forget_all(&mut self) {
        self.objects.clear();
        self.sinks.clear();
    }
}

fn pages(pieces: &[Piece]) -> Vec<(u64, u64)> {
    pieces.iter().map(|piece| (piece.iova.0, piece.length)).collect()
}

fn ring(memory: &RingMemory<'_>, record_bytes: u64) -> Vec<(u64, u64)> {
    let mut all = pages(memory.ring);
    all.extend(memory.record.map(|record| (record.0, record_bytes)));
    all
}

impl FakeHca {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Fake { max_maps: usize::MAX, ..Fake::default() })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Fake> {
        self.0.lock().unwrap()
    }

    /// Raises an event of the object that was created last of this kind.
    pub(crate) fn raise_last(&self, kind: &'static str, event: Option<AsyncKind>) {
        let (sink, cookie) = {
            let fake = self.lock();
            let (_, object) = fake.objects.iter().rfind(|(name, _)| name.0 == kind).unwrap();
            (Arc::clone(&fake.sinks[&object.guest]), Cookie(object.cookie))
        };
        match event {
            Some(kind) => sink.raise(HcaEvent::Object { cookie, kind, syndrome: 7 }),
            None => sink.completion(cookie),
        }
    }
}

fn layout(bytes: u64, record_bytes: u64, written: bool) -> RingLayout {
    RingLayout { ring_bytes: bytes.next_multiple_of(4096), record_bytes, written }
}

fn queue_bytes(queue: Option<QueueGeometry>) -> Result<u64, HcaError> {
    let Some(queue) = queue else { return Ok(0) };
    match (queue.log2_wqes, queue.log2_stride) {
        (0..=14, 4..=10) => Ok(1 << (queue.log2_wqes + queue.log2_stride)),
        _ => Err(HcaError::Geometry),
    }
}

impl Hca for FakeHca {
    fn device(&self) -> DeviceInfo {
        super::scene::device()
    }

    fn query_port(&self, port: u8) -> Result<PortInfo, HcaError> {
        assert!((1..=2).contains(&port));
        let lmc = self.lock().lmc;
        Ok(PortInfo { state: 4, gids: 2, pkeys: 4, lid: u16::from(port), lmc, ..PortInfo::default() })
    }

    fn query_gid(&self, port: u8, index: u16) -> Result<Gid, HcaError> {
        assert!(index < 2);
        Ok(Gid([port; 16]))
    }

    fn query_pkey(&self, port: u8, index: u16) -> Result<u16, HcaError> {
        let table = if port == 1 { [0xffff, 0x8001, 0, 0x8002] } else { [0xffff, 0x8003, 0x8001, 0] };
        Ok(table[usize::from(index)])
    }

    fn attach(&self, events: Arc<dyn EventSink>) -> Result<GuestId, HcaError> {
        let mut fake = self.lock();
        fake.next += 1;
        let guest = fake.next;
        fake.sinks.insert(guest, events);
        Ok(GuestId(guest))
    }

    fn detach(&self, guest: GuestId) {
        let mut fake = self.lock();
        fake.log.push("detach".to_owned());
        fake.sinks.remove(&guest.0);
        if fake.objects.values().any(|object| object.guest == guest.0 && !object.lost) {
            fake.complain(format!("{guest:?} detached with objects"));
        }
    }

    fn dma(&self) -> DmaInfo {
        DmaInfo { ranges: vec![0x1000..0xfee0_0000, 0x1_0000_0000..1 << 46], mappings: u64::MAX }
    }

    fn map(&self, iova: Iova, piece: &GuestPiece<'_>) -> Result<(), HcaError> {
        let mut fake = self.lock();
        let result = fake.call("map");
        if result.is_err_and(|error| !error.leaves_open()) {
            return result;
        }
        if fake.maps.len() >= fake.max_maps {
            return Err(HcaError::NoMappings);
        }
        let end = iova.0 + piece.length;
        if fake.maps.range(..end).next_back().is_some_and(|(start, length)| start + length > iova.0) {
            return Err(HcaError::Refused);
        }
        fake.maps.insert(iova.0, piece.length);
        result
    }

    fn unmap(&self, iova: Iova, length: u64) -> Result<(), HcaError> {
        let mut fake = self.lock();
        fake.call("unmap")?;
        let overlaps = |(start, bytes): &(u64, u64)| *start < iova.0 + length && iova.0 < start + bytes;
        let user = fake.objects.iter().find(|(_, object)| object.memory.iter().any(overlaps));
        if let Some(name) = user.map(|(name, _)| *name) {
            fake.complain(format!("unmap {iova:#x} under {name:?}"));
        }
        if fake.maps.remove(&iova.0) != Some(length) {
            fake.complain(format!("unmap {iova:#x}, which is not mapped"));
        }
        Ok(())
    }

    fn alloc_pd(&self, guest: GuestId) -> Result<Created<PdId>, HcaError> {
        let id = self.lock().create("pd", Object { guest: guest.0, ..Object::default() })?;
        Ok(Created { id: PdId(id), number: id })
    }

    fn dealloc_pd(&self, pd: PdId) -> Result<(), HcaError> {
        self.lock().destroy("pd", pd.0)
    }

    fn alloc_uar(&self, guest: GuestId) -> Result<UarId, HcaError> {
        self.lock().create("uar", Object { guest: guest.0, ..Object::default() }).map(UarId)
    }

    fn dealloc_uar(&self, uar: UarId) -> Result<(), HcaError> {
        self.lock().destroy("uar", uar.0)
    }

    fn alloc_xrcd(&self, guest: GuestId) -> Result<Created<XrcdId>, HcaError> {
        let id = self.lock().create("xrcd", Object { guest: guest.0, ..Object::default() })?;
        Ok(Created { id: XrcdId(id), number: id })
    }

    fn dealloc_xrcd(&self, xrcd: XrcdId) -> Result<(), HcaError> {
        self.lock().destroy("xrcd", xrcd.0)
    }

    fn create_mr(&self, spec: &MrSpec<'_>) -> Result<(MrId, MrKeys), HcaError> {
        let parents = vec![("pd", spec.pd.0)];
        let id =
            self.lock().create("mr", Object { memory: pages(spec.pages), parents, ..Object::default() })?;
        Ok((MrId(id), MrKeys { lkey: id, rkey: id }))
    }

    fn modify_mr(&self, mr: MrId, change: &MrChange<'_>) -> Result<MrKeys, HcaError> {
        let mut fake = self.lock();
        if fake.bound.contains(&mr.0) {
            return Err(HcaError::Busy);
        }
        if let Some((_, _, pieces)) = change.memory {
            fake.check_mapped("mr", &pages(pieces))?;
        }
        let result = fake.call("modify mr");
        let lost = result.is_err_and(HcaError::leaves_open);
        let Some(object) = fake.objects.get_mut(&("mr", mr.0)) else { return Err(HcaError::Refused) };
        if result.is_err() && !lost {
            return result.map(|()| MrKeys { lkey: 0, rkey: 0 });
        }
        if let Some((_, _, pieces)) = change.memory {
            if !lost {
                object.memory.clear();
            }
            object.memory.extend(pages(pieces));
        }
        if let Some(pd) = change.pd {
            object.parents.retain(|_| lost);
            object.parents.push(("pd", pd.0));
        }
        if lost {
            fake.lose(("mr", mr.0));
        }
        result.map(|()| MrKeys { lkey: mr.0 | 1 << 24, rkey: mr.0 | 1 << 24 })
    }

    fn destroy_mr(&self, mr: MrId) -> Result<(), HcaError> {
        self.lock().destroy("mr", mr.0)
    }

    fn alloc_mw(&self, pd: PdId, _: MwKind) -> Result<Created<MwId>, HcaError> {
        let id = self.lock().create("mw", Object { parents: vec![("pd", pd.0)], ..Object::default() })?;
        Ok(Created { id: MwId(id), number: id })
    }

    fn dealloc_mw(&self, mw: MwId) -> Result<(), HcaError> {
        self.lock().destroy("mw", mw.0)
    }

    fn cq_layout(&self, geometry: &CqGeometry) -> Result<RingLayout, HcaError> {
        Ok(layout(u64::from(geometry.entries) * 32, 8, true))
    }

    fn create_cq(&self, spec: &CqSpec<'_>) -> Result<Created<CqId>, HcaError> {
        let object = Object {
            guest: spec.guest.0,
            memory: ring(&spec.memory, 8),
            parents: vec![("uar", spec.uar.0)],
            cookie: spec.cookie.0,
            ..Object::default()
        };
        let id = self.lock().create("cq", object)?;
        Ok(Created { id: CqId(id), number: id })
    }

    fn moderate_cq(&self, cq: CqId, _: u16, _: u16) -> Result<(), HcaError> {
        self.lock().known("cq", cq.0, "moderate cq").map(|_| ())
    }

    fn resize_cq(&self, cq: CqId, _: &CqGeometry, ring: &[Piece]) -> Result<(), HcaError> {
        let mut fake = self.lock();
        fake.check_mapped("cq", &pages(ring))?;
        let result = fake.call("resize cq");
        let object = fake.objects.get_mut(&("cq", cq.0)).ok_or(HcaError::Refused)?;
        match result {
            Ok(()) => object.memory.truncate(0),
            Err(error) if !error.leaves_open() => return Err(error),
            Err(_) => {}
        }
        object.memory.extend(pages(ring));
        result
    }

    fn destroy_cq(&self, cq: CqId) -> Result<(), HcaError> {
        self.lock().destroy("cq", cq.0)
    }

    fn srq_layout(&self, geometry: &SrqGeometry) -> Result<RingLayout, HcaError> {
        let queue = QueueGeometry {
            log2_wqes: geometry.log2_wqes,
            log2_stride: geometry.log2_stride,
            max_wr: 0,
            max_sge: 0,
        };
        Ok(layout(queue_bytes(Some(queue))?, 4, false))
    }

    fn create_srq(&self, spec: &SrqSpec<'_>) -> Result<Created<SrqId>, HcaError> {
        let mut parents = vec![("pd", spec.pd.0)];
        if let SrqKind::Xrc { xrcd, cq } = spec.kind {
            parents.extend([("xrcd", xrcd.0), ("cq", cq.0)]);
        }
        let memory = ring(&spec.memory, 4);
        let object =
            Object { guest: spec.guest.0, memory, parents, cookie: spec.cookie.0, ..Object::default() };
        let id = self.lock().create("srq", object)?;
        Ok(Created { id: SrqId(id), number: id })
    }

    fn arm_srq(&self, srq: SrqId, _: u32) -> Result<(), HcaError> {
        self.lock().known("srq", srq.0, "arm srq").map(|_| ())
    }

    fn query_srq(&self, srq: SrqId) -> Result<SrqState, HcaError> {
        self.lock().known("srq", srq.0, "query srq").map(|_| SrqState { limit: 1 })
    }

    fn destroy_srq(&self, srq: SrqId) -> Result<(), HcaError> {
        self.lock().destroy("srq", srq.0)
    }

    fn qp_layout(&self, geometry: &QpGeometry) -> Result<RingLayout, HcaError> {
        let bytes = queue_bytes(geometry.send)? + queue_bytes(geometry.receive)?;
        Ok(layout(bytes, if geometry.receive.is_some() { 4 } else { 0 }, false))
    }

    fn create_qp(&self, spec: &QpSpec<'_>) -> Result<Created<QpId>, HcaError> {
        let mut parents = Vec::new();
        parents.extend(spec.pd.map(|pd| ("pd", pd.0)));
        parents.extend(spec.uar.map(|uar| ("uar", uar.0)));
        parents.extend(spec.xrcd.map(|xrcd| ("xrcd", xrcd.0)));
        parents.extend(spec.srq.map(|srq| ("srq", srq.0)));
        parents.extend(spec.send_cq.iter().chain(&spec.recv_cq).map(|cq| ("cq", cq.0)));
        let memory = ring(&spec.memory, 4);
        let object =
            Object { guest: spec.guest.0, memory, parents, cookie: spec.cookie.0, ..Object::default() };
        let id = self.lock().create("qp", object)?;
        Ok(Created { id: QpId(id), number: id })
    }

    fn modify_qp(&self, qp: QpId, modify: &QpModify) -> Result<(), HcaError> {
        let mut fake = self.lock();
        fake.known("qp", qp.0, "modify qp")?;
        if modify.qkey.is_some_and(|qkey| qkey >> 31 != 0) {
            fake.complain("privileged Q_Key".to_owned());
        }
        fake.modified.push(*modify);
        Ok(())
    }

    fn query_qp(&self, qp: QpId) -> Result<QpAttributes, HcaError> {
        let mut fake = self.lock();
        fake.known("qp", qp.0, "query qp")?;
        let attributes = super::scene::attributes();
        Ok(QpAttributes { state: fake.state.unwrap_or(attributes.state), ..attributes })
    }

    fn destroy_qp(&self, qp: QpId) -> Result<(), HcaError> {
        self.lock().destroy("qp", qp.0)
    }

    fn address_vector(&self, pd: PdId, path: &Path) -> Result<AddressVector, HcaError> {
        self.lock().known("pd", pd.0, "address vector")?;
        let mut vector = [0; 48];
        vector[0] = path.port;
        Ok(AddressVector(vector))
    }

    fn attach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<(), HcaError> {
        let mut fake = self.lock();
        let result = fake.call("attach mcast");
        if result.is_ok() || result.is_err_and(HcaError::leaves_open) {
            fake.known("qp", qp.0, "attach mcast to")?.groups.insert(*group);
        }
        result
    }

    fn detach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<(), HcaError> {
        let removed = self.lock().known("qp", qp.0, "detach mcast")?.groups.remove(group);
        if removed { Ok(()) } else { Err(HcaError::NoGroup) }
    }

    fn ring(&self, doorbell: Doorbell, value: u64) {
        self.lock().rung.push((doorbell, value));
    }
}
