//! Commands about ports: QUERY_PORT, SET_PORT for InfiniBand, INIT_PORT, SENSE_PORT.
//!
//! INIT_PORT and CLOSE_PORT carry nothing but the port in the input modifier; only with a command
//! interface older than revision 3 does INIT_PORT take a mailbox. Ports count from 1.

use crate::{U16, U32, U64};

bits! {
    /// Byte 00 of QUERY_PORT.
    pub struct PortState: u8 {
        /// The link is up.
        pub link_up: bool,
        /// Ethernet: autonegotiation is complete.
        pub autoneg_complete: bool,
        /// Flow steering with few rules is in its fast state.
        pub dmfs_optimized: bool,
        /// The port type is sensed by default.
        pub default_sense: bool,
        /// The suggested type is Ethernet.
        pub suggested_eth: bool,
        #[bits(1)]
        __: u8,
        /// Ethernet is possible.
        pub eth: bool,
        /// InfiniBand is possible.
        pub ib: bool,
    }
}

bits! {
    /// Byte 01 of QUERY_PORT.
    pub struct PortMtu: u8 {
        /// Ethernet: autonegotiation is possible.
        pub autoneg: bool,
        #[bits(3)]
        __: u8,
        /// Largest InfiniBand MTU (IBTA code: 1 is 256 bytes, 5 is 4096).
        #[bits(4)]
        pub ib_mtu: u8,
    }
}

bits! {
    /// Byte 06 of QUERY_PORT.
    pub struct PortWidth: u8 {
        #[bits(4)]
        __: u8,
        /// Link widths (IBTA mask: 1 is 1x, 2 is 4x).
        #[bits(4)]
        pub ib_port_width: u8,
    }
}

bits! {
    /// Byte 07 of QUERY_PORT.
    pub struct PortTables: u8 {
        /// log2 of the GIDs.
        #[bits(4)]
        pub log2_max_gids: u8,
        /// log2 of the P_Keys.
        #[bits(4)]
        pub log2_max_pkeys: u8,
    }
}

bits! {
    /// Byte 0a of QUERY_PORT.
    pub struct PortEthTables: u8 {
        /// log2 of the VLANs.
        #[bits(4)]
        pub log2_max_vlans: u8,
        /// log2 of the MAC addresses.
        #[bits(4)]
        pub log2_max_macs: u8,
    }
}

bits! {
    /// Byte 0b of QUERY_PORT.
    pub struct PortVls: u8 {
        /// Ethernet traffic classes, a count.
        #[bits(4)]
        pub max_tc_eth: u8,
        /// Data VLs, a count.
        #[bits(4)]
        pub max_vl_ib: u8,
    }
}

wire! {
    size = 0x40;
    /// Output of QUERY_PORT (PRM `query_port_cap`, Linux `QUERY_PORT_*_OFFSET`). The input modifier is the
    /// port.
    pub struct QueryPort {
        /// 00: link and types.
        pub state: PortState,
        /// 01: InfiniBand MTU.
        pub mtu: PortMtu,
        /// 02: largest Ethernet frame in bytes.
        pub eth_mtu: U16,
        /// 04: InfiniBand link speeds, a mask: 1 SDR, 2 DDR, 4 QDR, 8 FDR10, 10 FDR (hexadecimal).
        pub ib_link_speed: u8,
        /// 05: Ethernet link speed, a code.
        pub eth_link_speed: u8,
        /// 06: link width.
        pub width: PortWidth,
        /// 07: GID and P_Key tables.
        pub tables: PortTables,
        _reserved08: [u8; 2],
        /// 0a: MAC and VLAN tables.
        pub eth_tables: PortEthTables,
        /// 0b: virtual lanes.
        pub vls: PortVls,
        /// 0c: P_Keys that a virtual function sees (Linux `CUR_MAX_PKEY`).
        pub cur_max_pkey: U16,
        /// 0e: GIDs that a virtual function sees (Linux `CUR_MAX_GID`).
        pub cur_max_gid: U16,
        /// 10: MAC address in the low 48 bits.
        pub mac: U64,
        /// 18: type of the transceiver.
        pub transceiver_type: u8,
        /// 19: vendor of the transceiver (OUI).
        pub vendor_oui: [u8; 3],
        /// 1c: wavelength of the transceiver.
        pub wavelength: U16,
        _reserved1e: U16,
        /// 20: code of the transceiver.
        pub transceiver_code: U64,
        _reserved28: [u8; 0x18],
    }
}

offsets! { QueryPort:
    mtu = 0x01, eth_mtu = 0x02, width = 0x06, tables = 0x07, eth_tables = 0x0a, vls = 0x0b,
    cur_max_pkey = 0x0c, mac = 0x10, vendor_oui = 0x19, wavelength = 0x1c, transceiver_code = 0x20,
}

open_enum! {
    /// Opcode modifiers of SET_PORT.
    pub enum SetPortOp: u8 {
        /// InfiniBand; the input modifier is the port.
        IB = 0,
        /// Ethernet; the input modifier is the port and, at \[15:8\], what to set.
        ETH = 1,
        /// Blink the port's LED.
        BEACON = 4,
    }
}

bits! {
    /// Word 00 of SET_PORT for InfiniBand: what to change. The names of the PRM are in brackets.
    pub struct SetPortFlags: u32 {
        #[bits(3)]
        __: u8,
        /// Set the link speed (`lss`).
        pub set_link_speed: bool,
        /// Set the link width (`lws`).
        pub set_link_width: bool,
        #[bits(4)]
        __: u8,
        /// Set the MTU (`mmc`, Linux `CHANGE_PORT_MTU_CAP`).
        pub change_mtu: bool,
        /// Set the VLs (`mvc`, Linux `CHANGE_PORT_VL_CAP`).
        pub change_vl: bool,
        /// Set the size of the P_Key table (`mp`, Linux `CHANGE_PORT_PKEY_TBL_SZ`).
        pub change_pkey: bool,
        /// Set the size of the GID table (`mg`).
        pub change_gid: bool,
        /// Set the system image GUID (`sig`).
        pub set_system_image_guid: bool,
        /// Set the node GUID (`ng`).
        pub set_node_guid: bool,
        /// Set the port GUID (`g0`).
        pub set_guid0: bool,
        /// MTU (IBTA code).
        #[bits(4)]
        pub mtu_cap: u8,
        #[bits(4)]
        __: u8,
        /// Data VLs, a count: 1, 2, 4 or 8.
        #[bits(4)]
        pub vl_cap: u8,
        #[bits(2)]
        __: u8,
        /// Router mode.
        pub rcm: bool,
        /// Reset the counter of Q_Key violations (`rqk`).
        pub reset_qkey_violations: bool,
    }
}

bits! {
    /// Words 20 and 24 of SET_PORT for InfiniBand: a sniffer.
    pub struct Sniffer: u32 {
        #[bits(6)]
        __: u8,
        /// Mode.
        #[bits(2)]
        pub mode: u8,
        /// QP that gets the packets.
        #[bits(24)]
        pub qpn: u32,
    }
}

bits! {
    /// Word 70 of SET_PORT for InfiniBand.
    pub struct SetPortLink: u32 {
        #[bits(24)]
        __: u32,
        /// Link speeds (IBTA mask).
        #[bits(4)]
        pub speed: u8,
        /// Link widths (IBTA mask).
        #[bits(4)]
        pub width: u8,
    }
}

wire! {
    size = 0x74;
    /// Input of SET_PORT for InfiniBand, [`SetPortOp::IB`] (PRM `set_port_ib`).
    ///
    /// Linux sends zeros but for `flags`, `cap_mask` and, with SR-IOV, `max_pkey`.
    pub struct SetPortIb {
        /// 00: what to change.
        pub flags: SetPortFlags,
        /// 04: PortInfo capability mask; always set.
        pub cap_mask: U32,
        /// 08: system image GUID.
        pub system_image_guid: U64,
        /// 10: GUID of the port, entry 0 of its GUID table.
        pub guid0: U64,
        /// 18: node GUID.
        pub node_guid: U64,
        /// 20: sniffer of sent packets.
        pub egress_sniffer: Sniffer,
        /// 24: sniffer of received packets.
        pub ingress_sniffer: Sniffer,
        /// 28: entries of the P_Key table.
        pub max_pkey: U16,
        /// 2a: entries of the GID table.
        pub max_gid: U16,
        _reserved2c: [u8; 0x44],
        /// 70: link width and speed.
        pub link: SetPortLink,
    }
}

offsets! { SetPortIb:
    cap_mask = 0x04, guid0 = 0x10, egress_sniffer = 0x20, max_pkey = 0x28, max_gid = 0x2a, link = 0x70,
}

open_enum! {
    /// Result of SENSE_PORT: what the cable speaks.
    pub enum SensedType: u8 {
        /// Nothing.
        NONE = 0,
        /// InfiniBand.
        IB = 1,
        /// Ethernet.
        ETH = 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::testing::golden as at;

    #[test]
    fn query_port_fields_are_where_linux_reads_them() {
        type P = QueryPort;
        at(|p: &mut P| p.state.set_link_up(true), 0x00, &[0x80]);
        at(|p: &mut P| p.state.set_dmfs_optimized(true), 0x00, &[0x20]);
        at(|p: &mut P| p.state.set_default_sense(true), 0x00, &[0x10]);
        at(|p: &mut P| p.state.set_suggested_eth(true), 0x00, &[0x08]);
        at(|p: &mut P| p.state.set_eth(true), 0x00, &[0x02]);
        at(|p: &mut P| p.state.set_ib(true), 0x00, &[0x01]);
        at(|p: &mut P| p.mtu.set_ib_mtu(5), 0x01, &[5]);
        at(|p: &mut P| p.eth_mtu.set(1500), 0x02, &[0x05, 0xdc]);
        at(|p: &mut P| p.ib_link_speed = 0x10, 0x04, &[0x10]);
        at(|p: &mut P| p.width.set_ib_port_width(3), 0x06, &[3]);
        at(|p: &mut P| p.tables.set_log2_max_gids(7), 0x07, &[0x70]);
        at(|p: &mut P| p.tables.set_log2_max_pkeys(7), 0x07, &[0x07]);
        at(|p: &mut P| p.eth_tables.set_log2_max_vlans(7), 0x0a, &[0x70]);
        at(|p: &mut P| p.eth_tables.set_log2_max_macs(7), 0x0a, &[0x07]);
        at(|p: &mut P| p.vls.set_max_vl_ib(8), 0x0b, &[0x08]);
        at(|p: &mut P| p.cur_max_gid.set(16), 0x0e, &[0, 16]);
        at(|p: &mut P| p.mac.set(0x0002_c901_0203), 0x12, &[0, 2, 0xc9, 1, 2, 3]);
        at(|p: &mut P| p.transceiver_type = 3, 0x18, &[3]);
    }

    #[test]
    fn set_port_of_linux_bring_up_has_its_bytes() {
        let flags =
            SetPortFlags::new().with_change_mtu(true).with_change_vl(true).with_mtu_cap(5).with_vl_cap(8);
        at(|p: &mut SetPortIb| p.flags = flags, 0x00, &[0x00, 0x60, 0x50, 0x80]);
    }

    #[test]
    fn set_port_fields_are_where_the_drivers_write_them() {
        type P = SetPortIb;
        at(|p: &mut P| p.flags.set_reset_qkey_violations(true), 0x03, &[0x01]);
        at(|p: &mut P| p.flags.set_change_pkey(true), 0x01, &[0x10]);
        at(|p: &mut P| p.flags.set_set_guid0(true), 0x01, &[0x01]);
        at(|p: &mut P| p.flags.set_set_link_width(true), 0x00, &[0x08]);
        at(|p: &mut P| p.cap_mask.set(0x0251_486a), 0x04, &[0x02, 0x51, 0x48, 0x6a]);
        at(|p: &mut P| p.guid0.set(0x1234), 0x16, &[0x12, 0x34]);
        at(|p: &mut P| p.node_guid.set(0x1234), 0x1e, &[0x12, 0x34]);
        at(|p: &mut P| p.egress_sniffer.set_qpn(0x12_3456), 0x21, &[0x12, 0x34, 0x56]);
        at(|p: &mut P| p.max_pkey.set(128), 0x28, &[0, 128]);
        at(|p: &mut P| p.max_gid.set(128), 0x2a, &[0, 128]);
        at(|p: &mut P| p.link.set_speed(0xf), 0x73, &[0xf0]);
        at(|p: &mut P| p.link.set_width(0xf), 0x73, &[0x0f]);
    }
}
