//! What an HCA and its ports are and can do.

use std::ops::Range;

/// What the HCA can do beyond PDs, UARs, MRs, CQs and RC queue pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// UC queue pairs.
    pub uc: bool,
    /// UD queue pairs and address vectors.
    pub ud: bool,
    /// Multicast attach.
    pub multicast: bool,
    /// SRQs.
    pub srq: bool,
    /// XRC.
    pub xrc: bool,
    /// Memory windows of type 1.
    pub mw_type1: bool,
    /// Memory windows of type 2, bound to a queue pair as well as a PD (2B).
    pub mw_type2: bool,
    /// Regions can be changed.
    pub modify_mr: bool,
    /// CQs can be resized.
    pub resize_cq: bool,
    /// CQ events can be moderated.
    pub moderate_cq: bool,
    /// Alternate paths.
    pub path_migration: bool,
}

/// Against what atomic operations are atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtomicSupport {
    /// There are none.
    #[default]
    None,
    /// Other operations of the HCA.
    Hca,
    /// Everything.
    Global,
}

/// Parameters of mlx4's queue format, as `docs/virtio-rdma.md` section 9 has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mlx4Parameters {
    /// Size of a CQE in bytes.
    pub cqe_bytes: u16,
    /// Largest send WQE in bytes.
    pub max_send_wqe_bytes: u16,
    /// Largest receive WQE in bytes.
    pub max_receive_wqe_bytes: u16,
    /// Most data segments of a send WQE.
    pub max_send_sge: u16,
    /// Most data segments of a receive WQE.
    pub max_receive_sge: u16,
    /// Most data segments of an SRQ's WQE.
    pub max_srq_sge: u16,
    /// Most bytes of inline data.
    pub max_inline_bytes: u16,
    /// Bytes that the HCA may read ahead of the last valid send WQE.
    pub headroom_bytes: u16,
    /// WQEs that stay empty besides.
    pub headroom_wqes: u8,
    /// log2 of the smallest stride of a send queue in bytes.
    pub log2_min_send_stride: u8,
    /// log2 of the smallest stride of a receive queue in bytes.
    pub log2_min_receive_stride: u8,
    /// log2 of the smallest stride of an SRQ in bytes.
    pub log2_min_srq_stride: u8,
    /// log2 of the most WQEs of a send or receive queue.
    pub log2_max_wqes: u8,
    /// log2 of the most WQEs of an SRQ.
    pub log2_max_srq_wqes: u8,
    /// log2 of the most CQEs of a CQ.
    pub log2_max_cqes: u8,
    /// Size of a CQ's doorbell record in bytes.
    pub cq_record_bytes: u8,
    /// Size of a receive queue's or SRQ's doorbell record in bytes.
    pub receive_record_bytes: u8,
}

/// The format of work requests and completions. The tenant only hands it to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFormat {
    /// That of the ConnectX family.
    Mlx4(Mlx4Parameters),
}

/// What the HCA is and can do.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    /// GUID of the node, in the order of the wire.
    pub node_guid: [u8; 8],
    /// GUID of the system image, in the order of the wire.
    pub sys_image_guid: [u8; 8],
    /// Firmware version: major, minor, subminor.
    pub firmware: (u16, u16, u16),
    /// IEEE vendor id.
    pub vendor_id: u32,
    /// PCI device id.
    pub part_id: u32,
    /// Hardware revision.
    pub hw_revision: u32,
    /// The board's id (PSID) in ASCII, zero padded.
    pub board_id: [u8; 16],
    /// Number of ports.
    pub ports: u8,
    /// What it can do.
    pub features: Features,
    /// Atomic operations.
    pub atomics: AtomicSupport,
    /// Masked atomic operations.
    pub masked_atomics: AtomicSupport,
    /// The format of rings.
    pub queue_format: QueueFormat,
    /// Longest region in bytes.
    pub max_mr_bytes: u64,
    /// Page sizes that it can map: bit `n` stands for `2^n` bytes.
    pub page_sizes: u64,
    /// Bits of a time stamp; 0: none.
    pub timestamp_mask: u64,
    /// Frequency of time stamps in kHz; 0: unknown.
    pub core_clock_khz: u64,
    /// Most queue pairs.
    pub max_qp: u32,
    /// Most work requests of a queue.
    pub max_qp_wr: u32,
    /// Most elements of a work request.
    pub max_sge: u32,
    /// Most elements of an RDMA read.
    pub max_sge_rd: u32,
    /// Most CQs.
    pub max_cq: u32,
    /// Most completions of a CQ.
    pub max_cqe: u32,
    /// Most regions.
    pub max_mr: u32,
    /// Most PDs.
    pub max_pd: u32,
    /// Most windows.
    pub max_mw: u32,
    /// Most SRQs.
    pub max_srq: u32,
    /// Most work requests of an SRQ.
    pub max_srq_wr: u32,
    /// Most elements of an SRQ's work request.
    pub max_srq_sge: u32,
    /// Most XRC domains.
    pub max_xrcd: u32,
    /// Most reads and atomics under way as responder, for a queue pair.
    pub max_dest_rd_atomic: u8,
    /// The same as requester.
    pub max_rd_atomic: u8,
    /// Most multicast groups.
    pub max_mcast_groups: u32,
    /// Most queue pairs of a group.
    pub max_mcast_qps: u32,
    /// Local CA ack delay: 4.096 µs × 2^n.
    pub ack_delay: u8,
    /// Most completions that an event may wait for.
    pub max_moderation_count: u16,
    /// Longest time in µs that an event may wait.
    pub max_moderation_us: u16,
    /// Longest message that a UD queue pair segments; 0: none.
    pub max_lso_bytes: u32,
}

/// What a port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLayer {
    /// InfiniBand.
    #[default]
    InfiniBand,
    /// Ethernet (RoCE).
    Ethernet,
}

/// Attributes of a port, in verbs' codes (`ibv_port_attr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortInfo {
    /// State: 1 to 5 for DOWN, INIT, ARMED, ACTIVE, ACTIVE_DEFER.
    pub state: u8,
    /// Physical state (PortInfo's).
    pub physical_state: u8,
    /// What it is.
    pub link_layer: LinkLayer,
    /// Greatest MTU: 1 to 5 for 256 to 4096 bytes.
    pub max_mtu: u8,
    /// MTU in use.
    pub active_mtu: u8,
    /// Base LID.
    pub lid: u16,
    /// LID mask control.
    pub lmc: u8,
    /// LID of the subnet manager.
    pub sm_lid: u16,
    /// Service level of the subnet manager.
    pub sm_sl: u8,
    /// Capability mask of PortInfo.
    pub capabilities: u32,
    /// Second capability mask of PortInfo.
    pub capabilities2: u32,
    /// Longest message in bytes.
    pub max_message_bytes: u32,
    /// Length of the GID table.
    pub gids: u16,
    /// Length of the P_Key table.
    pub pkeys: u16,
    /// P_Key violations.
    pub pkey_violations: u32,
    /// Q_Key violations.
    pub qkey_violations: u32,
    /// Code of the number of VLs.
    pub max_vls: u8,
    /// Subnet timeout.
    pub subnet_timeout: u8,
    /// Kind of initialisation that the subnet manager did.
    pub init_type_reply: u8,
    /// Code of the width in use.
    pub active_width: u8,
    /// Code of the speed in use.
    pub active_speed: u8,
    /// Every path needs a GRH.
    pub grh_required: bool,
}

/// Where and how memory can be mapped for the HCA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmaInfo {
    /// Bus addresses that may be used, clear of what is reserved and of what the HCA's owner uses himself.
    pub ranges: Vec<Range<u64>>,
    /// Pieces of memory that can still be mapped, by all guests together; `u64::MAX` if the host doesn't tell.
    pub mappings: u64,
}
