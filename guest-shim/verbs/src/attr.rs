//! What devices and ports tell of themselves.

use std::fmt;
use std::net::Ipv6Addr;

use virtio_rdma::config::Mlx4Format;
use virtio_rdma::request::query::{
    AtomicCap as AtomicCapCode, DeviceAttributes, LinkLayer as LinkLayerCode, Mtu as MtuCode, PortAttributes,
    PortState as PortStateCode,
};

use crate::error::{Error, Result};

/// Declares a closed set of codes with the numbers of verbs.
macro_rules! verbs_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident of $abi:ident { $( $(#[$code_meta:meta])* $code:ident = $abi_code:ident, )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $( $(#[$code_meta])* $code, )* }

        impl $name {
            /// The number that verbs has for it.
            pub const fn number(self) -> u8 {
                self.code().0
            }

            pub(crate) const fn code(self) -> $abi {
                match self { $( Self::$code => $abi::$abi_code, )* }
            }

            /// `None` for a code that verbs doesn't have.
            pub(crate) const fn of_code(code: $abi) -> Option<Self> {
                Some(match code { $( $abi::$abi_code => Self::$code, )* _ => return None })
            }
        }
    };
}
pub(crate) use verbs_enum;

verbs_enum! {
    /// State of a port (`ibv_port_state`).
    pub enum PortState of PortStateCode {
        /// No change; never a state.
        Nop = NOP,
        /// The link is down.
        Down = DOWN,
        /// The link is up, the subnet manager has not configured it.
        Init = INIT,
        /// Configured, not in use yet.
        Armed = ARMED,
        /// In use.
        Active = ACTIVE,
        /// In use, the link has errors.
        ActiveDefer = ACTIVE_DEFER,
    }
}

impl fmt::Display for PortState {
    /// As `ibv_port_state_str` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nop => "PORT_NOP",
            Self::Down => "PORT_DOWN",
            Self::Init => "PORT_INIT",
            Self::Armed => "PORT_ARMED",
            Self::Active => "PORT_ACTIVE",
            Self::ActiveDefer => "PORT_ACTIVE_DEFER",
        })
    }
}

verbs_enum! {
    /// What a port is a port of.
    pub enum LinkLayer of LinkLayerCode {
        /// Unknown.
        Unspecified = UNSPECIFIED,
        /// InfiniBand.
        InfiniBand = INFINIBAND,
        /// Ethernet (RoCE).
        Ethernet = ETHERNET,
    }
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unspecified => "Unspecified",
            Self::InfiniBand => "InfiniBand",
            Self::Ethernet => "Ethernet",
        })
    }
}

verbs_enum! {
    /// Path MTU (`ibv_mtu`).
    pub enum Mtu of MtuCode {
        /// 256 bytes.
        B256 = B256,
        /// 512 bytes.
        B512 = B512,
        /// 1024 bytes.
        B1024 = B1024,
        /// 2048 bytes.
        B2048 = B2048,
        /// 4096 bytes.
        B4096 = B4096,
    }
}

impl Mtu {
    /// In bytes.
    pub const fn bytes(self) -> u32 {
        128 << self.number()
    }

    /// The MTU of so many bytes.
    pub const fn of_bytes(bytes: u32) -> Option<Self> {
        Some(match bytes {
            256 => Self::B256,
            512 => Self::B512,
            1024 => Self::B1024,
            2048 => Self::B2048,
            4096 => Self::B4096,
            _ => return None,
        })
    }
}

verbs_enum! {
    /// Against what an atomic operation is atomic (`ibv_atomic_cap`).
    pub enum AtomicCap of AtomicCapCode {
        /// There are none.
        None = NONE,
        /// Other operations of the same HCA.
        Hca = HCA,
        /// Everything, the CPU included.
        Glob = GLOB,
    }
}

/// A GID: the bytes in the order of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl fmt::Display for Gid {
    /// As an IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// What a device is and can hold (`ibv_device_attr`). Numbers of objects are this guest's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceAttr {
    /// Firmware version: major, minor, subminor.
    pub fw_ver: String,
    /// GUID of the node, bytes in the order of the wire.
    pub node_guid: [u8; 8],
    /// GUID of the system image, bytes in the order of the wire.
    pub sys_image_guid: [u8; 8],
    /// Longest memory region in bytes.
    pub max_mr_size: u64,
    /// Page sizes in which the HCA can map memory: bit `n` stands for `2^n` bytes.
    pub page_size_cap: u64,
    /// IEEE vendor id.
    pub vendor_id: u32,
    /// The vendor's part number: the PCI device id.
    pub vendor_part_id: u32,
    /// Hardware revision.
    pub hw_ver: u32,
    /// The board's id (PSID).
    pub board_id: String,
    /// Capabilities: the bits of `ibv_device_cap_flags`.
    pub device_cap_flags: u64,
    /// Most queue pairs.
    pub max_qp: u32,
    /// Most work requests of a send or receive queue.
    pub max_qp_wr: u32,
    /// Most scatter or gather elements of a work request.
    pub max_sge: u32,
    /// The same for RDMA reads.
    pub max_sge_rd: u32,
    /// Most CQs.
    pub max_cq: u32,
    /// Most completions that a CQ can hold.
    pub max_cqe: u32,
    /// Most memory regions.
    pub max_mr: u32,
    /// Most PDs.
    pub max_pd: u32,
    /// Most reads and atomics that a queue pair may have under way as responder.
    pub max_qp_rd_atom: u32,
    /// The same for all of the device.
    pub max_res_rd_atom: u32,
    /// Most reads and atomics that a queue pair may have under way as requester.
    pub max_qp_init_rd_atom: u32,
    /// Atomic operations.
    pub atomic_cap: AtomicCap,
    /// The same of masked ones.
    pub masked_atomic_cap: AtomicCap,
    /// Most memory windows.
    pub max_mw: u32,
    /// Most XRC domains.
    pub max_xrcd: u32,
    /// Most completions that an event of a CQ may wait for; 0: none.
    pub max_cq_count: u16,
    /// Longest time in µs that an event of a CQ may wait.
    pub max_cq_period: u16,
    /// Longest message in bytes that a UD queue pair cuts into packets; 0: none.
    pub max_tso: u32,
    /// Most multicast groups.
    pub max_mcast_grp: u32,
    /// Most queue pairs of a multicast group.
    pub max_mcast_qp_attach: u32,
    /// Most attachments in all.
    pub max_total_mcast_qp_attach: u32,
    /// Most address handles.
    pub max_ah: u32,
    /// Most SRQs.
    pub max_srq: u32,
    /// Most work requests of an SRQ.
    pub max_srq_wr: u32,
    /// Most scatter elements of an SRQ's work request.
    pub max_srq_sge: u32,
    /// Length of a port's P_Key table.
    pub max_pkeys: u16,
    /// Local CA ack delay: 4.096 µs × 2^n.
    pub local_ca_ack_delay: u8,
    /// Number of ports.
    pub phys_port_cnt: u8,
    /// Most bytes of inline data in a send request.
    pub max_inline_data: u32,
}

impl DeviceAttr {
    pub(crate) fn new(from: &DeviceAttributes, format: &Mlx4Format) -> Self {
        let firmware = from.fw_version.get();
        let text = from.board_id.split(|byte| *byte == 0).next().unwrap_or_default();
        Self {
            fw_ver: format!("{}.{}.{}", firmware >> 32, firmware >> 16 & 0xffff, firmware & 0xffff),
            node_guid: from.node_guid,
            sys_image_guid: from.sys_image_guid,
            max_mr_size: from.max_mr_size.get(),
            page_size_cap: from.page_size_cap.get(),
            vendor_id: from.vendor_id.get(),
            vendor_part_id: from.vendor_part_id.get(),
            hw_ver: from.hw_ver.get(),
            board_id: String::from_utf8_lossy(text).into_owned(),
            device_cap_flags: from.device_cap_flags.bits(),
            max_qp: from.max_qp.get(),
            max_qp_wr: from.max_qp_wr.get(),
            max_sge: from.max_sge.get(),
            max_sge_rd: from.max_sge_rd.get(),
            max_cq: from.max_cq.get(),
            max_cqe: from.max_cqe.get(),
            max_mr: from.max_mr.get(),
            max_pd: from.max_pd.get(),
            max_qp_rd_atom: from.max_qp_rd_atom.get(),
            max_res_rd_atom: from.max_res_rd_atom.get(),
            max_qp_init_rd_atom: from.max_qp_init_rd_atom.get(),
            atomic_cap: AtomicCap::of_code(from.atomic_cap).unwrap_or(AtomicCap::None),
            masked_atomic_cap: AtomicCap::of_code(from.masked_atomic_cap).unwrap_or(AtomicCap::None),
            max_mw: from.max_mw.get(),
            max_xrcd: from.max_xrcd.get(),
            max_cq_count: from.max_cq_count.get(),
            max_cq_period: from.max_cq_period.get(),
            max_tso: from.max_tso.get(),
            max_mcast_grp: from.max_mcast_grp.get(),
            max_mcast_qp_attach: from.max_mcast_qp_attach.get(),
            max_total_mcast_qp_attach: from.max_total_mcast_qp_attach.get(),
            max_ah: from.max_ah.get(),
            max_srq: from.max_srq.get(),
            max_srq_wr: from.max_srq_wr.get(),
            max_srq_sge: from.max_srq_sge.get(),
            max_pkeys: from.max_pkeys.get(),
            local_ca_ack_delay: from.local_ca_ack_delay,
            phys_port_cnt: from.phys_port_cnt,
            max_inline_data: format.max_inline_bytes.get().into(),
        }
    }
}

/// What a port is like (`ibv_port_attr`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortAttr {
    /// State.
    pub state: PortState,
    /// Greatest MTU.
    pub max_mtu: Mtu,
    /// MTU in use.
    pub active_mtu: Mtu,
    /// Length of the GID table.
    pub gid_tbl_len: u32,
    /// Capability mask of PortInfo (IBTA 14.2.5.6).
    pub port_cap_flags: u32,
    /// Second capability mask of PortInfo.
    pub port_cap_flags2: u32,
    /// Longest message in bytes.
    pub max_msg_sz: u32,
    /// P_Key violations.
    pub bad_pkey_cntr: u32,
    /// Q_Key violations.
    pub qkey_viol_cntr: u32,
    /// Length of the P_Key table.
    pub pkey_tbl_len: u16,
    /// Base LID.
    pub lid: u16,
    /// LID of the subnet manager.
    pub sm_lid: u16,
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
    /// Physical state (IBTA 14.2.5.6: 5 is LinkUp).
    pub phys_state: u8,
    /// Link layer.
    pub link_layer: LinkLayer,
    /// Whether every address handle needs a GRH.
    pub grh_required: bool,
}

impl PortAttr {
    pub(crate) fn new(from: &PortAttributes) -> Result<Self> {
        Ok(Self {
            state: known("port state", PortState::of_code(from.state))?,
            max_mtu: known("MTU", Mtu::of_code(from.max_mtu))?,
            active_mtu: known("MTU", Mtu::of_code(from.active_mtu))?,
            gid_tbl_len: from.gid_tbl_len.get(),
            port_cap_flags: from.port_cap_flags.get(),
            port_cap_flags2: from.port_cap_flags2.get(),
            max_msg_sz: from.max_msg_sz.get(),
            bad_pkey_cntr: from.bad_pkey_cntr.get(),
            qkey_viol_cntr: from.qkey_viol_cntr.get(),
            pkey_tbl_len: from.pkey_tbl_len.get(),
            lid: from.lid.get(),
            sm_lid: from.sm_lid.get(),
            lmc: from.lmc,
            max_vl_num: from.max_vl_num,
            sm_sl: from.sm_sl,
            subnet_timeout: from.subnet_timeout,
            init_type_reply: from.init_type_reply,
            active_width: from.active_width,
            active_speed: from.active_speed,
            phys_state: from.phys_state,
            link_layer: LinkLayer::of_code(from.link_layer).unwrap_or(LinkLayer::Unspecified),
            grh_required: from.flags & 1 != 0,
        })
    }
}

/// A code that the device gave, if verbs has it.
pub(crate) fn known<T>(what: &str, code: Option<T>) -> Result<T> {
    code.ok_or_else(|| Error::Hca(format!("it gave a {what} that there isn't")))
}
