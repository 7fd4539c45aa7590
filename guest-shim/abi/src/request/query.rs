//! Queries of the device, its ports and their tables, and of what the device did for this guest.

use crate::{Reserved, U16, U32, U64};

layout! {
    size = 0;
    /// `QUERY_DEVICE`: the attributes of the device.
    pub struct QueryDevice {}
}

flags! {
    /// Capabilities of the HCA (`ibv_device_cap_flags`), as far as guests can use them.
    pub struct DeviceFlags: U64 as u64 {
        /// The port counts P_Key violations.
        BAD_PKEY_CNTR = 1 << 1,
        /// The port counts Q_Key violations.
        BAD_QKEY_CNTR = 1 << 2,
        /// Alternate paths.
        AUTO_PATH_MIG = 1 << 4,
        /// `MODIFY_QP` takes the current state.
        CURR_QP_STATE_MOD = 1 << 7,
        /// A port that becomes active raises an event.
        PORT_ACTIVE_EVENT = 1 << 10,
        /// The HCA has a system image GUID.
        SYS_IMAGE_GUID = 1 << 11,
        /// RC answers with RNR NAKs.
        RC_RNR_NAK_GEN = 1 << 12,
        /// An SRQ can be resized.
        SRQ_RESIZE = 1 << 13,
        /// A CQ notifies after a number of completions.
        N_NOTIFY_CQ = 1 << 14,
        /// Memory windows of type 1.
        MEM_WINDOW = 1 << 17,
        /// UD checks IP checksums.
        UD_IP_CSUM = 1 << 18,
        /// Extended reliable connections.
        XRC = 1 << 20,
        /// Send with invalidate, local invalidate.
        MEM_MGT_EXTENSIONS = 1 << 21,
        /// Memory windows of type 2A.
        MEM_WINDOW_TYPE_2A = 1 << 23,
        /// Memory windows of type 2B.
        MEM_WINDOW_TYPE_2B = 1 << 24,
    }
}

codes! {
    /// Against what an atomic operation is atomic (`ibv_atomic_cap`).
    pub enum AtomicCap {
        /// There are none.
        NONE = 0,
        /// Other operations of the same HCA.
        HCA = 1,
        /// Everything, the CPU included.
        GLOB = 2,
    }
}

layout! {
    size = 232;
    /// Reply to `QUERY_DEVICE` (`ibv_device_attr`). Numbers of objects are this guest's limits.
    pub struct DeviceAttributes {
        /// GUID of the node.
        pub node_guid: [u8; 8],
        /// GUID of the system image.
        pub sys_image_guid: [u8; 8],
        /// Firmware version: major in bits 63:32, minor in 31:16, subminor in 15:0.
        pub fw_version: U64,
        /// Longest memory region in bytes.
        pub max_mr_size: U64,
        /// Page sizes in which the HCA can map memory: bit `n` stands for `2^n` bytes.
        pub page_size_cap: U64,
        /// Capabilities.
        pub device_cap_flags: DeviceFlags,
        /// Bits of a completion's time stamp; 0: none.
        pub timestamp_mask: U64,
        /// Frequency of the time stamps in kHz; 0: unknown.
        pub core_clock_khz: U64,
        /// IEEE vendor id.
        pub vendor_id: U32,
        /// The vendor's part number: the PCI device id.
        pub vendor_part_id: U32,
        /// Hardware revision.
        pub hw_ver: U32,
        /// Most queue pairs.
        pub max_qp: U32,
        /// Most work requests of a send or receive queue.
        pub max_qp_wr: U32,
        /// Most scatter or gather elements of a work request.
        pub max_sge: U32,
        /// The same for RDMA reads.
        pub max_sge_rd: U32,
        /// Most CQs.
        pub max_cq: U32,
        /// Most completions that a CQ can hold.
        pub max_cqe: U32,
        /// Most memory regions.
        pub max_mr: U32,
        /// Most PDs.
        pub max_pd: U32,
        /// Most reads and atomics that a queue pair may have under way as responder.
        pub max_qp_rd_atom: U32,
        /// The same for all of the device.
        pub max_res_rd_atom: U32,
        /// Most reads and atomics that a queue pair may have under way as requester.
        pub max_qp_init_rd_atom: U32,
        /// Most memory windows.
        pub max_mw: U32,
        /// Most multicast groups.
        pub max_mcast_grp: U32,
        /// Most queue pairs of a multicast group.
        pub max_mcast_qp_attach: U32,
        /// Most attachments in all.
        pub max_total_mcast_qp_attach: U32,
        /// Most address handles; they cost the device nothing.
        pub max_ah: U32,
        /// Most SRQs.
        pub max_srq: U32,
        /// Most work requests of an SRQ.
        pub max_srq_wr: U32,
        /// Most scatter elements of an SRQ's work request.
        pub max_srq_sge: U32,
        /// Most XRC domains.
        pub max_xrcd: U32,
        /// Most registered service IDs.
        pub max_service_ids: U32,
        /// Most MAD agents.
        pub max_mad_agents: U32,
        /// Length of a port's P_Key table.
        pub max_pkeys: U16,
        /// Local CA ack delay: 4.096 µs × 2^n.
        pub local_ca_ack_delay: u8,
        /// Number of ports.
        pub phys_port_cnt: u8,
        /// Atomic operations.
        pub atomic_cap: AtomicCap,
        /// Masked atomic operations.
        pub masked_atomic_cap: AtomicCap,
        /// Must be ignored.
        pub reserved: Reserved<2>,
        /// Most completions that an event of a CQ may wait for; 0: none.
        pub max_cq_count: U16,
        /// Longest time in µs that an event of a CQ may wait.
        pub max_cq_period: U16,
        /// Longest message in bytes that a UD queue pair segments (LSO); 0: none.
        pub max_tso: U32,
        /// The board's id (PSID) in ASCII, zero padded.
        pub board_id: [u8; 16],
        /// Must be ignored.
        pub reserved_end: Reserved<36>,
    }
}

layout! {
    size = 8;
    /// `QUERY_PORT`: the attributes of a port.
    pub struct QueryPort {
        /// The port, from 1.
        pub port: u8,
        /// Zero.
        pub reserved: Reserved<7>,
    }
}

codes! {
    /// State of a port (`ibv_port_state`).
    pub enum PortState {
        /// No change; never a state.
        NOP = 0,
        /// The link is down.
        DOWN = 1,
        /// The link is up, the subnet manager has not configured it.
        INIT = 2,
        /// Configured, not in use yet.
        ARMED = 3,
        /// In use.
        ACTIVE = 4,
        /// In use, the link has errors.
        ACTIVE_DEFER = 5,
    }
}

codes! {
    /// What a port is a port of.
    pub enum LinkLayer {
        /// Unknown.
        UNSPECIFIED = 0,
        /// InfiniBand.
        INFINIBAND = 1,
        /// Ethernet (RoCE).
        ETHERNET = 2,
    }
}

codes! {
    /// Path MTU (`ibv_mtu`).
    pub enum Mtu {
        /// 256 bytes.
        B256 = 1,
        /// 512 bytes.
        B512 = 2,
        /// 1024 bytes.
        B1024 = 3,
        /// 2048 bytes.
        B2048 = 4,
        /// 4096 bytes.
        B4096 = 5,
    }
}

layout! {
    size = 64;
    /// Reply to `QUERY_PORT` (`ibv_port_attr`).
    pub struct PortAttributes {
        /// Capability mask of PortInfo (IBTA 14.2.5.6).
        pub port_cap_flags: U32,
        /// Second capability mask of PortInfo.
        pub port_cap_flags2: U32,
        /// Longest message in bytes.
        pub max_msg_sz: U32,
        /// Length of the GID table.
        pub gid_tbl_len: U32,
        /// P_Key violations.
        pub bad_pkey_cntr: U32,
        /// Q_Key violations.
        pub qkey_viol_cntr: U32,
        /// Length of the P_Key table.
        pub pkey_tbl_len: U16,
        /// Base LID.
        pub lid: U16,
        /// LID of the subnet manager.
        pub sm_lid: U16,
        /// State.
        pub state: PortState,
        /// Physical state (IBTA 14.2.5.6: 5 is LinkUp).
        pub phys_state: u8,
        /// Greatest MTU.
        pub max_mtu: Mtu,
        /// MTU in use.
        pub active_mtu: Mtu,
        /// LID mask control.
        pub lmc: u8,
        /// Code of the number of VLs.
        pub max_vl_num: u8,
        /// Service level of the subnet manager.
        pub sm_sl: u8,
        /// Subnet timeout: 4.096 µs × 2^n.
        pub subnet_timeout: u8,
        /// Kind of initialisation that the subnet manager did.
        pub init_type_reply: u8,
        /// Code of the width in use: 1, 2, 4, 8 for 1x, 4x, 8x, 12x.
        pub active_width: u8,
        /// Code of the speed in use: 1, 2, 4, 8, 16 for SDR, DDR, QDR, FDR10, FDR.
        pub active_speed: u8,
        /// Link layer.
        pub link_layer: LinkLayer,
        /// 1: every address handle needs a GRH (`IBV_QPF_GRH_REQUIRED`).
        pub flags: u8,
        /// Must be ignored.
        pub reserved: Reserved<21>,
    }
}

layout! {
    size = 8;
    /// `QUERY_GID`: an entry of a port's GID table.
    pub struct QueryGid {
        /// The port, from 1.
        pub port: u8,
        /// Zero.
        pub reserved: Reserved<3>,
        /// The index.
        pub index: U32,
    }
}

codes! {
    /// Kind of a GID (`ibv_gid_type`).
    pub enum GidType {
        /// InfiniBand.
        IB = 0,
        /// RoCE v1.
        ROCE_V1 = 1,
        /// RoCE v2.
        ROCE_V2 = 2,
    }
}

layout! {
    size = 24;
    /// Reply to `QUERY_GID`. An entry that is not in use is all zero.
    pub struct GidEntry {
        /// The GID.
        pub gid: [u8; 16],
        /// Its kind.
        pub gid_type: GidType,
        /// Must be ignored.
        pub reserved: Reserved<7>,
    }
}

layout! {
    size = 8;
    /// `QUERY_PKEY`: an entry of a port's P_Key table.
    pub struct QueryPkey {
        /// The port, from 1.
        pub port: u8,
        /// Zero.
        pub reserved: Reserved<3>,
        /// The index.
        pub index: U32,
    }
}

layout! {
    size = 8;
    /// Reply to `QUERY_PKEY`.
    pub struct PkeyEntry {
        /// The P_Key; 0: the entry is not in use.
        pub pkey: U16,
        /// Must be ignored.
        pub reserved: Reserved<6>,
    }
}

layout! {
    size = 0;
    /// `QUERY_STATS`: what the device did for this guest.
    pub struct QueryStats {}
}

layout! {
    size = 160;
    /// Reply to `QUERY_STATS`. Counters run from the device's last reset.
    pub struct Stats {
        /// Requests on the control queue.
        pub requests: U64,
        /// Those of them that were not carried out.
        pub requests_failed: U64,
        /// Chains on any queue whose form was wrong, so that they could not be answered.
        pub chains_refused: U64,
        /// Send doorbells passed to the HCA; relayed and direct areas only.
        pub send_doorbells: U64,
        /// Arm doorbells passed to the HCA; relayed and direct areas only.
        pub arm_doorbells: U64,
        /// Rings of slots that belong to no object.
        pub bad_doorbells: U64,
        /// Notifications of kick queues.
        pub kicks: U64,
        /// Completion events delivered.
        pub completion_events: U64,
        /// Asynchronous events delivered.
        pub async_events: U64,
        /// Asynchronous events lost.
        pub async_events_lost: U64,
        /// Bytes of memory registered now, rings included.
        pub registered_bytes: U64,
        /// Bytes of guest memory mapped for the HCA now.
        pub mapped_bytes: U64,
        /// Objects that exist now, of all kinds.
        pub objects: U32,
        /// Objects whose memory stays mapped until the HCA's next reset, since it did not give them back.
        pub quarantined: U32,
        /// Must be ignored.
        pub reserved: Reserved<56>,
    }
}
