//! A card of the model under our driver, whose engine runs when the target says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mlx4::Profile;
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::HcaConfig;
use mlx4_model::seam::ModelDevice;
use mlx4_pci::PciDevice;
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_tenant::hca::Hca;

/// How long a port may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// State of a port that is ready.
const ACTIVE: u8 = 4;
/// Turns that the engine gets at most: a queue pair that tries again has no end.
const TURNS: usize = 64;

/// The card, and the driver of it.
pub(crate) struct World {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) device: Arc<ModelDevice>,
    pub(crate) hca: Arc<Mlx4Hca>,
    pub(crate) lid: u16,
}

impl World {
    /// A card with an active port.
    pub(crate) fn new() -> Self {
        let fabric = Fabric::new(FabricConfig::default()).expect("a fabric");
        let card = HcaConfig { node_guid: 0x0002_c903_00f0_0000, ports: 1, trace: None };
        let device = Arc::new(ModelDevice::new(card, &fabric).expect("a card"));
        let engine = device.hca().start_engine().expect("an engine");
        let seam: Arc<dyn PciDevice> = Arc::<ModelDevice>::clone(&device);
        let profile = Profile { log2_cqs: 10, log2_mcgs: 8, ..Profile::default() };
        let config = Mlx4Config { profile, completion_eqs: 2, ..Mlx4Config::default() };
        let hca = Mlx4Hca::open(seam, config).expect("a driver");
        let start = Instant::now();
        let lid = loop {
            let port = hca.query_port(1).expect("a port");
            if port.state == ACTIVE {
                break port.lid;
            }
            assert!(start.elapsed() < PATIENCE, "the port stays in state {}", port.state);
            std::thread::yield_now();
        };
        drop(engine);
        Self { fabric, device, hca, lid }
    }

    /// Lets the engine do what there is to do, within reason.
    pub(crate) fn work(&self) {
        for _ in 0..TURNS {
            if !self.device.hca().run().worked {
                return;
            }
        }
    }
}
