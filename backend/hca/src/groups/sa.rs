//! The datagrams with which a port joins and leaves multicast groups (MCMemberRecord, IBTA vol. 1, 15.2.5.17).

use mlx4::{Gid, MadAddress, MadQueue};
use mlx4_wire::U64;
use mlx4_wire::mad::QP1_QKEY;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass};
use mlx4_wire::mad::portinfo::PortState;
use mlx4_wire::mad::sa::path::{McMemberRecord, ScopeJoin, join_state};
use mlx4_wire::mad::sa::{SaAttribute, SaMad};
use thiserror::Error;
use zerocopy::FromZeros;

use super::book::{Kind, Request};

/// What names a member; of a group that is there nothing else is needed.
const MEMBER: u64 =
    McMemberRecord::MASK_MGID | McMemberRecord::MASK_PORT_GID | McMemberRecord::MASK_JOIN_STATE;
/// The default partition, which the administrator is in, without the bit that marks full members.
const DEFAULT_PARTITION: u16 = 0x7fff;

/// Why a request can't be sent.
#[derive(Debug, Error)]
pub(crate) enum Unsent {
    #[error("the card isn't up")]
    NoCard,
    #[error("the port is {0:?}, not ACTIVE")]
    Port(PortState),
    #[error(transparent)]
    Driver(#[from] mlx4::Error),
}

/// A request, ready to be sent.
pub(super) struct Ready {
    pub(super) to: MadAddress,
    pub(super) mad: SaMad,
}

impl Ready {
    /// Asks the card for what the request needs: who the administrator is, and what the port is called.
    pub(super) fn new(driver: &mlx4::Hca, request: &Request) -> Result<Self, Unsent> {
        let port = driver.port(request.port)?;
        if port.state != PortState::ACTIVE {
            return Err(Unsent::Port(port.state));
        }
        let gid = driver.gids(request.port)?.first().copied().unwrap_or_default();
        let is_default = |pkey: &u16| pkey & DEFAULT_PARTITION == DEFAULT_PARTITION;
        let pkey_index = driver.pkeys(request.port)?.iter().position(is_default);
        let to = MadAddress {
            dlid: port.sm_lid,
            sl: port.sm_sl,
            path_bits: 0,
            qpn: MadQueue::Gsi.qpn(),
            qkey: QP1_QKEY,
            // A table has at most 128 entries.
            pkey_index: pkey_index.and_then(|index| u8::try_from(index).ok()).unwrap_or(0),
            grh: None,
        };
        Ok(Self { to, mad: mad(request, gid) })
    }
}

/// The datagram of a request for the port with this GID.
fn mad(request: &Request, port_gid: Gid) -> SaMad {
    let mut mad = SaMad::new_zeroed();
    mad.header.base_version = MadHeader::BASE_VERSION;
    mad.header.mgmt_class = MgmtClass::SUBN_ADM;
    mad.header.class_version = SaMad::CLASS_VERSION;
    mad.header.method = match request.kind {
        Kind::Join => Method::SET,
        Kind::Leave => Method::DELETE,
    };
    mad.header.attribute_id.set(SaAttribute::MC_MEMBER_RECORD.0);
    mad.header.transaction_id = U64::new(request.id);
    mad.component_mask = U64::new(MEMBER);
    let mut member = McMemberRecord::new_zeroed();
    member.mgid = request.group;
    member.port_gid = port_gid;
    member.scope_join = ScopeJoin::new().with_join_state(join_state::FULL_MEMBER);
    mad.set_attribute(&member);
    mad
}

/// The answer to a request for membership that a datagram is, if it is one, and to which kind.
pub(super) fn answer(mad: &[u8; 256]) -> Option<(SaMad, Kind)> {
    let mad = SaMad::from_mad(mad);
    let kind = match mad.header.method {
        Method::GET_RESP => Kind::Join,
        Method::DELETE_RESP => Kind::Leave,
        _ => return None,
    };
    let is_answer =
        mad.header.mgmt_class == MgmtClass::SUBN_ADM && mad.attribute_id() == SaAttribute::MC_MEMBER_RECORD;
    is_answer.then_some((mad, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets as in IBTA vol. 1, 13.4.3, 15.2.1.1 and 15.2.5.17.
    #[test]
    fn join_and_leave_name_group_port_and_full_membership() {
        let (group, gid) = ([0xff; 16], [0xfe; 16]);
        for (kind, method) in [(Kind::Join, 0x02), (Kind::Leave, 0x15)] {
            let mad = mad(&Request { id: 0x1122_3344_5566_7788, port: 1, group, kind }, gid).to_mad();
            assert_eq!(mad[..4], [1, 3, 2, method]);
            assert_eq!(mad[8..18], [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0x38]);
            assert_eq!(mad[0x30..0x38], [0, 0, 0, 0, 0, 1, 0, 3]);
            assert_eq!((&mad[0x38..0x48], &mad[0x48..0x58]), (&group[..], &gid[..]));
            assert_eq!(mad[0x38 + 0x30], 1, "the join state");
            assert!(answer(&mad).is_none(), "it is a request");
        }
    }
}
