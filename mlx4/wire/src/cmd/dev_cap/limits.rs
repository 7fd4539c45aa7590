//! The words of QUERY_DEV_CAP that hold numbers.

bits! {
    /// Word 10: QPs, and the depth of QPs and SRQs.
    pub struct QpCaps: u32 {
        /// log2 of the WQEs of an SRQ; one less can be used.
        #[bits(8)]
        pub log2_max_srq_sz: u8,
        /// log2 of the WQEs of a send or receive queue; one less can be used.
        #[bits(8)]
        pub log2_max_qp_sz: u8,
        #[bits(4)]
        __: u8,
        /// log2 of the QPs that the firmware keeps, from QPN 0.
        #[bits(4)]
        pub log2_rsvd_qps: u8,
        #[bits(3)]
        __: u8,
        /// log2 of the QPs.
        #[bits(5)]
        pub log2_max_qps: u8,
    }
}

bits! {
    /// Word 14: SRQs and schedule queues.
    pub struct SrqCaps: u32 {
        /// log2 of the SRQs that the firmware keeps.
        #[bits(4)]
        pub log2_rsvd_srqs: u8,
        #[bits(7)]
        __: u8,
        /// log2 of the SRQs.
        #[bits(5)]
        pub log2_max_srqs: u8,
        #[bits(2)]
        __: u8,
        /// Schedule queues that the firmware keeps, a count (Linux `RSVD_EEC`, not used).
        #[bits(6)]
        pub num_rsvd_scqs: u8,
        #[bits(4)]
        __: u8,
        /// log2 of the schedule queues (Linux `MAX_EEC`, not used).
        #[bits(4)]
        pub log2_max_scqs: u8,
    }
}

bits! {
    /// Word 18: CQs.
    pub struct CqCaps: u32 {
        /// EQs that the firmware keeps, a count. Linux doesn't read it; see `MptEqCaps::log2_rsvd_eqs`.
        #[bits(8)]
        pub num_rsvd_eqs: u8,
        /// log2 of the CQEs of a CQ.
        #[bits(8)]
        pub log2_max_cq_sz: u8,
        #[bits(4)]
        __: u8,
        /// log2 of the CQs that the firmware keeps.
        #[bits(4)]
        pub log2_rsvd_cqs: u8,
        #[bits(3)]
        __: u8,
        /// log2 of the CQs.
        #[bits(5)]
        pub log2_max_cqs: u8,
    }
}

bits! {
    /// Word 1c: data MPT entries and EQs.
    pub struct MptEqCaps: u32 {
        /// log2 of the EQEs of an EQ.
        #[bits(8)]
        pub log2_max_eq_sz: u8,
        #[bits(2)]
        __: u8,
        /// log2 of the data MPT entries (regions and windows).
        #[bits(6)]
        pub log2_max_mpts: u8,
        #[bits(4)]
        __: u8,
        /// log2 of the EQs that the firmware keeps. A driver also leaves out the EQs whose doorbells are in
        /// reserved UAR pages.
        #[bits(4)]
        pub log2_rsvd_eqs: u8,
        #[bits(4)]
        __: u8,
        /// log2 of the EQs.
        #[bits(4)]
        pub log2_max_eqs: u8,
    }
}

bits! {
    /// Word 20: MTT entries, regions and windows.
    pub struct MttCaps: u32 {
        /// log2 of the MTT entries that the firmware keeps.
        #[bits(4)]
        pub log2_rsvd_mtts: u8,
        #[bits(5)]
        __: u8,
        /// log2 of the largest region or window, in bytes.
        #[bits(7)]
        pub log2_max_mrw_sz: u8,
        #[bits(4)]
        __: u8,
        /// log2 of the data MPT entries that the firmware keeps.
        #[bits(4)]
        pub log2_rsvd_mrws: u8,
        #[bits(2)]
        __: u8,
        /// log2 of the MTT entries.
        #[bits(6)]
        pub log2_max_mtts: u8,
    }
}

bits! {
    /// Word 24: system EQs.
    pub struct SysEqs: u32 {
        #[bits(20)]
        __: u32,
        /// EQs that functions share, a count. If it isn't zero, QUERY_FUNC tells how many EQs there are.
        #[bits(12)]
        pub num_sys_eqs: u16,
    }
}

bits! {
    /// Word 28: outstanding RDMA reads and atomics.
    pub struct RdmaCaps: u32 {
        #[bits(10)]
        __: u32,
        /// log2 of those that a QP may have as the requester.
        #[bits(6)]
        pub log2_max_ra_req_qp: u8,
        #[bits(10)]
        __: u32,
        /// log2 of those that a QP may have as the responder.
        #[bits(6)]
        pub log2_max_ra_res_qp: u8,
    }
}

bits! {
    /// Word 2c: segmentation, receive-side scaling, and RDMA reads of the whole device.
    pub struct GsoRssCaps: u32 {
        #[bits(11)]
        __: u32,
        /// log2 of the largest message that is segmented by the device, in bytes; zero is none.
        #[bits(5)]
        pub log2_max_gso: u8,
        #[bits(2)]
        __: u8,
        /// XOR hash.
        pub rss_xor: bool,
        /// Toeplitz hash.
        pub rss_toeplitz: bool,
        /// log2 of the indirection table; zero is none.
        #[bits(4)]
        pub log2_max_rss_tbl: u8,
        #[bits(2)]
        __: u8,
        /// log2 of the RDMA reads and atomics that all responders together may have.
        #[bits(6)]
        pub log2_max_ra_res_global: u8,
    }
}

bits! {
    /// Word 30: SRQ resize.
    pub struct SrqResize: u32 {
        #[bits(31)]
        __: u32,
        /// The size of an SRQ can be changed.
        pub rsz_srq: bool,
    }
}

bits! {
    /// Word 34: ports. The `old_*` fields are read when the command interface is older than revision 3,
    /// and QUERY_PORT later.
    pub struct IbPortCaps: u32 {
        /// The LED of a port can be made to blink.
        pub port_beacon: bool,
        /// Jumbo frames.
        pub jumbo: bool,
        /// 10 Gbit/s Ethernet.
        pub eth_10g: bool,
        #[bits(4)]
        __: u8,
        /// Bit per port, from port 1: Ethernet.
        #[bits(4)]
        pub port_type: u8,
        /// Local CA ACK delay, in 4.096 us shifted left by this.
        #[bits(5)]
        pub local_ca_ack_delay: u8,
        /// Largest MTU (IBTA code).
        #[bits(4)]
        pub old_mtu_cap: u8,
        /// Link widths (IBTA mask).
        #[bits(4)]
        pub old_width_cap: u8,
        /// Data VLs, a count.
        #[bits(4)]
        pub old_vl_cap: u8,
        /// Number of ports.
        #[bits(4)]
        pub num_ports: u8,
    }
}

bits! {
    /// Word 38: message size and GID table.
    pub struct MessageCaps: u32 {
        #[bits(3)]
        __: u8,
        /// log2 of the longest message in bytes.
        #[bits(5)]
        pub log2_max_msg: u8,
        /// log2 of the no-drop VL's drain buffer, in 4 KiB pages.
        #[bits(8)]
        pub log2_drain_size: u8,
        #[bits(4)]
        __: u8,
        /// log2 of the Ethertype table.
        #[bits(4)]
        pub log2_ethtype: u8,
        #[bits(4)]
        __: u8,
        /// log2 of a port's GIDs.
        #[bits(4)]
        pub log2_max_gids: u8,
    }
}

bits! {
    /// Word 3c: static rates, timestamps and P_Key table.
    pub struct RateCaps: u32 {
        /// Bit per static rate code that is supported.
        #[bits(16)]
        pub stat_rate_support: u16,
        /// CQEs can carry timestamps.
        pub timestamp: bool,
        #[bits(11)]
        __: u16,
        /// log2 of a port's P_Keys.
        #[bits(4)]
        pub log2_max_pkeys: u8,
    }
}

bits! {
    /// Word 48: UARs and page size.
    pub struct UarCaps: u32 {
        /// UAR pages that the firmware keeps, a count.
        #[bits(4)]
        pub num_rsvd_uars: u8,
        #[bits(6)]
        __: u8,
        /// log2 of the size of the UAR part of BAR2, in MiB.
        #[bits(6)]
        pub log2_uar_sz_mb: u8,
        #[bits(8)]
        __: u8,
        /// log2 of the smallest page in bytes that MTTs can hold.
        #[bits(8)]
        pub log2_min_page_sz: u8,
    }
}

bits! {
    /// Word 4c: BlueFlame.
    pub struct BlueFlameCaps: u32 {
        /// BlueFlame is supported.
        pub bf: bool,
        #[bits(10)]
        __: u16,
        /// log2 of a BlueFlame register in bytes; it is used in two halves.
        #[bits(5)]
        pub log2_bf_reg_sz: u8,
        #[bits(2)]
        __: u8,
        /// log2 of the BlueFlame registers in a page.
        #[bits(6)]
        pub log2_max_bf_regs_per_page: u8,
        #[bits(2)]
        __: u8,
        /// log2 of the BlueFlame pages.
        #[bits(6)]
        pub log2_max_bf_pages: u8,
    }
}

bits! {
    /// Words 50 and 54: limits of a send or receive queue.
    pub struct QueueCaps: u32 {
        #[bits(8)]
        __: u8,
        /// Most scatter or gather entries of a WQE.
        #[bits(8)]
        pub max_sg: u8,
        /// Largest WQE in bytes.
        #[bits(16)]
        pub max_desc_sz: u16,
    }
}

bits! {
    /// Word 60: multicast groups.
    pub struct McgCaps: u32 {
        #[bits(8)]
        __: u8,
        /// log2 of the QPs of a group.
        #[bits(8)]
        pub log2_max_qp_mcg: u8,
        #[bits(4)]
        __: u8,
        /// Groups that the firmware keeps, a count.
        #[bits(4)]
        pub num_rsvd_mcgs: u8,
        /// log2 of the groups.
        #[bits(8)]
        pub log2_max_mcgs: u8,
    }
}

bits! {
    /// Word 64: protection domains and XRC domains.
    pub struct PdXrcdCaps: u32 {
        /// PDs that the firmware keeps, a count.
        #[bits(4)]
        pub num_rsvd_pds: u8,
        #[bits(6)]
        __: u8,
        /// log2 of the PDs.
        #[bits(6)]
        pub log2_max_pds: u8,
        /// XRC domains that the firmware keeps, a count.
        #[bits(4)]
        pub num_rsvd_xrcds: u8,
        #[bits(7)]
        __: u8,
        /// log2 of the XRC domains.
        #[bits(5)]
        pub log2_max_xrcds: u8,
    }
}

bits! {
    /// Word 74: device-managed flow steering.
    pub struct FlowSteeringCaps: u32 {
        /// Steering of IPoIB flows.
        pub dmfs_ipoib: bool,
        #[bits(15)]
        __: u16,
        /// Device-managed flow steering is supported.
        pub fs_en: bool,
        #[bits(1)]
        __: u8,
        /// Sniffer rules for unicast and multicast.
        pub sniffer: bool,
        /// log2 of the QPs in a range of InfiniBand unicast QPs.
        #[bits(5)]
        pub log2_max_ucast_qp_range: u8,
        /// Most QPs of one rule.
        #[bits(8)]
        pub max_qp_per_entry: u8,
    }
}

bits! {
    /// Half-words d0 and d2: a rate limit of QPs.
    pub struct RateLimit: u16 {
        /// Unit of the value (Linux `rl_caps.*_unit`).
        #[bits(2)]
        pub unit: u8,
        #[bits(2)]
        __: u8,
        /// The rate.
        #[bits(12)]
        pub value: u16,
    }
}
