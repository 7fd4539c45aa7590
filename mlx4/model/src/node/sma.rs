//! The subnet management agent: Get, Set and TrapRepress of a node's attributes (IBTA vol. 1, 14.2).

use std::time::Instant;

use mlx4_wire::mad::attr::{LocalPortVendor, MlnxExtendedPortInfo, NodeInfo};
use mlx4_wire::mad::header::{MadHeader, Method, Status};
use mlx4_wire::mad::portinfo::{CapabilityMask, PortInfo};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U16, U32, U64};
use zerocopy::FromZeros;

use super::m_key::MKeyCheck;
use super::port::{PortKind, PortState};
use super::{MadInput, NodeState, PortChanges};

/// Where an SMP came from.
pub(super) struct Request<'a> {
    /// Number of the receiving port.
    pub(super) port: u8,
    pub(super) receiver: &'a PortState,
    pub(super) input: &'a MadInput,
    pub(super) now: Instant,
}

/// An SMP that passed the checks of its header and M_Key.
struct Access<'a> {
    request: &'a Request<'a>,
    set: bool,
    /// The M_Key isn't to be shown.
    hide_m_key: bool,
}

impl NodeState {
    /// The response to an SMP, with hop pointer, paths and M_Key as they came.
    pub(super) fn process_smp(
        &self,
        request: &Request<'_>,
        mut smp: Smp,
        changes: &mut PortChanges,
    ) -> Option<[u8; 256]> {
        let status = self.smp_status(request, &mut smp, changes)?;
        smp.header.method = Method::GET_RESP;
        smp.header.status.set(status.0);
        Some(smp.to_mad())
    }

    /// Does what the SMP asks for, and leaves the attribute in its data. None for no answer.
    fn smp_status(&self, request: &Request<'_>, smp: &mut Smp, changes: &mut PortChanges) -> Option<Status> {
        let header = &smp.header;
        if header.base_version != MadHeader::BASE_VERSION || header.class_version != Smp::CLASS_VERSION {
            return Some(Status::BAD_VERSION);
        }
        let method = header.method;
        if ![Method::GET, Method::SET, Method::TRAP_REPRESS].contains(&method) {
            return Some(Status::UNSUPPORTED_METHOD);
        }
        let hide_m_key =
            match self.guard(request.receiver).check_m_key(smp, request.input.ignore_mkey, request.now) {
                MKeyCheck::Pass => false,
                MKeyCheck::PassHidden => true,
                MKeyCheck::Violation => {
                    let owner = self.guard(request.receiver);
                    changes.trap = Some(self.bad_m_key(owner, request.input.slid, smp));
                    return None;
                }
            };
        if method == Method::TRAP_REPRESS {
            changes.trap_repressed = Some(smp.header.transaction_id.get());
            return None;
        }
        self.access(&Access { request, set: method == Method::SET, hide_m_key }, smp, changes)
    }

    /// The port whose M_Key guards a port: on a switch it is port 0.
    fn guard<'a>(&'a self, receiver: &'a PortState) -> &'a PortState {
        match self.switch() {
            Some(_) => self.port(0).unwrap_or(receiver),
            None => receiver,
        }
    }

    fn access(&self, access: &Access<'_>, smp: &mut Smp, changes: &mut PortChanges) -> Option<Status> {
        let set = access.set;
        let modifier = smp.header.attribute_modifier.get();
        let status = match (smp.attribute_id(), self.switch()) {
            (SmpAttribute::NODE_DESCRIPTION, _) if !set => {
                smp.set_attribute(&self.description());
                Status::GOOD
            }
            (SmpAttribute::NODE_INFO, _) if !set => {
                smp.set_attribute(&self.node_info(access.request));
                Status::GOOD
            }
            (SmpAttribute::PORT_INFO, _) => return self.access_port_info(access, smp, changes),
            (SmpAttribute::GUID_INFO, _) => self.guard(access.request.receiver).guid_info(smp, set, changes),
            (SmpAttribute::P_KEY_TABLE, _) => match self.table_port(access, modifier >> 16) {
                Some((number, port)) => {
                    changes.port = number;
                    port.p_key_table(smp, set, changes)
                }
                None => Status::INVALID_VALUE,
            },
            (SmpAttribute::VL_ARBITRATION_TABLE, _) => match self.table_port(access, modifier & 0xffff) {
                Some((_, port)) => port.vl_arbitration(smp, set),
                None => Status::INVALID_VALUE,
            },
            (SmpAttribute::SL_TO_VL_MAPPING_TABLE, switch) => match switch {
                _ if !self.has_sl_mapping(access.request) => Status::UNSUPPORTED_METHOD_ATTRIBUTE,
                Some(switch) => switch.sl_to_vl_mapping(smp, set),
                None => access.request.receiver.sl_to_vl_mapping(smp, set, changes),
            },
            (SmpAttribute::MLNX_EXTENDED_PORT_INFO, _) => match self.table_port(access, modifier & 0xff) {
                // FDR10 isn't supported, so that a Set can't change anything.
                Some(_) => {
                    smp.set_attribute(&MlnxExtendedPortInfo::new_zeroed());
                    Status::GOOD
                }
                None => Status::INVALID_VALUE,
            },
            (SmpAttribute::SWITCH_INFO, Some(switch)) => switch.switch_info(smp, set),
            (SmpAttribute::LINEAR_FORWARDING_TABLE, Some(switch)) => switch.linear_forwarding_table(smp, set),
            (SmpAttribute::MULTICAST_FORWARDING_TABLE, Some(switch)) => {
                switch.multicast_forwarding_table(smp, set)
            }
            _ => Status::UNSUPPORTED_METHOD_ATTRIBUTE,
        };
        Some(status)
    }

    /// The port that a table's attribute modifier names: on a channel adapter it is the receiving one.
    fn table_port<'a>(&'a self, access: &Access<'a>, number: u32) -> Option<(u8, &'a PortState)> {
        if self.switch().is_none() {
            return Some((access.request.port, access.request.receiver));
        }
        let number = u8::try_from(number).ok()?;
        Some((number, self.port(number)?))
    }

    fn has_sl_mapping(&self, request: &Request<'_>) -> bool {
        let mask = self.guard(request.receiver).capability_mask();
        CapabilityMask::from_bits(U32::new(mask)).sl_mapping()
    }

    fn node_info(&self, request: &Request<'_>) -> NodeInfo {
        let port = self.guard(request.receiver);
        NodeInfo {
            base_version: MadHeader::BASE_VERSION,
            class_version: Smp::CLASS_VERSION,
            node_type: self.node_type,
            num_ports: self.num_ports(),
            system_image_guid: U64::new(self.system_image_guid),
            node_guid: U64::new(self.node_guid),
            port_guid: U64::new(port.guid(0).unwrap_or_default()),
            partition_cap: U16::new(u16::try_from(port.pkey_count()).unwrap_or(u16::MAX)),
            device_id: U16::new(self.device_id),
            revision: U32::new(self.revision),
            local_port_vendor: LocalPortVendor::new()
                .with_local_port_num(request.port.into())
                .with_vendor_id(self.vendor_id),
        }
    }

    /// Get or Set of PortInfo. The attribute modifier names the port; on a channel adapter 0 is the receiving
    /// one, and another one can be read only.
    fn access_port_info(
        &self,
        access: &Access<'_>,
        smp: &mut Smp,
        changes: &mut PortChanges,
    ) -> Option<Status> {
        let request = access.request;
        let modifier = smp.header.attribute_modifier.get() & !PortInfo::SM_SUPPORTS_EXTENDED_SPEEDS;
        let own = modifier == 0 && self.switch().is_none();
        let number = if own { Some(request.port) } else { u8::try_from(modifier).ok() };
        let Some((number, port)) = number.and_then(|number| Some((number, self.port(number)?))) else {
            return Some(Status::INVALID_VALUE);
        };
        let mut hide_m_key = access.hide_m_key;
        let foreign = self.switch().is_none() && number != request.port;
        if foreign {
            // The other port has an M_Key of its own.
            match port.check_m_key(smp, request.input.ignore_mkey, request.now) {
                MKeyCheck::Pass => {}
                MKeyCheck::PassHidden => hide_m_key = true,
                MKeyCheck::Violation => return None,
            }
        }
        let wanted: PortInfo = smp.attribute();
        let status = match access.set {
            true if foreign => Status::INVALID_VALUE,
            true => {
                changes.port = number;
                port.set_port_info(&wanted, changes)
            }
            false => Status::GOOD,
        };
        let mut info = port.port_info();
        info.local_port_num = request.port;
        if hide_m_key {
            info.m_key.set(0);
        }
        if port.kind() != PortKind::SwitchExternal {
            info.timeout.set_client_reregister(access.set && !foreign && wanted.timeout.client_reregister());
        }
        smp.set_attribute(&info);
        Some(status)
    }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::mad::attr::NodeType;
    use mlx4_wire::mad::header::MgmtClass;

    use super::super::testing::{CA_GUID, SWITCH_GUID, active_ca, ask, ca, port_info, send, smp, switch};
    use super::*;
    use mlx4_wire::mad::portinfo::PortState as LogicalState;

    #[test]
    fn node_info_of_a_channel_adapter_names_the_receiving_port() {
        let info: NodeInfo = ask(&ca(), 2, &smp(Method::GET, SmpAttribute::NODE_INFO, 0)).attribute();
        assert_eq!((info.node_type, info.num_ports), (NodeType::CHANNEL_ADAPTER, 2));
        assert_eq!((info.node_guid.get(), info.port_guid.get()), (CA_GUID, CA_GUID + 2));
        assert_eq!(info.system_image_guid.get(), CA_GUID + 3);
        assert_eq!((info.device_id.get(), info.partition_cap.get()), (0x1003, 128));
        assert_eq!((info.local_port_vendor.local_port_num(), info.local_port_vendor.vendor_id()), (2, 0x2c9));
    }

    #[test]
    fn node_info_of_a_switch_has_the_guid_of_port_0() {
        let info: NodeInfo = ask(&switch(), 17, &smp(Method::GET, SmpAttribute::NODE_INFO, 0)).attribute();
        assert_eq!((info.node_type, info.num_ports), (NodeType::SWITCH, 36));
        assert_eq!((info.node_guid.get(), info.port_guid.get()), (SWITCH_GUID, SWITCH_GUID));
        assert_eq!(info.local_port_vendor.local_port_num(), 17);
    }

    #[test]
    fn reply_echoes_the_header_and_route_with_the_d_bit_clear() {
        let mut request = smp(Method::GET, SmpAttribute::NODE_DESCRIPTION, 0x1234);
        request.header.mgmt_class = MgmtClass::SUBN_DIRECTED_ROUTE;
        request.set_hop_count(2);
        request.set_hop_pointer(3);
        request.m_key.set(77);
        request.initial_path[2] = 9;
        request.return_path[1] = 8;
        let reply = ask(&ca(), 1, &request);
        let mut expected = request;
        expected.header.method = Method::GET_RESP;
        expected.set_attribute(&ca().description());
        assert_eq!(reply, expected);
        assert!(reply.data.starts_with(b"test ca\0"));
    }

    #[test]
    fn unsupported_requests_get_their_status() {
        let node = ca();
        let status = |smp: &Smp| ask(&node, 1, smp).status();
        let good = smp(Method::GET, SmpAttribute::NODE_INFO, 0);
        let with = |change: &dyn Fn(&mut Smp)| {
            let mut smp = good;
            change(&mut smp);
            status(&smp)
        };
        assert_eq!(with(&|smp| smp.header.base_version = 2), Status::BAD_VERSION);
        assert_eq!(with(&|smp| smp.header.class_version = 2), Status::BAD_VERSION);
        assert_eq!(with(&|smp| smp.header.mgmt_class = MgmtClass::CONG_MGT), Status::BAD_VERSION);
        assert_eq!(with(&|smp| smp.header.method = Method::SEND), Status::UNSUPPORTED_METHOD);
        assert_eq!(with(&|smp| smp.header.method = Method::SET), Status::UNSUPPORTED_METHOD_ATTRIBUTE);
        for attribute in [
            SmpAttribute::NOTICE,
            SmpAttribute::SM_INFO,
            SmpAttribute::LED_INFO,
            SmpAttribute::VENDOR_DIAG,
            SmpAttribute(0),
            SmpAttribute(0xffff),
        ] {
            assert_eq!(status(&smp(Method::GET, attribute, 0)), Status::UNSUPPORTED_METHOD_ATTRIBUTE);
        }
    }

    #[test]
    fn what_is_no_request_gets_no_answer() {
        let node = ca();
        for method in [Method::GET_RESP, Method::TRAP, Method::REPORT, Method::REPORT_RESP, Method(0xff)] {
            assert_eq!(send(&node, 1, &smp(method, SmpAttribute::NODE_INFO, 0)).reply, None);
        }
        let mut connection = smp(Method::SEND, SmpAttribute::NODE_INFO, 0);
        connection.header.mgmt_class = MgmtClass::COMM_MGT;
        assert_eq!(send(&node, 1, &connection).reply, None);
    }

    #[test]
    fn port_that_is_not_there_says_nothing() {
        let request = smp(Method::GET, SmpAttribute::NODE_INFO, 0);
        assert_eq!(send(&ca(), 0, &request).reply, None);
        assert_eq!(send(&ca(), 3, &request).reply, None);
        assert_eq!(send(&switch(), 37, &request).reply, None);
    }

    #[test]
    fn port_info_of_the_other_port_can_be_read_only() {
        let node = active_ca();
        node.link_up(2);
        let info: PortInfo = ask(&node, 2, &smp(Method::GET, SmpAttribute::PORT_INFO, 1)).attribute();
        assert_eq!((info.lid.get(), info.local_port_num), (7, 2));
        let mut request = smp(Method::SET, SmpAttribute::PORT_INFO, 1);
        request.set_attribute(&port_info(LogicalState::DOWN));
        let reply = ask(&node, 2, &request);
        assert_eq!(reply.status(), Status::INVALID_VALUE);
        assert_eq!(reply.attribute::<PortInfo>().link.port_state(), LogicalState::ACTIVE);
    }

    #[test]
    fn port_number_is_checked_and_the_speed_bit_is_not_part_of_it() {
        let node = ca();
        let status = |modifier| ask(&node, 1, &smp(Method::GET, SmpAttribute::PORT_INFO, modifier)).status();
        assert_eq!(status(0x8000_0001), Status::GOOD);
        assert_eq!(status(0x8000_0000), Status::GOOD);
        assert_eq!(status(3), Status::INVALID_VALUE);
        assert_eq!(status(0x101), Status::INVALID_VALUE);
        let switch = ask(&switch(), 1, &smp(Method::GET, SmpAttribute::PORT_INFO, 37));
        assert_eq!(switch.status(), Status::INVALID_VALUE);
    }

    #[test]
    fn extended_port_info_offers_no_fdr10() {
        let mut request = smp(Method::SET, SmpAttribute::MLNX_EXTENDED_PORT_INFO, 1);
        request.data = [1; 64];
        let reply = ask(&ca(), 1, &request);
        assert_eq!((reply.status(), reply.data), (Status::GOOD, [0; 64]));
    }

    #[test]
    fn arbitrary_datagrams_do_no_harm() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_be_bytes()
        };
        for node in [active_ca(), switch()] {
            for round in 0..200_000 {
                let mut bytes = [0; 256];
                bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random()));
                let mut smp = Smp::from_mad(&bytes);
                smp.header.base_version = 1;
                smp.header.class_version = 1;
                smp.header.mgmt_class = [MgmtClass::SUBN_LID_ROUTED, MgmtClass::PERF_MGT][round % 2];
                smp.header.method = [Method::GET, Method::SET][round / 2 % 2];
                smp.header.attribute_id.set(0x10 + smp.header.attribute_id.get() % 0x10);
                if round % 3 == 0 {
                    smp.header.attribute_modifier.set(smp.header.attribute_modifier.get() % 64);
                }
                let input = MadInput { ignore_mkey: true, slid: 0 };
                let answer = node.process_mad(bytes[255] % 40, &smp.to_mad(), &input);
                if let Some(reply) = answer.reply {
                    assert_eq!(Smp::from_mad(&reply).header.method, Method::GET_RESP);
                }
            }
        }
    }
}
