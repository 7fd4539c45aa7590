//! MCMemberRecord (IBTA vol. 1, 15.2.5.17): ports join multicast groups, create them, and leave.
//!
//! A port joins for itself only, under its own GUID or an alias of it; joins by proxy are refused.

use mlx4_wire::mad::header::{Method, Status};
use mlx4_wire::mad::sa::path::{GroupFlow, McMemberRecord, Selected, Selector, join_state};

use super::measures::{accepts, accepts_rate, mtu_of, rate_of};
use super::multicast::{Group, Groups, Parameters, broadcast_mgid, can_take_part};
use super::records::{Outcome, Records, one};
use super::request::Request;
use crate::fabric::sm::subnet::{Subnet, make_gid, split_gid};

/// What every join and leave must name.
const MEMBER: u64 =
    McMemberRecord::MASK_MGID | McMemberRecord::MASK_PORT_GID | McMemberRecord::MASK_JOIN_STATE;
/// What the creator of a group must say besides.
const CREATE: u64 = MEMBER
    | McMemberRecord::MASK_Q_KEY
    | McMemberRecord::MASK_TCLASS
    | McMemberRecord::MASK_P_KEY
    | McMemberRecord::MASK_FLOW_LABEL
    | McMemberRecord::MASK_SL;

/// Signatures in an MGID: IPoIB's for IPv4 and IPv6, and the one of groups that the administrator names.
const IPOIB_V4: u16 = 0x401b;
const IPOIB_V6: u16 = 0x601b;
const SA_ASSIGNED: u16 = 0xa01b;
/// Scope that doesn't leave the link.
const LINK_LOCAL: u8 = 2;

/// What of the subnet the groups depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Packet lifetime of new groups.
    pub(super) life_time: u8,
    /// Multicast LIDs that the switch routes.
    pub(super) capacity: u16,
}

/// Answers a request for MCMemberRecord that isn't a query.
pub(super) fn change(request: &Request<'_>, subnet: &Subnet, groups: &mut Groups, limits: Limits) -> Outcome {
    if !request.has(MEMBER) {
        return Err(Status::SA_REQ_INSUFFICIENT_COMPONENTS);
    }
    let record = request.mad.attribute::<McMemberRecord>();
    let guid = member_guid(request, subnet, &record)?;
    let wanted = Wanted { request, record, guid };
    match request.method() {
        Method::DELETE => wanted.leave(groups),
        _ => wanted.join(subnet, groups, limits),
    }
}

/// Answers Get and GetTable: one record for each group, without its members.
pub(super) fn query(request: &Request<'_>, groups: &Groups) -> Outcome {
    let record = request.mad.attribute::<McMemberRecord>();
    let wanted = Wanted { request, record, guid: 0 };
    let found = groups.iter().filter(|group| request.end.shares_pkey(group.parameters.pkey));
    let found = found.filter(|group| wanted.names(group) && wanted.fits(&group.parameters));
    Ok(Records::pack(&found.map(|group| group.record([0; 16], 0)).collect::<Vec<_>>()))
}

/// The GUID that joins or leaves: one of the requester's.
fn member_guid(request: &Request<'_>, subnet: &Subnet, record: &McMemberRecord) -> Result<u64, Status> {
    let (prefix, guid) = split_gid(&record.port_gid);
    if !subnet.is_own_prefix(prefix) {
        return Err(Status::SA_REQ_INVALID_GID);
    }
    match subnet.by_guid(guid) {
        None => Err(Status::SA_REQ_INVALID),
        Some((port, _)) if port != request.port => Err(Status::SA_REQ_DENIED),
        Some(_) => Ok(guid),
    }
}

struct Wanted<'a> {
    request: &'a Request<'a>,
    record: McMemberRecord,
    guid: u64,
}

impl Wanted<'_> {
    fn join(&self, subnet: &Subnet, groups: &mut Groups, limits: Limits) -> Outcome {
        let state = self.record.scope_join.join_state();
        if state == 0 {
            return Err(Status::SA_REQ_INVALID);
        }
        let is_member = groups.get(&self.record.mgid).is_some_and(|group| group.join_state(self.guid) != 0);
        if !is_member && !groups.has_room_for(&self.request.end.guids) {
            return Err(Status::SA_NO_RESOURCES);
        }
        let mgid = match groups.get(&self.record.mgid) {
            Some(group) if !self.fits(&group.parameters) => return Err(Status::SA_REQ_INVALID),
            Some(group) if !can_take_part(self.request.end, &group.parameters) => {
                return Err(Status::SA_REQ_INVALID);
            }
            Some(group) => group.mgid,
            None => self.create(subnet, groups, limits)?,
        };
        let joined = groups.join(&mgid, self.guid, state);
        let group = groups.get(&mgid).ok_or(Status::SA_REQ_INVALID)?;
        one(&group.record(self.record.port_gid, joined))
    }

    fn leave(&self, groups: &mut Groups) -> Outcome {
        let state = self.record.scope_join.join_state();
        let group = groups.get(&self.record.mgid).ok_or(Status::SA_REQ_INVALID)?;
        let joined = group.join_state(self.guid);
        if state == 0 || state & !joined != 0 {
            return Err(Status::SA_REQ_INVALID);
        }
        let answer = one(&group.record(self.record.port_gid, joined & !state));
        groups.leave(&self.record.mgid, self.guid, state);
        answer
    }

    fn create(&self, subnet: &Subnet, groups: &mut Groups, limits: Limits) -> Result<[u8; 16], Status> {
        let creators = join_state::FULL_MEMBER | join_state::SEND_ONLY_FULL_MEMBER;
        if self.record.scope_join.join_state() & creators == 0 {
            return Err(Status::SA_REQ_INVALID);
        }
        if !self.request.has(CREATE) {
            return Err(Status::SA_REQ_INSUFFICIENT_COMPONENTS);
        }
        let scope = self.record.scope_join.scope();
        let assigned = self.record.mgid == [0; 16];
        let mgid = if assigned {
            let scope = if self.has(McMemberRecord::MASK_SCOPE) { scope } else { LINK_LOCAL };
            new_mgid(subnet, groups, scope).ok_or(Status::SA_NO_RESOURCES)?
        } else {
            self.record.mgid
        };
        if !assigned && !is_acceptable(&mgid) {
            return Err(Status::SA_REQ_INVALID);
        }
        self.check_ipoib(groups, &mgid)?;
        let parameters = self.parameters(&mgid, limits)?;
        groups.create(mgid, parameters, limits.capacity).map_err(|_| Status::SA_NO_RESOURCES)?;
        Ok(mgid)
    }

    /// A group of IPoIB has the parameters of its partition's broadcast group, which must be there.
    fn check_ipoib(&self, groups: &Groups, mgid: &[u8; 16]) -> Result<(), Status> {
        if !matches!(signature(mgid), IPOIB_V4 | IPOIB_V6) {
            return Ok(());
        }
        let pkey = u16::from_be_bytes([mgid[4], mgid[5]]);
        let broadcast = groups.get(&broadcast_mgid(pkey, mgid[1] & 0xf)).ok_or(Status::SA_REQ_INVALID)?;
        if self.fits(&broadcast.parameters) { Ok(()) } else { Err(Status::SA_REQ_INVALID) }
    }

    fn parameters(&self, mgid: &[u8; 16], limits: Limits) -> Result<Parameters, Status> {
        let end = self.request.end;
        let (best_mtu, best_rate) = (mtu_of(&end.port_info), rate_of(&end.port_info));
        let parameters = Parameters {
            qkey: self.record.q_key.get(),
            pkey: self.record.p_key.get(),
            mtu: super::measures::select_mtu(self.mtu(), best_mtu).ok_or(Status::SA_REQ_INVALID)?,
            rate: super::measures::select_rate(self.rate(), best_rate).ok_or(Status::SA_REQ_INVALID)?,
            life_time: self.created_life_time(limits.life_time),
            tclass: self.record.tclass,
            flow: self.created_flow(),
            scope: mgid[1] & 0xf,
        };
        let is_valid = parameters.pkey & 0x7fff != 0 && can_take_part(end, &parameters);
        if is_valid { Ok(parameters) } else { Err(Status::SA_REQ_INVALID) }
    }

    fn created_life_time(&self, default: u8) -> u8 {
        match self.life_time() {
            Some(wanted) if wanted.selector() == Selector::EXACTLY => wanted.value() & 0x1f,
            _ => default,
        }
    }

    fn created_flow(&self) -> GroupFlow {
        let flow = self.record.flow;
        if self.has(McMemberRecord::MASK_HOP_LIMIT) { flow } else { flow.with_hop_limit(0) }
    }

    /// Whether a group is the one that a query names.
    fn names(&self, group: &Group) -> bool {
        let is = |mask, equal| !self.has(mask) || equal;
        is(McMemberRecord::MASK_MGID, self.record.mgid == group.mgid)
            && is(McMemberRecord::MASK_MLID, self.record.mlid.get() == group.mlid)
            && is(McMemberRecord::MASK_PORT_GID, group.join_state(split_gid(&self.record.port_gid).1) != 0)
    }

    /// Whether a group's parameters are those that the request gives.
    fn fits(&self, parameters: &Parameters) -> bool {
        let is = |mask, equal| !self.has(mask) || equal;
        let (record, flow) = (&self.record, &self.record.flow);
        is(McMemberRecord::MASK_Q_KEY, record.q_key.get() == parameters.qkey)
            && is(McMemberRecord::MASK_TCLASS, record.tclass == parameters.tclass)
            && is(McMemberRecord::MASK_P_KEY, (record.p_key.get() ^ parameters.pkey) & 0x7fff == 0)
            && is(McMemberRecord::MASK_SL, flow.sl() == parameters.flow.sl())
            && is(McMemberRecord::MASK_FLOW_LABEL, flow.flow_label() == parameters.flow.flow_label())
            && is(McMemberRecord::MASK_HOP_LIMIT, flow.hop_limit() == parameters.flow.hop_limit())
            && is(McMemberRecord::MASK_SCOPE, record.scope_join.scope() == parameters.scope)
            && accepts(self.mtu(), parameters.mtu.0)
            && accepts_rate(self.rate(), parameters.rate)
            && accepts(self.life_time(), parameters.life_time)
    }

    fn mtu(&self) -> Option<Selected> {
        self.has(McMemberRecord::MASK_MTU_SELECTOR | McMemberRecord::MASK_MTU).then_some(self.record.mtu)
    }

    fn rate(&self) -> Option<Selected> {
        self.has(McMemberRecord::MASK_RATE_SELECTOR | McMemberRecord::MASK_RATE).then_some(self.record.rate)
    }

    fn life_time(&self) -> Option<Selected> {
        let mask = McMemberRecord::MASK_PACKET_LIFE_TIME_SELECTOR | McMemberRecord::MASK_PACKET_LIFE_TIME;
        self.has(mask).then_some(self.record.packet_life_time)
    }

    fn has(&self, mask: u64) -> bool {
        self.request.has(mask)
    }
}

fn signature(mgid: &[u8; 16]) -> u16 {
    u16::from_be_bytes([mgid[2], mgid[3]])
}

/// Whether a group may have this MGID: a multicast one, and not of those that the administrator gives out
/// on the link.
fn is_acceptable(mgid: &[u8; 16]) -> bool {
    let (flags, scope) = (mgid[1] >> 4, mgid[1] & 0xf);
    let is_multicast = mgid[0] == 0xff && flags & 0xe == 0 && scope != 0 && scope != 0xf;
    is_multicast && !(signature(mgid) == SA_ASSIGNED && scope == LINK_LOCAL)
}

/// An MGID that no group has.
fn new_mgid(subnet: &Subnet, groups: &Groups, scope: u8) -> Option<[u8; 16]> {
    (1..=u64::from(u32::MAX))
        .map(|number| {
            let mut mgid = make_gid(0, number);
            mgid[..4].copy_from_slice(&[0xff, 0x10 | scope & 0xf, 0xa0, 0x1b]);
            mgid[4..12].copy_from_slice(&subnet.gid_prefix.to_be_bytes());
            mgid
        })
        .find(|mgid| groups.get(mgid).is_none())
}
