//! Bring-up.

use mlx4_wire::cmd::fw::{MapEntry, ModStatCfg, StatCfgPage};
use mlx4_wire::cmd::hca::{
    CacheLine, DmptSize, EqeCqeSize, HcaFlags, IcmTable, InitHca, Log2Word, McTable, RdmarcTable, UarParams,
};
use mlx4_wire::cmd::misc::NOP_AT_ONCE;
use mlx4_wire::cmd::port::{SetPortFlags, SetPortIb};
use mlx4_wire::{U32, U64};
use zerocopy::FromZeros;

use crate::fixture::{all, first, read, same};

fn entries(bytes: &[u8]) -> Vec<MapEntry> {
    bytes.chunks_exact(16).map(read).collect()
}

fn pages(entries: &[MapEntry]) -> u64 {
    entries.iter().map(|entry| 1 << entry.log2_pages()).sum()
}

/// Linux `mlx4_map_cmd`: the size stands in the low bits of the bus address, the virtual address is -1 and
/// left out, but for MAP_ICM. QUERY_FW asked for 1024 pages, SET_ICM_SIZE for what it returned.
#[test]
fn pages_that_linux_gives_are_what_was_asked_for() {
    let area = first("MAP_FA");
    let given = entries(&area.bytes);
    assert_eq!((given.len(), pages(&given)), (area.modifier as usize, 1024));
    let aux = first("MAP_ICM_AUX");
    assert_eq!(pages(&entries(&aux.bytes)), first("SET_ICM_SIZE").result);
    for record in [area, aux] {
        for (entry, bytes) in entries(&record.bytes).iter().zip(record.bytes.chunks_exact(16)) {
            assert_eq!(entry.va(), 0);
            same(bytes, &MapEntry::new(0, entry.pa(), entry.log2_pages()).unwrap());
        }
    }
}

/// Linux `mlx4_table_get_icm`: chunks of 256 KiB, in as few pieces as memory allows. The first is cMPT's.
#[test]
fn icm_that_linux_maps_lies_in_the_tables_of_init_hca() {
    let end = first("SET_ICM_SIZE").immediate.unwrap();
    let maps = all("MAP_ICM");
    for record in &maps {
        for (entry, bytes) in entries(&record.bytes).iter().zip(record.bytes.chunks_exact(16)) {
            let size = 4096u64 << entry.log2_pages();
            assert!(entry.va() + size <= end && entry.pa() % size == 0 && size <= 1 << 18, "{entry:?}");
            same(bytes, &MapEntry::new(entry.va(), entry.pa(), entry.log2_pages()).unwrap());
        }
    }
    assert_eq!(entries(&maps[0].bytes)[0].va(), 0);
}

/// Linux `mlx4_load_fw`/`mlx4_init_fw`: `log_pg_sz_m` is set and the page size is that of the host, 4 KiB.
#[test]
fn page_size_is_set_as_linux_does() {
    let mut expected = ModStatCfg::new_zeroed();
    expected.page = StatCfgPage::new().with_log_pg_sz_m(true).with_log2_pg_sz(0);
    let record = first("MOD_STAT_CFG");
    assert_eq!(record.opmod, 0);
    same(&record.bytes, &expected);
}

/// Linux `mlx4_INIT_HCA` and `mlx4_make_profile` with `default_profile`: 2^18 QPs, 2^16 CQs and SRQs, 16
/// RDMARC entries a QP, 2^19 MPT entries, 2^13 groups of 1 KiB, of which the hash reaches half, and as many EQs
/// as the power of two above what the HCA says. A cache line of x86 is 64 bytes, and so are CQEs and EQEs where
/// the HCA has such.
#[test]
fn init_hca_of_linux_has_its_values() {
    let record = first("INIT_HCA");
    let taken: InitHca = read(&record.bytes);
    let p = &taken.params;
    let mut expected = InitHca::new_zeroed();
    expected.version = 2;
    expected.cache_line = CacheLine::new().with_log2_minus_4(2).with_valid(true);
    let params = &mut expected.params;
    params.flags = HcaFlags::new().with_ud_av_port_check(true);
    params.qpc = IcmTable::new(p.qpc.base(), 18).unwrap();
    params.srqc = IcmTable::new(p.srqc.base(), 16).unwrap();
    params.cqc = IcmTable::new(p.cqc.base(), 16).unwrap();
    params.eqc = IcmTable::new(p.eqc.base(), 7).unwrap();
    params.rdmarc = RdmarcTable::new(p.rdmarc.base(), 4).unwrap();
    (params.altc_base, params.auxc_base) = (p.altc_base, p.auxc_base);
    params.mc_base = p.mc_base;
    params.mc_entry_sz = Log2Word::new().with_log2(10);
    params.mc_hash_sz = Log2Word::new().with_log2(12);
    params.mc_table = McTable::new().with_log2_table_sz(13);
    params.dmpt_base = p.dmpt_base;
    params.dmpt = DmptSize::new().with_log2_entries(19).with_mw_enable(true);
    params.eqe_cqe = EqeCqeSize::new().with_cqe_64b(true).with_eqe_64b(true);
    params.mtt_base = p.mtt_base;
    // Linux puts the cMPT first.
    params.cmpt_base = U64::ZERO;
    params.uar = UarParams::new().with_log2_max_uars(10).with_log2_uar_page_sz(0);
    same(&record.bytes, &expected);
    let bases = [
        p.rdmarc.base(),
        p.qpc.base(),
        p.auxc_base.get(),
        p.dmpt_base.get(),
        p.altc_base.get(),
        p.srqc.base(),
        p.cqc.base(),
        p.mtt_base.get(),
        p.mc_base.get(),
        p.eqc.base(),
    ];
    assert!(bases.is_sorted_by(|a, b| a < b), "{bases:x?}");
    assert!(bases.iter().all(|base| *base < first("SET_ICM_SIZE").immediate.unwrap() && *base != 0));
}

/// Linux `mlx4_SET_PORT`: MTU 4096 and 8 VLs first, then (mlx4_ib) only the capability mask.
#[test]
fn ports_are_set_as_linux_does() {
    let [limits, rest @ ..] = &all("SET_PORT")[..] else { panic!("SET_PORT is not there") };
    let mut expected = SetPortIb::new_zeroed();
    expected.flags =
        SetPortFlags::new().with_change_mtu(true).with_change_vl(true).with_mtu_cap(5).with_vl_cap(8);
    // What the port had in its PortInfo (`mlx4_get_port_ib_caps`).
    expected.cap_mask = U32::new(0x0251_4868);
    assert_eq!((limits.opmod, limits.modifier), (0, 1));
    same(&limits.bytes, &expected);
    for record in rest {
        let taken: SetPortIb = read(&record.bytes);
        expected.flags = taken.flags;
        expected.cap_mask = taken.cap_mask;
        assert!(!taken.flags.change_mtu() && !taken.flags.change_vl());
        same(&record.bytes, &expected);
    }
}

/// Linux `mlx4_NOP`, and what else carries no mailbox.
#[test]
fn commands_without_a_mailbox_have_their_modifiers() {
    assert_eq!(first("NOP").modifier, NOP_AT_ONCE);
    assert_eq!(first("INIT_PORT").modifier, 1);
    assert_eq!(first("CLOSE_PORT").modifier, 1);
    assert_eq!(first("DIAG_RPRT").opmod, 2);
    // `MLX4_ASYNC_EVENT_MASK`, with COMMAND (0x0a) among it, mapped and taken away again.
    let [map, unmap] = &all("MAP_EQ")[..] else { panic!("MAP_EQ is not there twice") };
    assert_eq!((unmap.modifier, unmap.immediate), (map.modifier | 1 << 31, map.immediate));
    assert_eq!(map.immediate.unwrap() & 1 << 0x0a, 1 << 0x0a);
    // The first special QP is aligned to 8, and taken back by zero.
    let [set, clear] = &all("CONF_SPECIAL_QP")[..] else { panic!("CONF_SPECIAL_QP is not there twice") };
    assert_eq!((set.modifier % 8, clear.modifier), (0, 0));
}
