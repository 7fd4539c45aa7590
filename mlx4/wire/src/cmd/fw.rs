//! Firmware, adapter and memory-giving commands: QUERY_FW, QUERY_ADAPTER, MOD_STAT_CFG, MAP_FA and MAP_ICM.

use super::MAILBOX_BYTES;
use crate::{U16, U32, U64};

/// Size in bytes of a page of ICM and of the firmware area, the unit of every page count in commands.
pub const ICM_PAGE_BYTES: u64 = 4096;

/// Most entries that one MAP_FA, MAP_ICM or MAP_ICM_AUX mailbox holds.
pub const MAP_ENTRIES_MAX: usize = MAILBOX_BYTES / size_of::<MapEntry>();

bits! {
    /// Which BAR a register is in, for the locations of QUERY_FW.
    pub struct BarSelect: u8 {
        /// Pair of BARs: 0 is BAR0, 1 is BAR2, 2 is BAR4.
        #[bits(2)]
        pub pair: u8,
        #[bits(6)]
        __: u8,
    }
}

impl BarSelect {
    /// Index of the BAR in configuration space.
    pub const fn bar(self) -> u8 {
        self.pair() * 2
    }
}

bits! {
    /// Byte 0x0c of QUERY_FW.
    pub struct FwTrace: u8 {
        /// Debug trace is supported.
        pub dt: bool,
        #[bits(7)]
        __: u8,
    }
}

bits! {
    /// Byte 0x13 of QUERY_FW.
    pub struct FwFeatures: u8 {
        #[bits(6)]
        __: u8,
        /// Collapsed CQs are supported.
        pub ccq: bool,
        #[bits(1)]
        __: u8,
    }
}

wire! {
    size = 0x100;
    /// Output of QUERY_FW (PRM `query_fw`, Linux `QUERY_FW_*_OFFSET`).
    pub struct QueryFw {
        /// 00: firmware area that MAP_FA must give, in 4 KiB pages.
        pub fw_pages: U16,
        /// 02: firmware version, major.
        pub fw_rev_major: U16,
        /// 04: firmware version, the third number. It stands before the second.
        pub fw_rev_subminor: U16,
        /// 06: firmware version, the second number.
        pub fw_rev_minor: U16,
        _reserved08: u8,
        /// 09: physical function that this function belongs to.
        pub ppf_id: u8,
        /// 0a: revision of the command interface; Linux accepts 2 and 3, and 2 has other port commands.
        pub cmd_interface_rev: U16,
        /// 0c: debug trace.
        pub trace: FwTrace,
        _reserved0d: [u8; 2],
        /// 0f: log2 of the commands that may be outstanding in event mode.
        pub log2_max_outstanding_cmd: u8,
        /// 10: build time, hour (BCD).
        pub fw_hour: u8,
        /// 11: build time, minutes (BCD).
        pub fw_minutes: u8,
        /// 12: build time, seconds (BCD).
        pub fw_seconds: u8,
        /// 13: features.
        pub features: FwFeatures,
        /// 14: build date, year (BCD, four digits).
        pub fw_year: U16,
        /// 16: build date, month (BCD).
        pub fw_month: u8,
        /// 17: build date, day (BCD).
        pub fw_day: u8,
        _reserved18: [u8; 8],
        /// 20: offset of the interrupt clear register (two words) in its BAR, in bytes.
        pub clr_int_base: U64,
        /// 28: BAR of the interrupt clear register.
        pub clr_int_bar: BarSelect,
        _reserved29: [u8; 7],
        /// 30: offset of the catastrophic error buffer in its BAR, in bytes.
        pub error_buf_offset: U64,
        /// 38: size of the catastrophic error buffer in 32-bit words.
        pub error_buf_size: U32,
        /// 3c: BAR of the catastrophic error buffer.
        pub error_buf_bar: BarSelect,
        _reserved3d: [u8; 3],
        /// 40: offset of the communication channel of SR-IOV in its BAR, in bytes (Linux `COMM_BASE`).
        pub comm_base: U64,
        /// 48: BAR of the communication channel.
        pub comm_bar: BarSelect,
        _reserved49: [u8; 7],
        /// 50: offset of the 64-bit free-running clock in its BAR, in bytes (Linux `CLOCK`).
        pub clock_offset: U64,
        /// 58: BAR of the clock.
        pub clock_bar: BarSelect,
        _reserved59: [u8; 0xa7],
    }
}

offsets! { QueryFw:
    fw_rev_subminor = 0x04, ppf_id = 0x09, cmd_interface_rev = 0x0a, log2_max_outstanding_cmd = 0x0f,
    fw_year = 0x14, clr_int_base = 0x20, clr_int_bar = 0x28, error_buf_offset = 0x30,
    error_buf_size = 0x38, error_buf_bar = 0x3c, comm_base = 0x40, comm_bar = 0x48,
    clock_offset = 0x50, clock_bar = 0x58,
}

wire! {
    size = 16;
    /// One range of host pages in the mailbox of MAP_FA, MAP_ICM or MAP_ICM_AUX (PRM
    /// `virtual_physical_mapping`).
    ///
    /// The range is `4096 << log2_pages` bytes; both addresses are aligned to it.
    pub struct MapEntry {
        va: U64,
        pa: U64,
    }
}

impl MapEntry {
    const ADDRESS: u64 = !(ICM_PAGE_BYTES - 1);
    const LOG2_PAGES: u64 = 0x3f;

    /// An entry for `4096 << log2_pages` bytes at the bus address `pa`, seen at `va` in ICM.
    ///
    /// `None` if an address isn't page aligned or `log2_pages` exceeds six bits. MAP_FA and MAP_ICM_AUX
    /// append their entries in order and take zero for `va`.
    pub const fn new(va: u64, pa: u64, log2_pages: u8) -> Option<Self> {
        if (va | pa) & !Self::ADDRESS != 0 || log2_pages as u64 > Self::LOG2_PAGES {
            return None;
        }
        Some(Self { va: U64::new(va), pa: U64::new(pa | log2_pages as u64) })
    }

    /// 00 \[63:12\]: virtual address in ICM, in bytes.
    pub const fn va(&self) -> u64 {
        self.va.get() & Self::ADDRESS
    }

    /// 08 \[63:12\]: bus address, in bytes.
    pub const fn pa(&self) -> u64 {
        self.pa.get() & Self::ADDRESS
    }

    /// 08 \[5:0\]: log2 of the size of the range in 4 KiB pages.
    pub const fn log2_pages(&self) -> u8 {
        self.pa.get().to_le_bytes()[0] & 0x3f
    }
}

/// Length of the board id in bytes.
pub const BOARD_ID_BYTES: usize = 16;

wire! {
    size = 0x100;
    /// Output of QUERY_ADAPTER (PRM `query_adapter`, Linux `QUERY_ADAPTER_*_OFFSET`).
    pub struct QueryAdapter {
        _reserved00: [u8; 0x10],
        /// 10: bit of the 64-bit interrupt clear register that lowers this device's interrupt pin.
        pub inta_pin: u8,
        _reserved11: [u8; 0x0f],
        /// 20: vendor specific data.
        pub vsd: [u8; 0xd0],
        board_id: [[u8; 4]; 4],
    }
}

offsets! { QueryAdapter: inta_pin = 0x10, vsd = 0x20, board_id = 0xf0, }

impl QueryAdapter {
    /// The board id (PSID) at f0, padded with zeros. The device stores each group of four characters
    /// backwards.
    pub fn board_id(&self) -> [u8; BOARD_ID_BYTES] {
        let mut id = self.board_id;
        id.iter_mut().for_each(|word| word.reverse());
        zerocopy::transmute!(id)
    }

    /// Sets the board id (PSID), ASCII, padded with zeros.
    pub fn set_board_id(&mut self, id: &[u8; BOARD_ID_BYTES]) {
        self.board_id = zerocopy::transmute!(*id);
        self.board_id.iter_mut().for_each(|word| word.reverse());
    }
}

open_enum! {
    /// Opcode modifiers of MOD_STAT_CFG.
    pub enum ModStatCfgOp: u8 {
        /// Set from a mailbox, the fields whose `_m` bit is set.
        SET = 0,
        /// Set from an immediate value.
        SET_IMMEDIATE = 1,
        /// Query into a mailbox; the input modifier carries the port at \[15:8\].
        QUERY = 2,
        /// Query as an immediate value.
        QUERY_IMMEDIATE = 3,
    }
}

bits! {
    /// Word 00 of MOD_STAT_CFG. A field is taken only if its `_m` bit is set.
    pub struct StatCfgPage: u32 {
        #[bits(16)]
        __: u32,
        /// Change `dife`.
        pub dife_m: bool,
        /// DIF enable.
        pub dife: bool,
        #[bits(5)]
        __: u32,
        /// Change `log2_pg_sz`.
        pub log_pg_sz_m: bool,
        /// log2 of the page size that the device uses, in units of 4 KiB.
        #[bits(8)]
        pub log2_pg_sz: u8,
    }
}

bits! {
    /// A word of MOD_STAT_CFG that says whether the word after it is to be changed.
    pub struct StatCfgModify: u32 {
        /// Change the word that follows.
        pub modify: bool,
        #[bits(31)]
        __: u32,
    }
}

wire! {
    size = 0x100;
    /// Mailbox of MOD_STAT_CFG, the part that names the device's GUIDs and page size (PRM `mod_stat_cfg`).
    pub struct ModStatCfg {
        /// 00: page size.
        pub page: StatCfgPage,
        _reserved04: [u8; 0x0c],
        /// 10: whether to change `guid_hi`.
        pub guid_hi_m: StatCfgModify,
        /// 14: port GUID, bits \[63:32\].
        pub guid_hi: U32,
        /// 18: whether to change `guid_lo`.
        pub guid_lo_m: StatCfgModify,
        /// 1c: port GUID, bits \[31:0\].
        pub guid_lo: U32,
        /// 20: whether to change `node_guid_hi`.
        pub node_guid_hi_m: StatCfgModify,
        /// 24: node GUID, bits \[63:32\].
        pub node_guid_hi: U32,
        /// 28: whether to change `node_guid_lo`.
        pub node_guid_lo_m: StatCfgModify,
        /// 2c: node GUID, bits \[31:0\].
        pub node_guid_lo: U32,
        _reserved30: [u8; 0xd0],
    }
}

offsets! { ModStatCfg: guid_hi = 0x14, guid_lo = 0x1c, node_guid_hi = 0x24, node_guid_lo = 0x2c, }

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::cmd::testing::golden;

    #[test]
    fn query_fw_version_has_subminor_before_minor() {
        let mut fw = QueryFw::new_zeroed();
        fw.fw_pages.set(0x400);
        fw.fw_rev_major.set(2);
        fw.fw_rev_minor.set(42);
        fw.fw_rev_subminor.set(5700);
        assert_eq!(fw.as_bytes()[..8], [0x04, 0x00, 0x00, 0x02, 0x16, 0x44, 0x00, 0x2a]);
    }

    #[test]
    fn query_fw_fields_are_where_linux_reads_them() {
        golden(|f: &mut QueryFw| f.ppf_id = 7, 0x09, &[7]);
        golden(|f: &mut QueryFw| f.cmd_interface_rev.set(3), 0x0a, &[0, 3]);
        golden(|f: &mut QueryFw| f.trace.set_dt(true), 0x0c, &[0x80]);
        golden(|f: &mut QueryFw| f.log2_max_outstanding_cmd = 4, 0x0f, &[4]);
        golden(|f: &mut QueryFw| f.features.set_ccq(true), 0x13, &[2]);
        golden(|f: &mut QueryFw| f.clr_int_base.set(0xf_00d8), 0x20, &[0, 0, 0, 0, 0, 0xf, 0, 0xd8]);
        golden(|f: &mut QueryFw| f.error_buf_offset.set(0x3_0000), 0x30, &[0, 0, 0, 0, 0, 3, 0, 0]);
        golden(|f: &mut QueryFw| f.error_buf_size.set(0x10), 0x38, &[0, 0, 0, 0x10]);
        golden(|f: &mut QueryFw| f.error_buf_bar.set_pair(1), 0x3c, &[0x40]);
        golden(|f: &mut QueryFw| f.comm_bar.set_pair(2), 0x48, &[0x80]);
        golden(|f: &mut QueryFw| f.clock_bar.set_pair(3), 0x58, &[0xc0]);
    }

    #[test]
    fn bar_select_counts_pairs() {
        assert_eq!(BarSelect::new().with_pair(1).bar(), 2);
    }

    #[test]
    fn map_entry_shares_the_low_bits_with_the_size() {
        let entry = MapEntry::new(0x1_0004_0000, 0x12_3456_0000, 6).unwrap();
        let bytes = [0, 0, 0, 1, 0, 4, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0, 6];
        assert_eq!(entry.as_bytes(), bytes);
        let read: MapEntry = zerocopy::transmute!(bytes);
        assert_eq!((read.va(), read.pa(), read.log2_pages()), (0x1_0004_0000, 0x12_3456_0000, 6));
    }

    #[test]
    fn map_entry_refuses_what_does_not_fit() {
        assert_eq!(MapEntry::new(0, 0x1800, 0), None);
        assert_eq!(MapEntry::new(0x800, 0x1000, 0), None);
        assert_eq!(MapEntry::new(0, 0x1000, 64), None);
    }

    #[test]
    fn map_entry_ignores_reserved_bits() {
        let entry: MapEntry = zerocopy::transmute!([0xffu8; 16]);
        assert_eq!((entry.va(), entry.log2_pages()), (0xffff_ffff_ffff_f000, 0x3f));
        assert_eq!(MAP_ENTRIES_MAX, 256);
    }

    #[test]
    fn board_id_is_stored_with_each_word_reversed() {
        let mut adapter = QueryAdapter::new_zeroed();
        adapter.set_board_id(b"MT_1090120019\0\0\0");
        assert_eq!(adapter.as_bytes()[0xf0..], *b"1_TM10901002\0\0\09");
        assert_eq!(adapter.board_id(), *b"MT_1090120019\0\0\0");
        golden(|a: &mut QueryAdapter| a.inta_pin = 0x3f, 0x10, &[0x3f]);
    }

    #[test]
    fn mod_stat_cfg_fields_are_where_linux_reads_them() {
        golden(|m: &mut ModStatCfg| m.page.set_log_pg_sz_m(true), 0x02, &[1]);
        golden(|m: &mut ModStatCfg| m.page.set_log2_pg_sz(2), 0x03, &[2]);
        golden(|m: &mut ModStatCfg| m.guid_hi.set(0x0002_c903), 0x14, &[0, 2, 0xc9, 3]);
        golden(|m: &mut ModStatCfg| m.guid_lo.set(0x0102_0304), 0x1c, &[1, 2, 3, 4]);
        golden(|m: &mut ModStatCfg| m.node_guid_lo_m.set_modify(true), 0x28, &[0x80]);
    }
}
