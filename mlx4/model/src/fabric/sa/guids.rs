//! GUIDInfoRecord (IBTA vol. 1, 15.2.5.18): ports ask for alias GUIDs. The manager writes them to the port's
//! GUID table; the requester is answered when the port has taken them.

use mlx4_wire::U64;
use mlx4_wire::mad::attr::GuidInfo;
use mlx4_wire::mad::header::{Method, Status};
use mlx4_wire::mad::sa::SaMad;
use mlx4_wire::mad::sa::record::GuidInfoRecord;

use super::multicast::Groups;
use super::nodes::{guid_block, guid_info_record};
use super::records::one;
use super::request::Request;
use crate::fabric::datagram::Datagram;
use crate::fabric::sm::subnet::{End, Subnet};

/// Requests under way for all ports together.
const MAX_PENDING: usize = 64;
/// GUIDs in a block.
const GUIDS: u8 = 8;
/// The component of the first GUID of a block.
const FIRST_GUID: u32 = GuidInfoRecord::MASK_GID0.trailing_zeros();
/// GUIDs that the administrator chooses: OpenIB's number, made local, then LID and index.
const CHOSEN: u64 = 0x0214_0500_0000_0000;

/// A block of a port's GUID table that the manager shall write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuidWrite {
    /// The switch's port of the node.
    pub(crate) port: u8,
    /// Block of 8 GUIDs.
    pub(crate) block: u8,
    /// What it shall be.
    pub(crate) guids: GuidInfo,
}

struct Pending {
    port: u8,
    block: u8,
    request: Datagram,
}

/// Requests that wait for a port to take its GUIDs.
#[derive(Default)]
pub(super) struct GuidRequests {
    pending: Vec<Pending>,
    writes: Vec<GuidWrite>,
}

impl GuidRequests {
    /// Takes in Set or Delete. It is answered later, unless it can't be done.
    pub(super) fn change(
        &mut self,
        request: &Request<'_>,
        subnet: &Subnet,
        groups: &Groups,
    ) -> Result<(), Status> {
        if !request.has(GuidInfoRecord::MASK_LID | GuidInfoRecord::MASK_BLOCK_NUM) {
            return Err(Status::SA_REQ_INSUFFICIENT_COMPONENTS);
        }
        let record: GuidInfoRecord = request.mad.attribute();
        match subnet.by_lid(record.lid.get()) {
            None => return Err(Status::SA_REQ_INVALID),
            Some((port, _)) if port != request.port => return Err(Status::SA_REQ_DENIED),
            Some(_) => (),
        }
        let (port, block) = (request.port, record.block_num);
        if self.pending.len() >= MAX_PENDING {
            return Err(Status::SA_NO_RESOURCES);
        }
        if self.pending.iter().any(|other| other.port == port && other.block == block) {
            return Err(Status::BUSY);
        }
        let guids = changed(request, subnet, groups, &record)?;
        self.writes.push(GuidWrite { port, block, guids });
        self.pending.push(Pending { port, block, request: *request.datagram });
        Ok(())
    }

    /// The blocks that the manager shall write.
    pub(super) fn take_writes(&mut self) -> Vec<GuidWrite> {
        std::mem::take(&mut self.writes)
    }

    /// A port took a block, or didn't: answers the requester.
    pub(super) fn written(&mut self, subnet: &Subnet, port: u8, block: u8, taken: bool) -> Option<Datagram> {
        let is_it = |pending: &Pending| pending.port == port && pending.block == block;
        let pending = self.pending.swap_remove(self.pending.iter().position(is_it)?);
        let request = Request::read(&pending.request, SaMad::from_mad(&pending.request.mad), subnet)?;
        let record = one(&guid_info_record(request.end, block));
        let outcome = if taken { record } else { Err(Status::SA_NO_RESOURCES) };
        Some(request.answer(subnet, outcome.as_ref().map_err(|status| *status)))
    }

    /// Forgets the requests of a port that is gone.
    pub(super) fn forget(&mut self, port: u8) {
        self.pending.retain(|pending| pending.port != port);
        self.writes.retain(|write| write.port != port);
    }
}

/// The block as it shall be.
fn changed(
    request: &Request<'_>,
    subnet: &Subnet,
    groups: &Groups,
    record: &GuidInfoRecord,
) -> Result<GuidInfo, Status> {
    let end = request.end;
    let mut info = guid_block(end, record.block_num);
    for entry in 0..GUIDS {
        if !request.has(1 << (FIRST_GUID + u32::from(entry))) {
            continue;
        }
        let index = u16::from(record.block_num) * u16::from(GUIDS) + u16::from(entry);
        if index == 0 || index >= u16::from(end.port_info.guid_cap) {
            return Err(Status::SA_REQ_INVALID);
        }
        let at = usize::from(entry);
        let old = info.guids[at].get();
        let new = match (request.method(), record.guid_info.guids[at].get()) {
            (Method::DELETE, _) => 0,
            (_, 0) => choose(subnet, end, index),
            (_, guid) => guid,
        };
        if old != new && old != 0 && groups.is_member(old) {
            return Err(Status::SA_REQ_DENIED);
        }
        let twice = info.guids.iter().enumerate().any(|(other, guid)| other != at && guid.get() == new);
        if new != 0 && new != old && (twice || subnet.by_guid(new).is_some()) {
            return Err(Status::SA_REQ_INVALID);
        }
        info.guids[at] = U64::new(new);
    }
    Ok(info)
}

/// A GUID that no port has.
fn choose(subnet: &Subnet, end: &End, index: u16) -> u64 {
    let mut guid = CHOSEN | u64::from(end.lid) << 16 | u64::from(index);
    while subnet.by_guid(guid).is_some() {
        guid += 1 << 32;
    }
    guid
}
