//! Memory regions and ICM through the driver on the model.

mod common;

use common::end::{End, request, sent};
use common::{Card, Pair, config, fabric};
use mlx4::{Access, Config, Error, Hca, Profile, RegionConfig};
use mlx4_queue::request::{Data, Operation, Remote};

/// Pages given to ICM, as the model tells.
fn icm_pages(card: &Card) -> u64 {
    let dump = card.dump();
    let (_, rest) = dump.split_once("\"icm_pages\":").expect("the dump tells of ICM");
    let number = rest.split(',').next().unwrap_or_default();
    number.parse().expect("a number of pages")
}

#[test]
fn region_over_pages_in_any_order_puts_bytes_where_the_list_says() {
    let pair = Pair::new(0x0002_c903_0051_0000);
    let [near, far] = End::connected(&pair);
    let device = &pair.cards[1].device;
    let buffer = device.dma().allocate(8 * 4096, 4096).unwrap();
    // Backwards, every second page; the region starts inside its first page.
    let pages: Vec<u64> = (0..4).rev().map(|page| buffer.iova() + page * 2 * 4096).collect();
    let address = 0x7f00_0000_0100;
    let region = pair.hosts[1]
        .hca
        .region(&RegionConfig {
            pd: &far.pd,
            address,
            length: 4 * 4096 - 0x100,
            pages: &pages,
            log2_page: 12,
            access: Access::ALL,
            bind: false,
        })
        .unwrap();
    let info = pair.hosts[1].hca.region_of(region.rkey()).unwrap();
    assert_eq!((info.address, info.pd), (address, far.pd.number()));
    assert_eq!(pair.hosts[1].hca.region_of(region.rkey() ^ 1), None);
    let data: Vec<u8> = (0..=255).flat_map(|byte| [byte; 32]).collect();
    near.memory.write(0, &data).unwrap();
    let remote = Remote { address, rkey: region.rkey() };
    let pieces = [near.memory.piece(0, 8192)];
    near.qp.post_send(&[request(1, Operation::Write(remote), Data::Pieces(&pieces))]).unwrap();
    sent(&near, 1);
    let page = |index: usize, range: std::ops::Range<usize>| {
        let mut bytes = vec![0; range.len()];
        buffer.read(index * 2 * 4096 + range.start, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(page(3, 0x100..4096), data[..4096 - 0x100]);
    assert_eq!(page(2, 0..4096), data[4096 - 0x100..8192 - 0x100]);
    assert_eq!(page(1, 0..0x100), data[8192 - 0x100..]);
    let key = region.rkey();
    region.destroy().unwrap();
    assert_eq!(pair.hosts[1].hca.region_of(key), None);
    buffer.release().unwrap();
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn region_that_can_not_be_is_refused() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0052_0000, 1);
    let hca = Hca::open(card.seam(), &Config { ports: false, ..config() }).unwrap();
    let pd = hca.pd().unwrap();
    let pages = [0x10_0000, 0x20_0000];
    let good = RegionConfig {
        pd: &pd,
        address: 0x1000,
        length: 0x2000,
        pages: &pages,
        log2_page: 12,
        access: Access::LOCAL,
        bind: false,
    };
    let refused = |config: &RegionConfig<'_>| {
        let error = hca.region(config).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    };
    refused(&RegionConfig { length: 0, ..good });
    refused(&RegionConfig { length: u64::MAX, ..good });
    refused(&RegionConfig { address: u64::MAX, ..good });
    refused(&RegionConfig { length: 0x2001, ..good });
    refused(&RegionConfig { pages: &pages[..1], ..good });
    refused(&RegionConfig { pages: &[0x10_0000, 0x20_0800], ..good });
    refused(&RegionConfig { log2_page: 11, ..good });
    refused(&RegionConfig { log2_page: 32, ..good });
    hca.close().unwrap();
}

#[test]
fn icm_grows_with_objects_and_shrinks_when_they_are_gone() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0053_0000, 1);
    let host = card.open();
    host.active(1);
    let pd = host.hca.pd().unwrap();
    let before = icm_pages(&card);
    // 100,000 pages take 800 KB of translation entries, rounded up to 1 MiB.
    let pages = vec![0x10_0000; 100_000];
    let region = |_| {
        let config = RegionConfig {
            pd: &pd,
            address: 0,
            length: 100_000 * 4096,
            pages: &pages,
            log2_page: 12,
            access: Access::LOCAL,
            bind: false,
        };
        host.hca.region(&config).unwrap()
    };
    let regions: Vec<_> = (0..3).map(region).collect();
    assert!(icm_pages(&card) >= before + 3 * 256, "{before} -> {}", icm_pages(&card));
    regions.into_iter().for_each(|region| region.destroy().unwrap());
    assert_eq!(icm_pages(&card), before);
    let ends: Vec<End> = (0..40).map(|_| End::new(&host.hca, mlx4_queue::geometry::Service::Rc)).collect();
    ends.into_iter().for_each(End::destroy);
    assert_eq!(icm_pages(&card), before);
    host.hca.close().unwrap();
}

#[test]
fn objects_run_out_and_come_back() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0054_0000, 1);
    let profile =
        Profile { log2_qps: 9, log2_srqs: 8, log2_mpts: 9, log2_mtts: 10, log2_cqs: 8, ..config().profile };
    let hca = Hca::open(card.seam(), &Config { profile, ports: false, ..config() }).unwrap();
    let pd = hca.pd().unwrap();
    let mut all = Vec::new();
    let error = loop {
        match hca.memory(&pd, 4096, Access::LOCAL) {
            Ok(memory) => all.push(memory),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Exhausted("memory region")), "{error}");
    assert_eq!(all.len(), 512 - 256);
    all.pop().unwrap().destroy().unwrap();
    all.push(hca.memory(&pd, 4096, Access::LOCAL).unwrap());
    all.into_iter().for_each(|memory| memory.destroy().unwrap());
    let error = hca.memory(&pd, 8 << 20, Access::LOCAL).unwrap_err();
    assert!(matches!(error, Error::Exhausted("translation entry")), "{error}");
    hca.close().unwrap();
    assert_eq!(card.device.dma().quarantined(), 0);
}

#[test]
fn profile_that_leaves_nothing_beside_the_firmware_is_refused() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0055_0000, 1);
    let profile = Profile { log2_qps: 6, ..config().profile };
    let error = Hca::open(card.seam(), &Config { profile, ..config() }).unwrap_err();
    let expected = "log2_rsvd_qps of QUERY_DEV_CAP is 0x40, but must be at most 0x2f";
    assert_eq!(error.to_string(), expected);
    assert_eq!(card.device.dma().quarantined(), 0);
}
