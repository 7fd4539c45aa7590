//! What targets have in common: a fabric, cards whose engine runs when it is told to, and patience.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{Hca, HcaConfig};
use mlx4_model::seam::ModelDevice;
use mlx4_pci::PciDevice;

/// How long something may take that must come, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Turns of the engine after which it is left alone: a queue pair that tries again and again is never done.
const TURNS: usize = 2000;

/// A fabric, with its subnet manager or without one.
pub(crate) fn fabric(managed: bool) -> Arc<Fabric> {
    let config = FabricConfig::default();
    let subnet_manager = config.subnet_manager.clone().filter(|_| managed);
    Fabric::new(FabricConfig { subnet_manager, ..config }).unwrap()
}

/// A card for a driver in this process. No thread runs its engine: [`settle`] does.
pub(crate) fn card(fabric: &Arc<Fabric>, node_guid: u64) -> Arc<ModelDevice> {
    Arc::new(ModelDevice::new(HcaConfig { node_guid, ports: 1, trace: None }, fabric).unwrap())
}

/// A card as drivers see it.
pub(crate) fn seam(card: &Arc<ModelDevice>) -> Arc<dyn PciDevice> {
    Arc::<ModelDevice>::clone(card)
}

/// Lets the engine work until it has nothing to do.
pub(crate) fn settle(hca: &Hca) {
    for _ in 0..TURNS {
        if !hca.run().worked {
            return;
        }
    }
}

/// Lets the engines work until something is there.
pub(crate) fn eventually<T>(what: &str, cards: &[&Hca], probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, cards, probe).unwrap_or_else(|| panic!("{what} didn't come"))
}

/// As [`eventually`], where it need not come.
pub(crate) fn within<T>(time: Duration, cards: &[&Hca], mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + time;
    loop {
        cards.iter().for_each(|hca| settle(hca));
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::yield_now();
    }
}
