//! Records of nodes, ports and links: what the manager found, as far as the requester may see it.

use mlx4_wire::mad::attr::{GuidInfo, NodeType, PKeyTable, SmInfo, SmPriorityState, SmState};
use mlx4_wire::mad::portinfo::PortInfo;
use mlx4_wire::mad::sa::SaAttribute;
use mlx4_wire::mad::sa::record::{
    GuidInfoRecord, LinkRecord, NodeRecord, PKeyTableRecord, PortInfoRecord, SmInfoRecord, SwitchInfoRecord,
};
use mlx4_wire::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::records::{Components, Records};
use super::request::Request;
use crate::fabric::sm::subnet::{End, Subnet};

const NODE: Components = Components(&[16, 16, 8, 8, 8, 8, 64, 64, 64, 16, 16, 32, 8, 24, 512]);
const PORT_INFO: Components = Components(&[
    16, 8, 8, 64, 64, 16, 16, 32, 16, 16, 8, 8, 8, 8, 4, 4, 4, 4, 2, 3, 3, 4, 4, 4, 4, 4, 4, 8, 8, 8, 4, 4,
    3, 5, 4, 1, 1, 1, 1, 16, 16, 16, 8, 1, 2, 5, 3, 5, 4, 4, 16, 8, 24, 16, 4, 4, 3, 5,
]);
const SWITCH_INFO: Components =
    Components(&[16, 16, 16, 16, 16, 16, 8, 8, 8, 5, 1, 2, 16, 16, 1, 1, 1, 1, 1, 3, 8, 16]);
const SM_INFO: Components = Components(&[16, 16, 64, 64, 32, 4, 4]);
const LINK: Components = Components(&[16, 8, 8, 16]);
const GUID_INFO: Components = Components(&[16, 8, 8, 32, 64, 64, 64, 64, 64, 64, 64, 64]);
const PKEY_TABLE: Components = Components(&[16, 16, 8, 24, 512]);

/// P_Keys in a block.
const PKEYS: usize = 32;
/// GUIDs in a block.
const GUIDS: usize = 8;

/// Answers a query for one of these records; `None` for records that aren't among them.
pub(super) fn query(request: &Request<'_>, subnet: &Subnet, act_count: u32) -> Option<Records> {
    let query = Query { request, subnet };
    Some(match request.attribute_id() {
        SaAttribute::NODE_RECORD => query.matching(&NODE, query.nodes()),
        SaAttribute::PORT_INFO_RECORD => query.port_infos(),
        SaAttribute::SWITCH_INFO_RECORD => query.matching(&SWITCH_INFO, query.switch_info()),
        SaAttribute::SM_INFO_RECORD => query.matching(&SM_INFO, query.sm_info(act_count)),
        SaAttribute::LINK_RECORD => query.matching(&LINK, query.links()),
        SaAttribute::GUID_INFO_RECORD => query.matching(&GUID_INFO, query.guid_infos()),
        SaAttribute::P_KEY_TABLE_RECORD => query.matching(&PKEY_TABLE, query.pkey_tables()),
        _ => return None,
    })
}

/// A block of a port's GUID table.
pub(super) fn guid_block(end: &End, block: u8) -> GuidInfo {
    let from = usize::from(block) * GUIDS;
    let mut info = GuidInfo { guids: [U64::new(0); GUIDS] };
    for (to, guid) in info.guids.iter_mut().zip(end.guids.iter().skip(from)) {
        to.set(*guid);
    }
    info
}

struct Query<'a> {
    request: &'a Request<'a>,
    subnet: &'a Subnet,
}

impl<'a> Query<'a> {
    /// Those of the records that the request's component mask picks.
    fn matching<R>(&self, components: &Components, records: Vec<R>) -> Records
    where
        R: FromBytes + IntoBytes + Immutable,
    {
        let wanted: R = self.request.mad.attribute();
        let mask = self.request.mask();
        let picked = records.into_iter().filter(|record| components.match_masked(mask, &wanted, record));
        Records::pack(&picked.collect::<Vec<_>>())
    }

    fn ends(&self) -> impl Iterator<Item = (u8, &'a End)> {
        self.subnet.iter().filter(|(_, end)| self.request.may_see(end))
    }

    fn nodes(&self) -> Vec<NodeRecord> {
        let record = |(_, end): (u8, &End)| NodeRecord {
            lid: U16::new(end.lid),
            _reserved: U16::new(0),
            node_info: end.node_info,
            node_description: end.description,
        };
        self.ends().map(record).collect()
    }

    fn port_infos(&self) -> Records {
        let mut records = Vec::new();
        for (port, end) in self.ends() {
            let number = end.node_info.local_port_vendor.local_port_num();
            let number = if port == 0 { 0 } else { u8::try_from(number).unwrap_or(0) };
            records.push(port_info_record(end.lid, number, &end.port_info));
            if port == 0 {
                let externals = self.subnet.switch_ports.iter().zip(0..).skip(1);
                records.extend(externals.map(|(info, number)| port_info_record(end.lid, number, info)));
            }
        }
        let has_all =
            self.request.mad.header.attribute_modifier.get() & PortInfoRecord::MATCH_CAPABILITY_MASK;
        if has_all == 0 || !self.request.has(PortInfoRecord::MASK_CAPABILITY_MASK) {
            return self.matching(&PORT_INFO, records);
        }
        let wanted: PortInfoRecord = self.request.mad.attribute();
        let bits = |info: &PortInfo| info.capability_mask.into_bits().get();
        let asked = bits(&wanted.port_info);
        let mask = self.request.mask() & !PortInfoRecord::MASK_CAPABILITY_MASK;
        let picked = |record: &PortInfoRecord| {
            bits(&record.port_info) & asked == asked && PORT_INFO.match_masked(mask, &wanted, record)
        };
        Records::pack(&records.into_iter().filter(picked).collect::<Vec<_>>())
    }

    fn switch_info(&self) -> Vec<SwitchInfoRecord> {
        let info = self.subnet.switch_info;
        let switches = self.ends().filter(|(_, end)| end.node_info.node_type == NodeType::SWITCH);
        let record = |(_, end): (u8, &End)| {
            Some(SwitchInfoRecord { lid: U16::new(end.lid), _reserved: U16::new(0), switch_info: info? })
        };
        switches.filter_map(record).collect()
    }

    fn sm_info(&self, act_count: u32) -> Vec<SmInfoRecord> {
        let manager = self.ends().filter(|(port, _)| *port == 0);
        let state =
            SmPriorityState::new().with_priority(self.subnet.priority & 0xf).with_state(SmState::MASTER);
        let record = |(_, end): (u8, &End)| SmInfoRecord {
            lid: U16::new(end.lid),
            _reserved: U16::new(0),
            sm_info: SmInfo {
                guid: U64::new(end.guid()),
                sm_key: U64::new(0),
                act_count: U32::new(act_count),
                priority_state: state,
            },
        };
        manager.map(record).collect()
    }

    /// Every link in both directions.
    fn links(&self) -> Vec<LinkRecord> {
        let switch = U16::new(self.subnet.manager_lid());
        let mut records = Vec::new();
        for (port, end) in self.ends().filter(|(port, _)| *port != 0) {
            let number = u8::try_from(end.node_info.local_port_vendor.local_port_num()).unwrap_or(0);
            let lid = U16::new(end.lid);
            records.push(LinkRecord { from_lid: switch, from_port: port, to_port: number, to_lid: lid });
            records.push(LinkRecord { from_lid: lid, from_port: number, to_port: port, to_lid: switch });
        }
        records
    }

    fn guid_infos(&self) -> Vec<GuidInfoRecord> {
        let mut records = Vec::new();
        for (_, end) in self.ends() {
            let blocks = end.guids.len().min(end.port_info.guid_cap.into()).div_ceil(GUIDS);
            for block in 0..u8::try_from(blocks).unwrap_or(u8::MAX) {
                records.push(guid_info_record(end, block));
            }
        }
        records
    }

    /// The requester's own table; those of others are none of its business.
    fn pkey_tables(&self) -> Vec<PKeyTableRecord> {
        let end = self.request.end;
        let number = u8::try_from(end.node_info.local_port_vendor.local_port_num()).unwrap_or(0);
        let record = |(pkeys, block): (&[u16], u16)| {
            let mut table = PKeyTable { p_keys: [U16::new(0); PKEYS] };
            for (to, pkey) in table.p_keys.iter_mut().zip(pkeys) {
                to.set(*pkey);
            }
            PKeyTableRecord {
                lid: U16::new(end.lid),
                block_num: U16::new(block),
                port_num: number,
                _reserved: [0; 3],
                table,
            }
        };
        end.pkeys.chunks(PKEYS).zip(0..).map(record).collect()
    }
}

/// A block of a port's GUID table as a record.
pub(super) fn guid_info_record(end: &End, block: u8) -> GuidInfoRecord {
    GuidInfoRecord {
        lid: U16::new(end.lid),
        block_num: block,
        _reserved3: 0,
        _reserved4: [0; 4],
        guid_info: guid_block(end, block),
    }
}

fn port_info_record(lid: u16, port_num: u8, info: &PortInfo) -> PortInfoRecord {
    let mut port_info = *info;
    port_info.m_key = U64::new(0);
    PortInfoRecord { lid: U16::new(lid), port_num, options: 0, port_info }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_add_up_to_their_records() {
        let bits = |components: &Components| components.0.iter().sum::<usize>();
        assert_eq!(bits(&NODE), 8 * size_of::<NodeRecord>());
        assert_eq!(bits(&PORT_INFO), 8 * size_of::<PortInfoRecord>());
        assert_eq!(bits(&SWITCH_INFO), 8 * size_of::<SwitchInfoRecord>());
        assert_eq!(bits(&SM_INFO), 8 * size_of::<SmInfoRecord>());
        assert_eq!(bits(&LINK), 8 * size_of::<LinkRecord>());
        assert_eq!(bits(&GUID_INFO), 8 * size_of::<GuidInfoRecord>());
        assert_eq!(bits(&PKEY_TABLE), 8 * size_of::<PKeyTableRecord>());
    }

    #[test]
    fn component_bits_of_port_info_are_those_of_the_standard() {
        let offset = |bit: u32| PORT_INFO.0[..bit as usize].iter().sum::<usize>() / 8;
        let of = |mask: u64| offset(mask.trailing_zeros());
        assert_eq!(of(PortInfoRecord::MASK_CAPABILITY_MASK), 4 + 0x14);
        assert_eq!(of(PortInfoRecord::MASK_PORT_STATE), 4 + 0x20);
        assert_eq!(of(PortInfoRecord::MASK_NEIGHBOR_MTU), 4 + 0x24);
        assert_eq!(offset(43), 4 + 0x33);
        assert_eq!(offset(57), 4 + 0x3f);
    }
}
