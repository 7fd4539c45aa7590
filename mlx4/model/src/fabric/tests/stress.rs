//! Links that flap and packets that fly on many threads at once, against the manager's own thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mlx4_wire::mad::portinfo::PortState;

use super::adapter::Adapter;
use crate::fabric::datagram::Datagram;
use crate::fabric::{Fabric, FabricConfig};

#[test]
fn flapping_links_end_up_active() {
    let fabric = Fabric::new(FabricConfig::default()).unwrap();
    let adapters: Vec<_> = (1..=4).map(|n| Arc::new(Adapter::new(0x1000 * n))).collect();
    for adapter in &adapters {
        adapter.connect(fabric.plug(adapter.clone()).unwrap());
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for adapter in &adapters[..2] {
            scope.spawn(|| flap(adapter, &stop));
        }
        for adapter in &adapters[2..] {
            scope.spawn(|| chat(adapter, &stop));
        }
        std::thread::sleep(Duration::from_millis(400));
        stop.store(true, Relaxed);
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    while adapters.iter().any(|adapter| adapter.state() != PortState::ACTIVE) {
        let states: Vec<_> = adapters.iter().map(|adapter| adapter.state()).collect();
        assert!(Instant::now() < deadline, "{states:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    adapters.iter().for_each(|adapter| adapter.disconnect());
}

fn flap(adapter: &Adapter, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        adapter.plug().set_link(false);
        std::thread::sleep(Duration::from_micros(300));
        adapter.plug().set_link(true);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn chat(adapter: &Adapter, stop: &AtomicBool) {
    let mut dlid = 0u16;
    while !stop.load(Relaxed) {
        dlid = (dlid + 1) % 8;
        for lid in [dlid, 0xc000 | dlid, 0xffff] {
            adapter.send(&Datagram { headers: adapter.gmp_headers(lid), mad: [1; 256] });
        }
        adapter.plug().route(adapter.lid(), dlid, 0);
        adapter.received();
    }
}
