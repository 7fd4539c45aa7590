//! An HCA of the model with this driver, for tests that look inside.

use std::sync::Arc;

use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{EngineThread, HcaConfig};
use mlx4_model::seam::ModelDevice;

use crate::{Config, Hca};

/// A card on a fabric of its own.
pub(crate) struct Bench {
    pub(crate) hca: Hca,
    _device: Arc<ModelDevice>,
    _engine: EngineThread,
    _fabric: Arc<Fabric>,
}

impl Bench {
    pub(crate) fn new(config: &Config) -> Self {
        let fabric = Fabric::new(FabricConfig::default()).expect("a fabric");
        let card = HcaConfig { node_guid: 0x0002_c903_0041_0000, ports: 1, trace: None };
        let device = Arc::new(ModelDevice::new(card, &fabric).expect("a card"));
        let engine = device.hca().start_engine().expect("an engine");
        let seam = Arc::<ModelDevice>::clone(&device);
        let hca = Hca::open(seam, config).expect("the driver opens");
        Self { hca, _device: device, _engine: engine, _fabric: fabric }
    }
}
