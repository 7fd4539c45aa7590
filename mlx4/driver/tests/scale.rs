//! Tens of thousands of objects at once, through the driver on the model.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Card, config, fabric};
use mlx4::{
    Access, Config, Cq, CqConfig, Hca, Profile, Qp, QpConfig, QpRights, Region, RegionConfig,
    RingMemoryPages, Srq, SrqConfig,
};
use mlx4_wire::ctx::qp::{ServiceType, WqSize};

/// Objects of each kind.
const COUNT: usize = 20_000;
const PAGE: u64 = 4096;

/// Pages given to ICM, as the model tells.
fn icm_pages(card: &Card) -> u64 {
    let dump = card.dump();
    let (_, rest) = dump.split_once("\"icm_pages\":").expect("the dump tells of ICM");
    rest.split(',').next().unwrap_or_default().parse().expect("a number of pages")
}

/// Threads that make and destroy: commands of several are under way at once.
const THREADS: usize = 4;

/// Makes so many of a kind; the model has more memory for its tables then.
fn many<T: Send>(card: &Card, make: impl Fn() -> mlx4::Result<T> + Sync) -> Vec<T> {
    let before = icm_pages(card);
    let part = || (0..COUNT / THREADS).map(|_| make().unwrap()).collect::<Vec<_>>();
    let all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(part)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(icm_pages(card) > before);
    all
}

/// Ends all of a kind.
fn end<T: Send>(mut all: Vec<T>, destroy: impl Fn(T) -> mlx4::Result<()> + Sync) {
    std::thread::scope(|scope| {
        while !all.is_empty() {
            let part = all.split_off(all.len().saturating_sub(COUNT / THREADS));
            let destroy = &destroy;
            scope.spawn(move || part.into_iter().for_each(|object| destroy(object).unwrap()));
        }
    });
}

#[test]
fn tables_grow_to_tens_of_thousands_of_objects_of_each_kind_and_shrink_again() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_00e1_0000, 1);
    let profile = Profile { log2_srqs: 15, log2_cqs: 15, ..config().profile };
    let hca = Hca::open(card.seam(), &Config { profile, ports: false, ..config() }).unwrap();
    let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
    // All rings lie in one page, since nothing is posted; records in another.
    let memory = card.device.dma().allocate(3 * 4096, PAGE).unwrap();
    let (page, record) = ([memory.iova()], memory.iova() + PAGE);
    let ring = RingMemoryPages { pages: &page, log2_page: 12 };
    let before = icm_pages(&card);

    let cq = CqConfig { log2_entries: 1, ring, record, uar: &uar, ignore_overrun: true, vector: 0 };
    let cqs = many(&card, || hca.cq(&cq, || {}));
    let srq = SrqConfig { log2_entries: 1, log2_stride: 5, pd: &pd, ring, record, xrc: None };
    let srqs = many(&card, || hca.srq(&srq));
    let region = RegionConfig {
        pd: &pd,
        address: 0,
        length: PAGE,
        pages: &page,
        log2_page: 12,
        access: Access::LOCAL,
        bind: false,
    };
    let regions = many(&card, || hca.region(&region));
    let qp = QpConfig {
        service: ServiceType::RC,
        send: WqSize::new().with_log2_entries(6).with_log2_stride_less_4(2),
        receive: None,
        pd: &pd,
        uar: &uar,
        send_cq: &cqs[0],
        receive_cq: &cqs[COUNT - 1],
        srq: Some(&srqs[COUNT - 1]),
        buffer: ring,
        record: 0,
        rights: QpRights::default(),
    };
    let qps = many(&card, || hca.qp(&qp));
    assert_eq!(hca.objects(), 4 * COUNT);
    end(qps, Qp::destroy);
    end(regions, Region::destroy);
    end(srqs, Srq::destroy);
    end(cqs, Cq::destroy);
    assert_eq!((icm_pages(&card), hca.objects()), (before, 0));
    memory.release().unwrap();
    hca.close().unwrap();
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}
