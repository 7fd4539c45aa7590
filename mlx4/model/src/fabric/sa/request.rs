//! A request to the administrator, and the MADs that answer it.

use mlx4_wire::mad::header::{Method, Status};
use mlx4_wire::mad::sa::{SaAttribute, SaMad};
use mlx4_wire::{U16, U64};
use zerocopy::FromZeros;

use super::records::Records;
use crate::fabric::datagram::Datagram;
use crate::fabric::sm::subnet::{End, Subnet};

/// A request whose sender is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// The packet.
    pub(super) datagram: &'a Datagram,
    /// Its MAD.
    pub(super) mad: SaMad,
    /// The switch's port that the requester is at.
    pub(super) port: u8,
    /// The requester.
    pub(super) end: &'a End,
}

impl<'a> Request<'a> {
    /// Reads a request; `None` if its source isn't a port that is up.
    pub(super) fn read(datagram: &'a Datagram, mad: SaMad, subnet: &'a Subnet) -> Option<Self> {
        let (port, end) = subnet.by_lid(datagram.headers.slid)?;
        Some(Self { datagram, mad, port, end })
    }

    /// The method.
    pub(super) fn method(&self) -> Method {
        self.mad.header.method
    }

    /// The attribute.
    pub(super) fn attribute_id(&self) -> SaAttribute {
        self.mad.attribute_id()
    }

    /// The component mask.
    pub(super) fn mask(&self) -> u64 {
        self.mad.component_mask.get()
    }

    /// Whether all of these components are given.
    pub(super) fn has(&self, components: u64) -> bool {
        self.mask() & components == components
    }

    /// Whether the requester may know of a port: they are in one partition at least.
    pub(super) fn may_see(&self, end: &End) -> bool {
        super::may_see(self.end, end)
    }

    /// The single-packet answer: one record, or a status without one.
    pub(super) fn answer(&self, subnet: &Subnet, outcome: Result<&Records, Status>) -> Datagram {
        let mut mad = self.blank_answer();
        match outcome {
            Ok(records) => {
                let len = records.bytes.len().min(SaMad::DATA_SIZE);
                mad.data[..len].copy_from_slice(&records.bytes[..len]);
                mad.attribute_offset = stride_units(records);
            }
            Err(status) => mad.header.status = U16::new(status.0),
        }
        self.datagram.answer(subnet.manager_lid(), mad.to_mad())
    }

    /// The answer's headers, without RMPP and data.
    pub(super) fn blank_answer(&self) -> SaMad {
        let mut mad = SaMad::new_zeroed();
        mad.header = self.mad.header;
        mad.header.method = Method(self.method().0 | Method::RESPONSE);
        if self.method() == Method::SET {
            mad.header.method = Method::GET_RESP;
        }
        mad.header.status = U16::new(Status::GOOD.0);
        mad.sm_key = U64::new(0);
        mad.component_mask = self.mad.component_mask;
        mad
    }
}

/// The distance between records as the SA header gives it.
pub(super) fn stride_units(records: &Records) -> U16 {
    U16::new(u16::try_from(records.stride / 8).unwrap_or(0))
}
