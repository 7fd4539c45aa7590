//! The words of QUERY_DEV_CAP that hold flags. Bit numbers of the first two count through both words,
//! as Linux's `MLX4_DEV_CAP_FLAG_*` do.

bits! {
    /// Word 40: flags 32 to 63.
    pub struct DevCapExtFlags: u32 {
        #[bits(1)]
        __: u8,
        /// 62: CQEs of 64 bytes.
        pub cqe_64b: bool,
        /// 61: EQEs of 64 bytes.
        pub eqe_64b: bool,
        #[bits(1)]
        __: u8,
        /// 59: port management change events.
        pub port_mng_chg_ev: bool,
        #[bits(3)]
        __: u8,
        /// 55: SENSE_PORT.
        pub sense_support: bool,
        #[bits(1)]
        __: u8,
        /// 53: Ethernet QoS scheduling.
        pub set_eth_sched: bool,
        /// 52: RSS of fragmented IP packets.
        pub rss_ip_frag: bool,
        #[bits(3)]
        __: u8,
        /// 48: counters that QPs can name.
        pub counters: bool,
        #[bits(5)]
        __: u8,
        /// 42: multicast steering by virtual port.
        pub vep_mc_steer: bool,
        /// 41: unicast steering by virtual port.
        pub vep_uc_steer: bool,
        /// 40: RSS of UDP packets.
        pub udp_rss: bool,
        #[bits(1)]
        __: u8,
        /// 38: Wake-on-LAN on port 2.
        pub wol_port2: bool,
        /// 37: Wake-on-LAN on port 1.
        pub wol_port1: bool,
        #[bits(2)]
        __: u8,
        /// 34: the frame check sequence can be kept.
        pub fcs_keep: bool,
        #[bits(1)]
        __: u8,
        /// 32: unicast loopback.
        pub uc_loopback: bool,
    }
}

bits! {
    /// Word 44: flags 0 to 31.
    pub struct DevCapFlags: u32 {
        #[bits(1)]
        __: u8,
        /// 30: InfiniBand over Ethernet (RoCE).
        pub iboe: bool,
        #[bits(4)]
        __: u8,
        /// 25: router mode.
        pub router: bool,
        /// 24: paging on demand.
        pub paging: bool,
        #[bits(2)]
        __: u8,
        /// 21: UD multicast.
        pub ud_mcast: bool,
        /// 20: the port of a UD address vector is checked.
        pub ud_av_port: bool,
        /// 19: raw multicast.
        pub raw_mcast: bool,
        /// 18: atomic operations.
        pub atomic: bool,
        /// 17: automatic path migration.
        pub apm: bool,
        /// 16: memory windows.
        pub mem_window: bool,
        /// 15: large headers in segmentation.
        pub blh: bool,
        /// 14: raw IPv6.
        pub raw_ipv6: bool,
        /// 13: raw Ethertype.
        pub raw_ethertype: bool,
        /// 12: the two ports can have different types.
        pub dpdp: bool,
        /// 11: Fibre Channel over Ethernet.
        pub fcoe: bool,
        /// 10: PRM `vmm`.
        pub vmm: bool,
        /// 9: Q_Key violations are counted.
        pub bad_qkey_cntr: bool,
        /// 8: P_Key violations are counted.
        pub bad_pkey_cntr: bool,
        /// 7: IP checksums over InfiniBand.
        pub ipoib_csum: bool,
        /// 6: shared receive queues.
        pub srq: bool,
        /// 5: Fibre Channel over InfiniBand.
        pub fcoib: bool,
        /// 4: reliable multicast.
        pub rcm: bool,
        /// 3: extended reliable connections (PRM `src`).
        pub xrc: bool,
        /// 2: unreliable datagrams.
        pub ud: bool,
        /// 1: unreliable connections.
        pub uc: bool,
        /// 0: reliable connections.
        pub rc: bool,
    }
}

bits! {
    /// Word 5c: Ethernet addresses.
    pub struct EthFlags: u32 {
        #[bits(5)]
        __: u8,
        /// The user may set the MAC address.
        pub user_mac_en: bool,
        #[bits(9)]
        __: u16,
        /// The service VLAN can be set for each QP.
        pub svlan_by_qp: bool,
        #[bits(16)]
        __: u16,
    }
}

bits! {
    /// Word 70: extended flags 2.
    pub struct DevCapExtFlags2: u32 {
        #[bits(3)]
        __: u8,
        /// Ethernet flow control statistics.
        pub flow_stats: bool,
        #[bits(1)]
        __: u8,
        /// VLAN control of virtual functions.
        pub vlan_control: bool,
        #[bits(2)]
        __: u8,
        /// CQEs can be initialised by software: SW2HW_CQ takes opmod 1.
        pub sw_cq_init: bool,
        #[bits(1)]
        __: u8,
        /// 80 virtual functions.
        pub vfs_80: bool,
        /// Checks of the source MAC against spoofing.
        pub fsm: bool,
        /// Loopback source check on Ethernet.
        pub lb_src_chk: bool,
        /// UPDATE_QP can change the loopback source check.
        pub update_qp_src_check_lb: bool,
        #[bits(1)]
        __: u8,
        /// UPDATE_QP.
        pub update_qp: bool,
        #[bits(16)]
        __: u16,
    }
}

bits! {
    /// Word 78: strides and Ethernet QoS.
    pub struct StrideCaps: u32 {
        #[bits(2)]
        __: u8,
        /// Events when the SL to VL mapping changes.
        pub sl_to_vl_event: bool,
        #[bits(13)]
        __: u16,
        /// EQEs can be spaced by more than 64 bytes.
        pub eqe_stride: bool,
        /// CQEs can be spaced by more than 64 bytes.
        pub cqe_stride: bool,
        /// ACCESS_REG of Ethernet protocol control.
        pub eth_prot_ctrl: bool,
        /// QoS by virtual port.
        pub qos_vpp: bool,
        #[bits(11)]
        __: u16,
        /// Quantized congestion notification.
        pub qcn: bool,
    }
}

bits! {
    /// Word 94: base memory management extensions, and flags that share the word.
    pub struct BmmeFlags: u32 {
        #[bits(2)]
        __: u8,
        /// CONFIG_DEV.
        pub config_dev: bool,
        /// Linux `VSD_INIT2RTR`.
        pub vsd_init2rtr: bool,
        #[bits(1)]
        __: u8,
        /// Packets with a bad frame check sequence can be received.
        pub ignore_fcs: bool,
        #[bits(1)]
        __: u8,
        /// Ports can be remapped.
        pub port_remap: bool,
        #[bits(4)]
        __: u8,
        /// RoCE version 1 and 2 at once.
        pub roce_v1_v2: bool,
        #[bits(3)]
        __: u8,
        /// Offloads for 802.1ad VLAN tags (Linux `PHV_EN`).
        pub phv_en: bool,
        /// Linux `SKIP_OUTER_VLAN`, for VLAN tags of virtual functions inside VLAN tags.
        pub skip_outer_vlan: bool,
        #[bits(2)]
        __: u8,
        /// Fast registration by work request.
        pub fast_reg_wr: bool,
        /// There is a reserved L_Key.
        pub reserved_lkey: bool,
        /// Memory windows of type 2.
        pub type_2_win: bool,
        #[bits(1)]
        __: u8,
        /// Send with invalidate.
        pub remote_inv: bool,
        /// Local invalidate.
        pub local_inv: bool,
        /// PRM `lif`: local invalidate fencing.
        pub lif: bool,
        /// PRM `zb`: zero-based regions.
        pub zb: bool,
        /// PRM `bl`: block lists.
        pub bl: bool,
        /// PRM `mps`: several page sizes in a region.
        pub mps: bool,
        /// Type 2 windows are of kind 2B, not 2A.
        pub win_type_2b: bool,
        /// PRM `bmme`: the extensions as a whole.
        pub bmme: bool,
    }
}

bits! {
    /// Word 9c: flags between firmware and driver.
    pub struct FirmwareFlags: u32 {
        #[bits(9)]
        __: u16,
        /// The MAC address of a virtual function can be changed while it runs.
        pub reassign_mac: bool,
        #[bits(4)]
        __: u8,
        /// DIAG_RPRT counts for each port.
        pub diag_per_port: bool,
        #[bits(3)]
        __: u8,
        /// Enhanced transmission selection can be configured.
        pub ets_cfg: bool,
        #[bits(1)]
        __: u8,
        /// VXLAN offloads.
        pub vxlan_offloads: bool,
        #[bits(2)]
        __: u8,
        /// INIT_HCA takes the driver's version.
        pub driver_version: bool,
        /// Events for recoverable errors.
        pub recoverable_error_event: bool,
        #[bits(6)]
        __: u8,
        /// Ethernet backplane autonegotiation is reported.
        pub eth_backplane: bool,
    }
}

bits! {
    /// Word b0: MAD_DEMUX.
    pub struct MadDemuxCaps: u32 {
        #[bits(31)]
        __: u32,
        /// The MAD_DEMUX command is supported.
        pub mad_demux: bool,
    }
}

bits! {
    /// Word c0: the clock and user space.
    pub struct UserClockCaps: u32 {
        #[bits(8)]
        __: u8,
        /// The clock may be mapped to user space.
        pub map_clock_to_user: bool,
        #[bits(23)]
        __: u32,
    }
}
