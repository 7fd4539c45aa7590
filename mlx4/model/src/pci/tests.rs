//! Configuration space as system software walks it.

use super::*;

const GUID: u64 = 0x0002_c903_0012_3456;

fn card(ports: u8) -> ConfigSpace {
    ConfigSpace::new(&ConfigParams::new(GUID, ports)).unwrap()
}

fn u16_at(config: &ConfigSpace, offset: u64) -> u16 {
    let mut bytes = [0; 2];
    config.read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

fn u32_at(config: &ConfigSpace, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    config.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write32(config: &mut ConfigSpace, offset: u64, value: u32) -> ConfigEffects {
    config.write(offset, &value.to_le_bytes())
}

/// Offset and id of each capability, following the list.
fn capabilities(config: &ConfigSpace) -> Vec<(u64, u16)> {
    let mut found = Vec::new();
    let mut at = u64::from(u16_at(config, 0x34) & 0xff);
    while at != 0 {
        let header = u16_at(config, at);
        found.push((at, header & 0xff));
        at = u64::from(header >> 8);
        assert!(found.len() < 48, "the list runs in a circle");
    }
    found
}

fn extended_capabilities(config: &ConfigSpace) -> Vec<(u64, u16)> {
    let mut found = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        found.push((at, u16_at(config, at)));
        at = u64::from(u16_at(config, at + 2) >> 4);
        assert!(found.len() < 48, "the list runs in a circle");
    }
    found
}

#[test]
fn identity_is_that_of_a_connectx3() {
    for (ports, subsystem) in [(1, 0x0051_15b3), (2, 0x0050_15b3)] {
        let config = card(ports);
        assert_eq!(u32_at(&config, 0), 0x1003_15b3);
        assert_eq!(u32_at(&config, 8), 0x0207_0000);
        assert_eq!(u32_at(&config, 0x2c), subsystem);
        assert_eq!(u16_at(&config, 6), 0x0010);
        assert_eq!(u16_at(&config, 0x3c), 0x0100);
        assert_eq!(u32_at(&config, 0x30), 0, "no expansion ROM");
    }
}

#[test]
fn parameters_that_no_card_has_are_refused() {
    let good = ConfigParams::new(GUID, 2);
    let refused = |params| ConfigSpace::new(&params).unwrap_err();
    assert_eq!(refused(ConfigParams { ports: 3, ..good.clone() }), ConfigError::Ports(3));
    assert_eq!(refused(ConfigParams { bar2_size: 3 << 20, ..good.clone() }), ConfigError::Bar2Size(3 << 20));
    assert_eq!(refused(ConfigParams { bar2_size: 0, ..good.clone() }), ConfigError::Bar2Size(0));
    for vectors in [0, 129] {
        let params = ConfigParams { msix_vectors: vectors, ..good.clone() };
        assert_eq!(refused(params), ConfigError::Vectors(vectors));
    }
}

#[test]
fn capability_lists_are_those_of_the_card() {
    let config = card(2);
    let expected = [(0x40, 0x01), (0x48, 0x03), (0x9c, 0x11), (0x60, 0x10), (0xc0, 0x09)];
    assert_eq!(capabilities(&config), expected);
    let expected = [(0x100, 0x0e), (0x148, 0x03), (0x154, 0x01), (0x18c, 0x19)];
    assert_eq!(extended_capabilities(&config), expected);
    assert_eq!(u32_at(&config, 0x9c) >> 16, 127);
    assert_eq!((u32_at(&config, 0xa0), u32_at(&config, 0xa4)), (0x7c000, 0x7d000));
    assert_eq!(u32_at(&config, 0x64) >> 28 & 1, 1, "FLReset+");
    assert_eq!((u32_at(&config, 0x150), u32_at(&config, 0x14c)), (0x0002_c903, 0x0012_3456));
    assert_eq!(u16_at(&config, 0xc2), 0x18);
}

#[test]
fn bars_tell_their_size_and_keep_their_address() {
    let mut config = card(2);
    assert_eq!([u32_at(&config, 0x10), u32_at(&config, 0x18)], [0x4, 0xc]);
    for offset in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
        write32(&mut config, offset, !0);
    }
    let sized: Vec<u32> = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|at| u32_at(&config, at)).into();
    assert_eq!(sized, [0xfff0_0004, !0, 0xff80_000c, !0, 0, 0, 0]);
    write32(&mut config, 0x18, 0x1234_5678);
    write32(&mut config, 0x1c, 0x0000_00ab);
    assert_eq!([u32_at(&config, 0x18), u32_at(&config, 0x1c)], [0x1200_000c, 0xab]);
    write32(&mut config, 0x10, 0xfeb0_0000);
    write32(&mut config, 0x14, 0);
    assert_eq!([u32_at(&config, 0x10), u32_at(&config, 0x14)], [0xfeb0_0004, 0]);
}

#[test]
fn command_register_switches_dma() {
    let mut config = card(1);
    assert!(!config.bus_master());
    let effects = config.write(4, &[0xff, 0xff]);
    assert!(effects.bus_master_changed && !effects.flr_requested);
    assert_eq!(u16_at(&config, 4), 0x0546);
    assert!(config.bus_master());
    // The same again changes nothing; one byte is enough to switch off.
    assert_eq!(config.write(4, &[0x06]), ConfigEffects::default());
    assert!(config.write(4, &[0x02]).bus_master_changed);
    assert!(!config.bus_master());
}

#[test]
fn read_only_bytes_stay_whatever_is_written() {
    let mut config = card(2);
    let mut before = vec![0; 4096];
    config.read(0, &mut before);
    config.write(0, &[0xff; 4]);
    config.write(0x08, &[0; 4]);
    config.write(0x34, &[0]);
    config.write(0x100, &[0; 4]);
    config.write(0x40, &[0xff; 4]);
    config.write(0xc0, &[0xff; 24]);
    let mut after = vec![0; 4096];
    config.read(0, &mut after);
    assert_eq!(before, after);
}

#[test]
fn accesses_past_the_end_read_zero_and_write_nothing() {
    let mut config = card(2);
    let mut bytes = [0xee; 8];
    config.read(4092, &mut bytes);
    assert_eq!(bytes, [0; 8]);
    config.read(u64::MAX, &mut bytes);
    assert_eq!(config.write(4092, &[0xff; 64]), ConfigEffects::default());
    assert_eq!(config.write(u64::MAX, &[0xff; 4]), ConfigEffects::default());
}

#[test]
fn flr_is_reported_once_and_reads_as_zero() {
    let mut config = card(2);
    assert!(config.write(0x68, &0xa810_u16.to_le_bytes()).flr_requested);
    assert_eq!(u16_at(&config, 0x68), 0x2810);
    assert!(!config.write(0x68, &0x2830_u16.to_le_bytes()).flr_requested);
    assert_eq!(u16_at(&config, 0x68), 0x2830);
}

#[test]
fn msix_control_keeps_enable_and_mask() {
    let mut config = card(2);
    config.write(0x9e, &0xffff_u16.to_le_bytes());
    assert_eq!(u16_at(&config, 0x9e), 0xc07f);
    config.write(0x9e, &0x8000_u16.to_le_bytes());
    assert_eq!(u16_at(&config, 0x9e), 0x807f);
}

#[test]
fn only_d0_and_d3hot_are_entered() {
    let mut config = card(2);
    for (written, state) in [(3, 3), (1, 3), (2, 3), (0, 0), (1, 0)] {
        config.write(0x44, &[written, 0]);
        assert_eq!(u16_at(&config, 0x44), 0x0008 | state, "NoSoftRst+, state {state}");
    }
}

#[test]
fn wipe_returns_everything_to_its_reset_value() {
    let mut config = card(2);
    let mut fresh = vec![0; 4096];
    config.read(0, &mut fresh);
    for offset in (0..4096).step_by(4) {
        write32(&mut config, offset, !0);
    }
    assert!(config.bus_master());
    config.wipe();
    let mut wiped = vec![0; 4096];
    config.read(0, &mut wiped);
    assert_eq!(fresh, wiped);
    assert!(!config.bus_master());
}

/// Reads VPD as Linux does: address without flag, wait for the flag, data.
fn vpd(config: &mut ConfigSpace) -> Vec<u8> {
    (0..256u16)
        .step_by(4)
        .flat_map(|address| {
            config.write(0x4a, &address.to_le_bytes());
            assert_eq!(u16_at(config, 0x4a), address | 0x8000);
            u32_at(config, 0x4c).to_le_bytes()
        })
        .collect()
}

#[test]
fn vpd_names_the_card_and_sums_to_zero() {
    let mut config = card(2);
    let data = vpd(&mut config);
    let name = usize::from(u16::from_le_bytes([data[1], data[2]]));
    assert_eq!(data[0], 0x82);
    assert!(data[3..3 + name].starts_with(b"ConnectX-3 VPI"));
    let fields_at = 3 + name;
    assert_eq!(data[fields_at], 0x90);
    let length = usize::from(u16::from_le_bytes([data[fields_at + 1], data[fields_at + 2]]));
    let end = fields_at + 3 + length;
    assert_eq!(data[end], 0x78);
    let mut fields = Vec::new();
    let mut at = fields_at + 3;
    while at < end {
        let text = &data[at + 3..at + 3 + usize::from(data[at + 2])];
        fields.push((data[at..at + 2].to_vec(), text.to_vec()));
        at += 3 + text.len();
    }
    assert_eq!(at, end);
    let text = |keyword: &[u8]| fields.iter().find(|(key, _)| key == keyword).map(|(_, text)| &text[..]);
    assert_eq!(text(b"PN"), Some(&b"MCX354A-FCBT"[..]));
    assert_eq!(text(b"SN"), Some(&b"PV0300123456"[..]));
    assert_eq!(fields.last().map(|(key, text)| (&key[..], text.len())), Some((&b"RV"[..], 1)));
    assert_eq!(data[..end].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
}

#[test]
fn vpd_write_is_done_and_changes_nothing() {
    let mut config = card(1);
    let before = vpd(&mut config);
    config.write(0x4c, b"evil");
    config.write(0x4a, &0x8000_u16.to_le_bytes());
    assert_eq!(u16_at(&config, 0x4a), 0);
    assert_eq!(vpd(&mut config), before);
}

#[test]
fn msix_table_is_masked_at_first_and_keeps_what_is_written() {
    let mut table = MsixTable::new(64);
    let at = 0x7c000 + 16 * 33;
    let read = |table: &MsixTable| {
        let mut entry = [0xee; 16];
        table.read(at, &mut entry);
        entry
    };
    let masked = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(read(&table), masked);
    table.write(at, &[0xff; 16]);
    table.write(at + 12, &[0; 4]);
    let all = 0xff;
    assert_eq!(read(&table), [0xfc, all, all, all, all, all, all, all, all, all, all, all, 0, 0, 0, 0]);
    table.wipe();
    assert_eq!(read(&table), masked);
}

#[test]
fn msix_table_ignores_what_is_outside_it() {
    let mut table = MsixTable::new(64);
    for offset in [0x7c000 + 16 * 64, 0x7cffc, 0x7d008, 0x7dffc] {
        assert!(MsixTable::covers(offset));
        table.write(offset, &[0xff; 4]);
        let mut word = [0xee; 4];
        table.read(offset, &mut word);
        assert_eq!(word, [0; 4], "{offset:#x}");
    }
    let mut odd = [0; 4];
    table.read(0x7c002, &mut odd);
    assert_eq!(odd, [0xff; 4]);
    assert!(!MsixTable::covers(0x7bfff) && !MsixTable::covers(0x7e000));
}
