//! PathRecord (IBTA vol. 1, 15.2.5.16): how to reach a port, or a multicast group.

use mlx4_wire::U16;
use mlx4_wire::mad::header::Status;
use mlx4_wire::mad::portinfo::Mtu;
use mlx4_wire::mad::sa::path::{PathCount, PathFlow, PathRecord, PathSl, Rate, Selected};

use super::measures::{accepts, accepts_rate, exactly, mtu_of, rate_of, select_mtu, select_rate, slower};
use super::multicast::{Group, Groups};
use super::records::{Outcome, Records};
use super::request::Request;
use crate::fabric::sm::subnet::{End, Subnet};

/// Answers Get and GetTable of PathRecord.
pub(super) fn query(request: &Request<'_>, subnet: &Subnet, groups: &Groups, life_time: u8) -> Outcome {
    let query = Query::read(request)?;
    let sources = query.ends(subnet, query.sgid, query.slid)?;
    if let Some(group) = query.dgid.and_then(|dgid| groups.get(&dgid)) {
        let paths = sources.iter().filter_map(|source| query.to_group(source, group));
        return Ok(Records::pack(&paths.collect::<Vec<_>>()));
    }
    let destinations = query.ends(subnet, query.dgid, query.dlid)?;
    let mut paths = Vec::new();
    for source in &sources {
        for destination in &destinations {
            paths.extend(query.path(source, destination, life_time));
        }
    }
    Ok(Records::pack(&paths))
}

/// One end of a path, and the GID that it goes by.
struct Side<'a> {
    end: &'a End,
    gid: [u8; 16],
}

/// What a query asks for.
struct Query<'a> {
    request: &'a Request<'a>,
    record: PathRecord,
    sgid: Option<[u8; 16]>,
    dgid: Option<[u8; 16]>,
    slid: Option<u16>,
    dlid: Option<u16>,
}

impl<'a> Query<'a> {
    fn read(request: &'a Request<'a>) -> Result<Self, Status> {
        let record = request.mad.attribute::<PathRecord>();
        let service = PathRecord::MASK_SERVICE_ID | PathRecord::MASK_SERVICE_ID_LOW;
        if request.mask() & service != 0 && !request.has(service) {
            return Err(Status::SA_REQ_INSUFFICIENT_COMPONENTS);
        }
        Ok(Self {
            sgid: request.has(PathRecord::MASK_SGID).then_some(record.sgid),
            dgid: request.has(PathRecord::MASK_DGID).then_some(record.dgid),
            slid: request.has(PathRecord::MASK_SLID).then(|| record.slid.get()),
            dlid: request.has(PathRecord::MASK_DLID).then(|| record.dlid.get()),
            request,
            record,
        })
    }

    /// The ports that GID and LID name; all if neither is given.
    fn ends<'s>(
        &self,
        subnet: &'s Subnet,
        gid: Option<[u8; 16]>,
        lid: Option<u16>,
    ) -> Result<Vec<Side<'s>>, Status> {
        let side = |end: &'s End| Side { end, gid: gid.unwrap_or_else(|| subnet.gid(end.guid())) };
        let by_gid = gid.map(|gid| subnet.by_gid(&gid).ok_or(Status::SA_NO_RECORDS)).transpose()?;
        let by_lid = lid.map(|lid| subnet.by_lid(lid).ok_or(Status::SA_NO_RECORDS)).transpose()?;
        let ends = match (by_gid, by_lid) {
            (Some((a, _)), Some((b, _))) if a != b => return Err(Status::SA_REQ_INVALID),
            (Some((_, end)), _) | (None, Some((_, end))) => vec![side(end)],
            (None, None) => subnet.iter().map(|(_, end)| side(end)).collect(),
        };
        Ok(ends.into_iter().filter(|side| self.request.may_see(side.end)).collect())
    }

    fn path(&self, source: &Side<'_>, destination: &Side<'_>, life_time: u8) -> Option<PathRecord> {
        let pkey = self.pkey(source.end, destination.end)?;
        let (from, to) = (&source.end.port_info, &destination.end.port_info);
        let mtu = select_mtu(self.mtu(), mtu_of(from).min(mtu_of(to)))?;
        let rate = select_rate(self.rate(), slower(rate_of(from), rate_of(to)))?;
        let life_time = if source.end.lid == destination.end.lid { 0 } else { life_time };
        if !accepts(self.life_time(), life_time) || !self.accepts_sl(0) {
            return None;
        }
        let record = self.record(source, destination.gid, destination.end.lid, pkey);
        Some(measured(record, mtu, rate, life_time))
    }

    fn to_group(&self, source: &Side<'_>, group: &Group) -> Option<PathRecord> {
        let parameters = &group.parameters;
        let asked = self.request.has(PathRecord::MASK_P_KEY);
        let same_pkey = !asked || (self.record.p_key.get() ^ parameters.pkey) & 0x7fff == 0;
        if !same_pkey || !source.end.shares_pkey(parameters.pkey) || !self.accepts_sl(parameters.flow.sl()) {
            return None;
        }
        let fits = accepts(self.mtu(), parameters.mtu.0)
            && accepts_rate(self.rate(), parameters.rate)
            && accepts(self.life_time(), parameters.life_time);
        if !fits {
            return None;
        }
        let mut record = self.record(source, group.mgid, group.mlid, parameters.pkey);
        record.tclass = parameters.tclass;
        record.sl = PathSl::new().with_sl(parameters.flow.sl());
        record.flow = PathFlow::new()
            .with_flow_label(parameters.flow.flow_label())
            .with_hop_limit(parameters.flow.hop_limit());
        Some(measured(record, parameters.mtu, parameters.rate, parameters.life_time))
    }

    fn record(&self, source: &Side<'_>, dgid: [u8; 16], dlid: u16, pkey: u16) -> PathRecord {
        PathRecord {
            dgid,
            sgid: source.gid,
            dlid: U16::new(dlid),
            slid: U16::new(source.end.lid),
            flow: PathFlow::new(),
            tclass: if self.request.has(PathRecord::MASK_TCLASS) { self.record.tclass } else { 0 },
            count: PathCount::new().with_reversible(true),
            p_key: U16::new(pkey),
            sl: PathSl::new(),
            preference: 0,
            _reserved: [0; 6],
            ..self.record
        }
    }

    /// The P_Key of a path: the one that is asked for, else one that both ends have.
    fn pkey(&self, source: &End, destination: &End) -> Option<u16> {
        if self.request.has(PathRecord::MASK_P_KEY) {
            let pkey = self.record.p_key.get();
            return (source.shares_pkey(pkey) && destination.shares_pkey(pkey)).then_some(pkey);
        }
        source.pkeys.iter().copied().find(|pkey| destination.shares_pkey(*pkey))
    }

    fn accepts_sl(&self, sl: u8) -> bool {
        !self.request.has(PathRecord::MASK_SL) || self.record.sl.sl() == sl
    }

    fn mtu(&self) -> Option<Selected> {
        self.request.has(PathRecord::MASK_MTU_SELECTOR | PathRecord::MASK_MTU).then_some(self.record.mtu)
    }

    fn rate(&self) -> Option<Selected> {
        self.request.has(PathRecord::MASK_RATE_SELECTOR | PathRecord::MASK_RATE).then_some(self.record.rate)
    }

    fn life_time(&self) -> Option<Selected> {
        let mask = PathRecord::MASK_PACKET_LIFE_TIME_SELECTOR | PathRecord::MASK_PACKET_LIFE_TIME;
        self.request.has(mask).then_some(self.record.packet_life_time)
    }
}

fn measured(mut record: PathRecord, mtu: Mtu, rate: Rate, life_time: u8) -> PathRecord {
    record.mtu = exactly(mtu.0);
    record.rate = exactly(rate.0);
    record.packet_life_time = exactly(life_time);
    record
}
