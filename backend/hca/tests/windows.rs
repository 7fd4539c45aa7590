//! Memory windows of guests.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::guest::{ADDRESS, ALL, Guest};
use common::rings::remote;
use common::{Rig, config};
use mlx4_wire::wqe::{BindAccess, BindKind, BindSeg, Opcode};
use mlx4_wire::{U32, U64};
use paraverbs_tenant::hca::*;
use zerocopy::IntoBytes;

/// What a bind asks for: a key, a region's key, and which bytes of the data others may write.
fn bind(type_2: bool, rkey: u32, lkey: u32, bytes: std::ops::Range<u64>) -> Vec<u8> {
    let segment = BindSeg {
        access: BindAccess::new().with_remote_write(true),
        kind: BindKind::new().with_type_2(type_2),
        new_rkey: U32::new(rkey),
        lkey: U32::new(lkey),
        start: U64::new(ADDRESS + bytes.start),
        length: U64::new(bytes.end - bytes.start),
    };
    segment.as_bytes().to_vec()
}

/// A region that only windows open to others.
fn closed(guest: &Guest) -> (MrId, MrKeys) {
    let access = RegionAccess { local_write: true, mw_bind: true, ..RegionAccess::default() };
    guest.bare.mr(guest.pd, access).unwrap()
}

#[test]
fn region_is_busy_while_a_window_is_bound_to_it() {
    let rig = Rig::new(0x0002_c903_00d4_0000, config());
    let lid = rig.active().lid;
    let hca = &rig.hca;
    let [mut near, mut far] = Guest::pair(hca, lid);
    let (mr, keys) = closed(&far);
    for (kind, type_2) in [(MwKind::Type1, false), (MwKind::Type2, true)] {
        let window = hca.alloc_mw(far.pd, kind).unwrap();
        let rkey = window.number & !0xff | window.number.wrapping_add(1) & 0xff;
        far.post(Opcode::BIND_MW, &bind(type_2, rkey, keys.lkey, 0x1000..0x2000));
        far.sent();
        near.write(0, b"through a window");
        near.post(Opcode::RDMA_WRITE, &[remote(rkey, ADDRESS + 0x1000), near.data(0, 16)].concat());
        near.sent();
        assert_eq!(far.read(0x1000, 16), b"through a window");
        far.write(0x1000, &[0; 16]);
        assert_eq!(hca.dealloc_pd(far.pd), Err(HcaError::Busy));
        assert_eq!(hca.destroy_mr(mr), Err(HcaError::Busy));
        let change = MrChange { pd: None, access: Some(ALL), memory: None };
        assert_eq!(hca.modify_mr(mr, &change), Err(HcaError::Busy));
        hca.dealloc_mw(window.id).unwrap();
        assert_eq!(hca.dealloc_mw(window.id), Err(HcaError::Refused));
    }
    hca.destroy_mr(mr).unwrap();
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn window_of_another_guest_s_region_is_not_bound() {
    let rig = Rig::new(0x0002_c903_00d5_0000, config());
    let lid = rig.active().lid;
    let hca = &rig.hca;
    let [mut near, victim] = Guest::pair(hca, lid);
    let (mr, keys) = closed(&victim);
    let window = hca.alloc_mw(near.pd, MwKind::Type1).unwrap();
    near.post(Opcode::BIND_MW, &bind(false, window.number + 1, keys.lkey, 0..16));
    const MW_BIND_ERROR: u8 = 0x06;
    assert_eq!(near.completion().syndrome, Some(MW_BIND_ERROR));
    hca.dealloc_mw(window.id).unwrap();
    hca.destroy_mr(mr).unwrap();
    near.destroy();
    victim.destroy();
    rig.close();
}

#[test]
fn windows_have_keys_of_their_own_and_known_domains() {
    let rig = Rig::new(0x0002_c903_00d6_0000, config());
    let hca = &rig.hca;
    let guest = Guest::new(hca, 0);
    let windows: Vec<_> = (0..50).map(|_| hca.alloc_mw(guest.pd, MwKind::Type1).unwrap()).collect();
    let mut indexes: Vec<u32> = windows.iter().map(|window| window.number >> 8).collect();
    indexes.push(guest.keys.lkey >> 8);
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), 51);
    assert_eq!(hca.alloc_mw(PdId(0), MwKind::Type2), Err(HcaError::Refused));
    windows.iter().for_each(|window| hca.dealloc_mw(window.id).unwrap());
    guest.destroy();
    rig.close();
}
