//! Queries of device, ports and statistics, in the guest's view.

use virtio_rdma::config::Capabilities;
use virtio_rdma::request::Request;
use virtio_rdma::request::query::{
    AtomicCap, DeviceAttributes, DeviceFlags, GidEntry, GidType, LinkLayer as AbiLayer, Mtu, PkeyEntry,
    PortAttributes, PortState, QueryDevice, QueryGid, QueryPkey, QueryPort, QueryStats, Stats,
};
use virtio_rdma::{Reason, Reserved, U16, U32, U64};
use zerocopy::FromZeros;

use super::{CarryOut, path};
use crate::hca::{AtomicSupport, DeviceInfo, LinkLayer};
use crate::state::State;

fn flags(info: &DeviceInfo) -> DeviceFlags {
    let features = &info.features;
    let always = DeviceFlags::BAD_PKEY_CNTR
        | DeviceFlags::BAD_QKEY_CNTR
        | DeviceFlags::CURR_QP_STATE_MOD
        | DeviceFlags::PORT_ACTIVE_EVENT
        | DeviceFlags::SYS_IMAGE_GUID
        | DeviceFlags::RC_RNR_NAK_GEN;
    let offered = [
        (features.path_migration, DeviceFlags::AUTO_PATH_MIG),
        (features.moderate_cq, DeviceFlags::N_NOTIFY_CQ),
        (features.mw_type1, DeviceFlags::MEM_WINDOW),
        (features.mw_type2, DeviceFlags::MEM_WINDOW_TYPE_2B | DeviceFlags::MEM_MGT_EXTENSIONS),
        (features.srq && features.xrc, DeviceFlags::XRC),
    ];
    offered.iter().filter(|(offered, _)| *offered).fold(always, |all, (_, flag)| all | *flag)
}

const fn atomics(support: AtomicSupport) -> AtomicCap {
    match support {
        AtomicSupport::None => AtomicCap::NONE,
        AtomicSupport::Hca => AtomicCap::HCA,
        AtomicSupport::Global => AtomicCap::GLOB,
    }
}

fn firmware((major, minor, subminor): (u16, u16, u16)) -> u64 {
    u64::from(major) << 32 | u64::from(minor) << 16 | u64::from(subminor)
}

/// The smaller of what the HCA has and what the guest may have; 0 where the feature is missing.
fn limit(has: bool, of_hca: u32, of_guest: u32) -> U32 {
    U32::new(if has { of_hca.min(of_guest) } else { 0 })
}

impl CarryOut for QueryDevice {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<DeviceAttributes, Reason> {
        let (info, limits) = (&state.info, &state.config.limits);
        let features = &info.features;
        let pkeys = state.hca().query_port(1).map_err(|error| error.reason())?.pkeys;
        let windows = features.mw_type1 || features.mw_type2;
        let datagrams = state.capabilities.contains(Capabilities::UD);
        let multicast = state.capabilities.contains(Capabilities::MULTICAST);
        let in_groups = limit(multicast, u32::MAX, limits.mcast_attachments);
        Ok(DeviceAttributes {
            node_guid: info.node_guid,
            sys_image_guid: info.sys_image_guid,
            fw_version: U64::new(firmware(info.firmware)),
            max_mr_size: U64::new(info.max_mr_bytes.min(limits.registered_bytes)),
            page_size_cap: U64::new(info.page_sizes),
            device_cap_flags: flags(info),
            timestamp_mask: U64::new(info.timestamp_mask),
            core_clock_khz: U64::new(info.core_clock_khz),
            vendor_id: U32::new(info.vendor_id),
            vendor_part_id: U32::new(info.part_id),
            hw_ver: U32::new(info.hw_revision),
            max_qp: limit(true, info.max_qp, limits.qps),
            max_qp_wr: U32::new(info.max_qp_wr),
            max_sge: U32::new(info.max_sge),
            max_sge_rd: U32::new(info.max_sge_rd),
            max_cq: limit(true, info.max_cq, limits.cqs),
            max_cqe: U32::new(info.max_cqe),
            max_mr: limit(true, info.max_mr, limits.mrs),
            max_pd: limit(true, info.max_pd, limits.pds),
            max_qp_rd_atom: U32::new(u32::from(info.max_dest_rd_atomic)),
            max_res_rd_atom: U32::new(
                u32::from(info.max_dest_rd_atomic).saturating_mul(info.max_qp.min(limits.qps)),
            ),
            max_qp_init_rd_atom: U32::new(u32::from(info.max_rd_atomic)),
            max_mw: limit(windows, info.max_mw, limits.mws),
            max_mcast_grp: limit(multicast, info.max_mcast_groups, limits.mcast_attachments),
            max_mcast_qp_attach: limit(multicast, info.max_mcast_qps, limits.mcast_members),
            max_total_mcast_qp_attach: in_groups,
            max_ah: limit(datagrams, u32::MAX >> 1, u32::MAX >> 1),
            max_srq: limit(features.srq, info.max_srq, limits.srqs),
            max_srq_wr: limit(features.srq, info.max_srq_wr, u32::MAX),
            max_srq_sge: limit(features.srq, info.max_srq_sge, u32::MAX),
            max_xrcd: limit(features.srq && features.xrc, info.max_xrcd, limits.xrcds),
            max_service_ids: U32::new(limits.service_ids),
            max_pkeys: U16::new(pkeys),
            local_ca_ack_delay: info.ack_delay,
            phys_port_cnt: info.ports,
            atomic_cap: atomics(info.atomics),
            masked_atomic_cap: atomics(info.masked_atomics),
            max_cq_count: U16::new(info.max_moderation_count),
            max_cq_period: U16::new(info.max_moderation_us),
            max_tso: U32::new(info.max_lso_bytes),
            board_id: info.board_id,
            ..DeviceAttributes::new_zeroed()
        })
    }
}

impl CarryOut for QueryPort {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<PortAttributes, Reason> {
        path::check_port(state, self.port)?;
        let port = state.hca().query_port(self.port).map_err(|error| error.reason())?;
        let own_gids = state.config.own_gids.as_ref().map(|own| u32::try_from(own.len()).unwrap_or(u32::MAX));
        Ok(PortAttributes {
            port_cap_flags: U32::new(port.capabilities),
            port_cap_flags2: U32::new(port.capabilities2),
            max_msg_sz: U32::new(port.max_message_bytes),
            gid_tbl_len: U32::new(own_gids.unwrap_or(u32::from(port.gids))),
            bad_pkey_cntr: U32::new(port.pkey_violations),
            qkey_viol_cntr: U32::new(port.qkey_violations),
            pkey_tbl_len: U16::new(port.pkeys),
            lid: U16::new(port.lid),
            sm_lid: U16::new(port.sm_lid),
            state: PortState(port.state),
            phys_state: port.physical_state,
            max_mtu: Mtu(port.max_mtu),
            active_mtu: Mtu(port.active_mtu),
            lmc: port.lmc,
            max_vl_num: port.max_vls,
            sm_sl: port.sm_sl,
            subnet_timeout: port.subnet_timeout,
            init_type_reply: port.init_type_reply,
            active_width: port.active_width,
            active_speed: port.active_speed,
            link_layer: match port.link_layer {
                LinkLayer::InfiniBand => AbiLayer::INFINIBAND,
                LinkLayer::Ethernet => AbiLayer::ETHERNET,
            },
            flags: u8::from(port.grh_required),
            ..PortAttributes::new_zeroed()
        })
    }
}

impl CarryOut for QueryGid {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<GidEntry, Reason> {
        path::check_port(state, self.port)?;
        let index = u16::try_from(self.index.get()).map_err(|_| Reason::BAD_INDEX)?;
        let index = path::gid_index(state, self.port, index)?;
        let gid = state.hca().query_gid(self.port, index).map_err(|error| error.reason())?;
        Ok(GidEntry { gid: gid.0, gid_type: GidType::IB, reserved: Reserved::ZERO })
    }
}

impl CarryOut for QueryPkey {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<PkeyEntry, Reason> {
        path::check_port(state, self.port)?;
        let port = state.hca().query_port(self.port).map_err(|error| error.reason())?;
        let index = u16::try_from(self.index.get()).ok().filter(|index| *index < port.pkeys);
        let index = index.ok_or(Reason::BAD_INDEX)?;
        let pkey = match path::pkey_index(state, self.port, index) {
            Ok(index) => state.hca().query_pkey(self.port, index).map_err(|error| error.reason())?,
            Err(Reason::BAD_INDEX) => 0,
            Err(reason) => return Err(reason),
        };
        Ok(PkeyEntry { pkey: U16::new(pkey), reserved: Reserved::ZERO })
    }
}

impl CarryOut for QueryStats {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Stats, Reason> {
        Ok(state.counters.stats(&state.had()))
    }
}
