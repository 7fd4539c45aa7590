//! Opcodes of the host command register.

open_enum! {
    /// Command opcode, 12 bits (Linux `enum mlx4_cmd`, without its prefix; PRM of the family).
    ///
    /// After the purpose stands what the parameters carry: `in` and `out` are mailbox or immediate, `mod`
    /// is the input modifier. A modifier that isn't named is zero.
    pub enum Opcode: u16 {
        /// InfiniHost: enable the system.
        SYS_EN = 0x001,
        /// InfiniHost: disable the system.
        SYS_DIS = 0x002,
        /// Capabilities of the device. out: [`QueryDevCap`](super::dev_cap::QueryDevCap).
        QUERY_DEV_CAP = 0x003,
        /// Firmware and register locations. out: [`QueryFw`](super::fw::QueryFw).
        QUERY_FW = 0x004,
        /// InfiniHost: attached memory.
        QUERY_DDR = 0x005,
        /// Interrupt pin and board id. out: [`QueryAdapter`](super::fw::QueryAdapter).
        QUERY_ADAPTER = 0x006,
        /// Start with the given tables. in: [`InitHca`](super::hca::InitHca).
        INIT_HCA = 0x007,
        /// Stop; opmod 1 is at once, without quiescing.
        CLOSE_HCA = 0x008,
        /// Start link training. mod: port.
        INIT_PORT = 0x009,
        /// Take the link down. mod: port.
        CLOSE_PORT = 0x00a,
        /// Tables in use and clock. out: [`QueryHca`](super::hca::QueryHca).
        QUERY_HCA = 0x00b,
        /// Port parameters. in: [`SetPortIb`](super::port::SetPortIb) with opmod 0; mod: port.
        SET_PORT = 0x00c,
        /// Hand an MPT entry to the device. in: MPT entry; mod: index.
        SW2HW_MPT = 0x00d,
        /// Read an MPT entry. out: MPT entry; mod: index.
        QUERY_MPT = 0x00e,
        /// Take an MPT entry back. opmod 0, out: MPT entry; opmod 1: no output; mod: index.
        HW2SW_MPT = 0x00f,
        /// Read MTT entries. mod: count.
        READ_MTT = 0x010,
        /// Write MTT entries. in: start and entries; mod: count.
        WRITE_MTT = 0x011,
        /// Direct event types to an EQ. in: immediate, bit per type; mod: EQN, bit 31 takes them away.
        MAP_EQ = 0x012,
        /// Hand an EQ to the device. in: EQ context; mod: EQN.
        SW2HW_EQ = 0x013,
        /// Take an EQ back. mod: EQN.
        HW2SW_EQ = 0x014,
        /// Read an EQ context. out: EQ context; mod: EQN.
        QUERY_EQ = 0x015,
        /// Hand a CQ to the device. in: CQ context; mod: CQN.
        SW2HW_CQ = 0x016,
        /// Take a CQ back. opmod 0, out: CQ context; opmod 1: no output; mod: CQN.
        HW2SW_CQ = 0x017,
        /// Read a CQ context. out: CQ context; mod: CQN.
        QUERY_CQ = 0x018,
        /// RESET to INIT. in: QP mailbox; mod: QPN, as for all transitions.
        RST2INIT_QP = 0x019,
        /// INIT to RTR. in: QP mailbox.
        INIT2RTR_QP = 0x01a,
        /// RTR to RTS. in: QP mailbox.
        RTR2RTS_QP = 0x01b,
        /// RTS to RTS. in: QP mailbox.
        RTS2RTS_QP = 0x01c,
        /// SQE to RTS. in: QP mailbox.
        SQERR2RTS_QP = 0x01d,
        /// Any state to ERR. The device ignores an input mailbox.
        TO_ERR_QP = 0x01e,
        /// RTS to SQD. mod bit 31: report the drained queue by an event.
        RTS2SQD_QP = 0x01f,
        /// SQD to RTS. in: QP mailbox.
        SQD2RTS_QP = 0x020,
        /// Any state to RESET. Linux passes opmod 2, iPXE 3.
        TO_RST_QP = 0x021,
        /// Read a QP context. out: QP mailbox.
        QUERY_QP = 0x022,
        /// Set the first of the special QPs. mod: QPN of QP0 of port 1, zero to give them back.
        CONF_SPECIAL_QP = 0x023,
        /// Process a MAD. in, out: [`MadIfc`](super::mad_ifc::MadIfc).
        MAD_IFC = 0x024,
        /// Read a multicast group. out: MCG entry; mod: index.
        READ_MCG = 0x025,
        /// Write a multicast group. in: MCG entry; mod: index.
        WRITE_MCG = 0x026,
        /// Hash a multicast GID. in: GID, 16 bytes; out: immediate, the hash.
        MGID_HASH = 0x027,
        /// Read firmware debug output settings.
        QUERY_DEBUG_MSG = 0x02a,
        /// Set firmware debug output.
        SET_DEBUG_MSG = 0x02b,
        /// Resize a CQ (opmod 0) or change its moderation (opmod 1). in: CQ context; mod: CQN.
        MODIFY_CQ = 0x02c,
        /// INIT to INIT. in: QP mailbox.
        INIT2INIT_QP = 0x02d,
        /// SR-IOV: copy between functions (Linux `ACCESS_MEM`; on InfiniHost `ACCESS_DDR`).
        ACCESS_MEM = 0x02e,
        /// Make changes of MPT and MTT entries in memory take effect.
        SYNC_TPT = 0x02f,
        /// Error counters. opmod 2; out: [`DiagCounters`](super::diag::DiagCounters); mod: port, zero for all.
        DIAG_RPRT = 0x030,
        /// Do nothing.
        NOP = 0x031,
        /// Suspend a QP.
        SUSPEND_QP = 0x032,
        /// Resume a QP.
        UNSUSPEND_QP = 0x033,
        /// Static configuration. in or out: [`ModStatCfg`](super::fw::ModStatCfg), by opmod.
        MOD_STAT_CFG = 0x034,
        /// Hand an SRQ to the device. in: SRQ context; mod: SRQN.
        SW2HW_SRQ = 0x035,
        /// Take an SRQ back. opmod 0, out: SRQ context; opmod 1: no output; mod: SRQN.
        HW2SW_SRQ = 0x036,
        /// Read an SRQ context. out: SRQ context; mod: SRQN.
        QUERY_SRQ = 0x037,
        /// SQD to SQD. in: QP mailbox.
        SQD2SQD_QP = 0x038,
        /// Device configuration, set (opmod 0) or get (opmod 1).
        CONFIG_DEV = 0x03a,
        /// Access to registers such as PTYS.
        ACCESS_REG = 0x03b,
        /// Arm the limit event of an SRQ. in: immediate, the limit in WQEs; mod: SRQN.
        ARM_SRQ = 0x040,
        /// Capabilities of a port. out: [`QueryPort`](super::port::QueryPort); mod: port.
        QUERY_PORT = 0x043,
        /// Ethernet: VLAN filter.
        SET_VLAN_FLTR = 0x047,
        /// Ethernet: multicast filter.
        SET_MCAST_FLTR = 0x048,
        /// Ethernet: counters.
        DUMP_ETH_STATS = 0x049,
        /// Which protocol the cable speaks. out: immediate, a [`SensedType`](super::port::SensedType); mod: port.
        SENSE_PORT = 0x04d,
        /// Firmware health check.
        HW_HEALTH_CHECK = 0x050,
        /// Ethernet: virtual port.
        SET_VEP = 0x052,
        /// Interface counters.
        QUERY_IF_STAT = 0x054,
        /// Reset interface counters.
        SET_IF_STAT = 0x055,
        /// Identity of a function. out: [`QueryFunc`](super::misc::QueryFunc); mod: function, zero for one's own.
        QUERY_FUNC = 0x056,
        /// SR-IOV: arm the communication channel.
        ARM_COMM_CHANNEL = 0x057,
        /// SR-IOV: write an event into a function's EQ.
        GEN_EQE = 0x058,
        /// A request of the firmware to the driver (opmod 0), or its acknowledgement (opmod 1).
        GET_OP_REQ = 0x059,
        /// Set the node description. in: [`SetNode`](super::misc::SetNode); mod: 1.
        SET_NODE = 0x05a,
        /// SR-IOV: a function-level reset has been handled.
        INFORM_FLR_DONE = 0x05b,
        /// Virtual to physical port map.
        VIRT_PORT_MAP = 0x05c,
        /// Change a live QP.
        UPDATE_QP = 0x061,
        /// Flow steering: range of QPs for InfiniBand unicast.
        FLOW_STEERING_IB_UC_QP_RANGE = 0x064,
        /// Flow steering: add a rule.
        FLOW_STEERING_ATTACH = 0x065,
        /// Flow steering: remove a rule.
        FLOW_STEERING_DETACH = 0x066,
        /// Ethernet congestion control.
        CONGESTION_CTRL = 0x068,
        /// Ethernet quality of service: port profiles.
        ALLOCATE_VPP = 0x080,
        /// Ethernet quality of service: virtual port.
        SET_VPORT_QOS = 0x081,
        /// Which MADs the firmware keeps for itself.
        MAD_DEMUX = 0x203,
        /// Software only, from a virtual function to the physical one: allocate.
        ALLOC_RES = 0xf00,
        /// Software only: free.
        FREE_RES = 0xf01,
        /// Software only: attach to a multicast group.
        MCAST_ATTACH = 0xf05,
        /// Software only: attach to a unicast address.
        UCAST_ATTACH = 0xf06,
        /// Software only: promiscuous mode.
        PROMISC = 0xf08,
        /// Software only: resources of a virtual function.
        QUERY_FUNC_CAP = 0xf0a,
        /// Software only: attach a QP.
        QP_ATTACH = 0xf0b,
        /// Start the firmware from the memory that MAP_FA gave.
        RUN_FW = 0xff6,
        /// InfiniHost: disable locally attached memory.
        DISABLE_LAM = 0xff7,
        /// InfiniHost: enable locally attached memory.
        ENABLE_LAM = 0xff8,
        /// Take ICM pages back. in: immediate, the virtual address; mod: count of 4 KiB pages.
        UNMAP_ICM = 0xff9,
        /// Give ICM pages. in: [`MapEntry`](super::fw::MapEntry) array; mod: entries.
        MAP_ICM = 0xffa,
        /// Take the auxiliary ICM back.
        UNMAP_ICM_AUX = 0xffb,
        /// Give the auxiliary ICM. in: [`MapEntry`](super::fw::MapEntry) array; mod: entries.
        MAP_ICM_AUX = 0xffc,
        /// Announce the size of ICM. in: immediate, bytes; out: immediate, auxiliary 4 KiB pages needed.
        SET_ICM_SIZE = 0xffd,
        /// Take the firmware area back.
        UNMAP_FA = 0xffe,
        /// Give the firmware area. in: [`MapEntry`](super::fw::MapEntry) array; mod: entries.
        MAP_FA = 0xfff,
    }
}

#[cfg(test)]
mod tests {
    use super::Opcode;

    #[test]
    fn opcodes_of_the_facts_page_have_their_names() {
        let table = [
            (0x003, "QUERY_DEV_CAP"),
            (0x013, "SW2HW_EQ"),
            (0x01e, "TO_ERR_QP"),
            (0x021, "TO_RST_QP"),
            (0x024, "MAD_IFC"),
            (0x02d, "INIT2INIT_QP"),
            (0x02f, "SYNC_TPT"),
            (0x035, "SW2HW_SRQ"),
            (0x040, "ARM_SRQ"),
            (0x043, "QUERY_PORT"),
            (0xff6, "RUN_FW"),
            (0xffd, "SET_ICM_SIZE"),
        ];
        for (code, name) in table {
            assert_eq!(Opcode(code).name(), Some(name));
        }
    }

    #[test]
    fn code_that_nobody_uses_has_no_name() {
        assert_eq!(Opcode(0x0ff).name(), None);
    }
}
