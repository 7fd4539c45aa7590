//! What a card is and can do, and its ports, as tenants want it told.

use mlx4::{PortAttributes, Profile};
use mlx4_pci::Identity;
use mlx4_wire::ctx::mcg::mcg_capacity;
use mlx4_wire::mad::attr::NodeInfo;
use paraverbs_tenant::hca::{
    AtomicSupport, DeviceInfo, Features, Gid, HcaError, LinkLayer, PortInfo, QueueFormat,
};

use crate::hca::Running;

/// Queue pairs that the driver keeps for itself behind the firmware's: the special ones.
const SPECIAL_QPS: u32 = 8;
/// Page sizes of regions: 2^12 to 2^31 bytes.
const PAGE_SIZES: u64 = (1 << 32) - (1 << 12);
/// Elements of an RDMA read: what fits in 512 bytes behind control and remote address.
const MAX_SGE_READ: u32 = (512 - 16 - 16) / 16;
/// A domain is told in 17 bits of a region's entry.
const LOG2_PDS: u8 = 17;

/// Link speeds: codes of verbs for the extended ones, and for QDR.
const FDR: u8 = 16;
const EDR: u8 = 32;

/// Objects of a kind that are left beside the firmware's.
fn usable(log2: u8, reserved: u32) -> u32 {
    (1u32 << log2.min(31)).saturating_sub(reserved)
}

impl Running {
    /// What the card is.
    ///
    /// # Errors
    /// It doesn't tell its GUIDs.
    pub(crate) fn device_info(&self, identity: &Identity) -> mlx4::Result<DeviceInfo> {
        let node = self.driver.node_info()?;
        Ok(self.describe(identity, &node))
    }

    fn describe(&self, identity: &Identity, node: &NodeInfo) -> DeviceInfo {
        let caps = self.driver.capabilities();
        let profile: &Profile = self.driver.profile();
        let limits = self.limits();
        let max_sge = limits.max_send_sges.min(limits.max_receive_sges);
        let eq_room = u32::try_from(self.driver.completion_eqs())
            .unwrap_or(u32::MAX)
            .saturating_mul(self.driver.completion_eq_room());
        let max_mr = usable(profile.log2_mpts, caps.mpts.reserved);
        let mut board_id = [0; 16];
        for (to, from) in board_id.iter_mut().zip(caps.board_id.bytes()) {
            *to = from;
        }
        DeviceInfo {
            node_guid: node.node_guid.to_bytes(),
            sys_image_guid: node.system_image_guid.to_bytes(),
            firmware: self.driver.firmware().version,
            vendor_id: node.local_port_vendor.vendor_id(),
            part_id: identity.device.into(),
            hw_revision: identity.revision.into(),
            board_id,
            // At most 2.
            ports: u8::try_from(caps.ports.len()).unwrap_or(u8::MAX),
            features: features(caps),
            atomics: if caps.atomics { AtomicSupport::Hca } else { AtomicSupport::None },
            // One capability, as the stock driver has it.
            masked_atomics: if caps.atomics { AtomicSupport::Hca } else { AtomicSupport::None },
            queue_format: QueueFormat::Mlx4(limits.parameters()),
            max_mr_bytes: 1 << caps.log2_max_region.min(63),
            page_sizes: PAGE_SIZES,
            timestamp_mask: 0,
            core_clock_khz: 0,
            max_qp: usable(profile.log2_qps, caps.qps.reserved.next_multiple_of(SPECIAL_QPS) + SPECIAL_QPS),
            max_qp_wr: limits.max_wr(),
            max_sge,
            max_sge_rd: max_sge.min(MAX_SGE_READ),
            max_cq: usable(profile.log2_cqs, caps.cqs.reserved).min(eq_room),
            max_cqe: (1 << limits.log2_cqes) - 1,
            max_mr,
            max_pd: usable(caps.pds.log2.min(LOG2_PDS), caps.pds.reserved),
            // Of the same table as regions.
            max_mw: if caps.has_windows || caps.has_windows_2b { max_mr } else { 0 },
            max_srq: if caps.has_srqs { usable(profile.log2_srqs, caps.srqs.reserved) } else { 0 },
            max_srq_wr: (1 << limits.log2_srq_wqes) - 1,
            max_srq_sge: limits.max_srq_sges(),
            max_xrcd: caps.xrcds.map_or(0, |xrcds| usable(xrcds.log2, xrcds.reserved + 1)),
            max_dest_rd_atomic: 1 << profile.log2_reads.min(7),
            max_rd_atomic: 1 << caps.log2_max_requester_reads.min(7),
            max_mcast_groups: 1 << profile.log2_mcgs.min(24),
            max_mcast_qps: mcg_capacity(1 << profile.log2_mcg_bytes),
            ack_delay: caps.ack_delay,
            max_moderation_count: u16::MAX,
            max_moderation_us: u16::MAX,
            max_lso_bytes: if caps.log2_max_lso == 0 { 0 } else { 1 << caps.log2_max_lso.min(31) },
        }
    }

    pub(crate) fn query_port(&self, port: u8) -> Result<PortInfo, HcaError> {
        let attributes = self.driver.port(port).map_err(|error| self.fail(&error))?;
        Ok(port_info(&attributes, self.driver.capabilities().log2_max_message))
    }

    pub(crate) fn query_gid(&self, port: u8, index: u16) -> Result<Gid, HcaError> {
        let gids = self.driver.gids(port).map_err(|error| self.fail(&error))?;
        let gid = gids.get(usize::from(index)).ok_or(HcaError::Refused)?;
        // Without a GUID there is only the prefix, and the entry isn't in use.
        Ok(if gid[8..] == [0; 8] { Gid::default() } else { Gid(*gid) })
    }

    pub(crate) fn query_pkey(&self, port: u8, index: u16) -> Result<u16, HcaError> {
        let pkeys = self.driver.pkeys(port).map_err(|error| self.fail(&error))?;
        pkeys.get(usize::from(index)).copied().ok_or(HcaError::Refused)
    }
}

/// What both the card and the driver can do.
fn features(caps: &mlx4::Capabilities) -> Features {
    Features {
        uc: caps.has_uc,
        ud: true,
        multicast: caps.has_multicast,
        srq: caps.has_srqs,
        modify_mr: true,
        xrc: caps.xrcds.is_some(),
        mw_type1: caps.has_windows,
        mw_type2: caps.has_windows_2b,
        resize_cq: true,
        moderate_cq: true,
        // Guests have no alternate paths.
        path_migration: false,
    }
}

fn port_info(port: &PortAttributes, log2_max_message: u8) -> PortInfo {
    PortInfo {
        state: port.state.0,
        physical_state: port.physical_state,
        link_layer: LinkLayer::InfiniBand,
        max_mtu: port.max_mtu.0,
        active_mtu: port.active_mtu.0,
        lid: port.lid,
        lmc: port.lmc,
        sm_lid: port.sm_lid,
        sm_sl: port.sm_sl,
        capabilities: port.capability_mask,
        capabilities2: port.capability_mask2.into(),
        max_message_bytes: 1 << log2_max_message.min(31),
        gids: port.gids,
        pkeys: port.pkeys,
        pkey_violations: port.pkey_violations.into(),
        qkey_violations: port.qkey_violations.into(),
        max_vls: port.max_vls,
        subnet_timeout: port.subnet_timeout,
        init_type_reply: port.init_type_reply,
        active_width: port.width,
        active_speed: match port.speed_ext {
            0 => port.speed,
            1 => FDR,
            _ => EDR,
        },
        grh_required: false,
    }
}
