//! A card that lies to our driver: what it answers to commands, its events and its completions are changed as
//! the input says, while the driver brings it up, makes objects, sends something to itself, and closes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mlx4::Profile;
use mlx4::Timeouts;
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{EngineThread, Fault, HcaConfig};
use mlx4_model::seam::ModelDevice;
use mlx4_pci::PciDevice;
use mlx4_wire::cmd::Opcode;
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_tenant::hca::Hca;

/// Longest a command may take: a card that doesn't answer is one of those to be tried.
const TIMEOUT: Duration = Duration::from_millis(30);
/// Bytes of a lie: which thing it changes, and how.
const LIE_BYTES: usize = 6;

/// Lies of an input, each told to the n-th thing of its kind.
#[derive(Debug, Default)]
struct Liar(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lies: Vec<[u8; LIE_BYTES]>,
    told: u16,
}

impl Liar {
    fn change(&self, bytes: &mut [u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state.told;
        state.told = now.wrapping_add(1);
        for [which, more, at, at_more, how, value] in state.lies.iter().copied() {
            let at = usize::from(u16::from_le_bytes([at, at_more]));
            if u16::from_le_bytes([which, more]) != now || bytes.is_empty() {
                continue;
            }
            let length = bytes.len();
            let byte = &mut bytes[at % length];
            *byte = match how % 3 {
                0 => value,
                1 => *byte ^ value,
                _ => byte.wrapping_add(value),
            };
        }
    }
}

impl Fault for Liar {
    fn answer(&self, _: Opcode, mailbox: &mut [u8], result: &mut u64) {
        if mailbox.is_empty() {
            let mut bytes = result.to_be_bytes();
            self.change(&mut bytes);
            *result = u64::from_be_bytes(bytes);
        } else {
            self.change(mailbox);
        }
    }

    fn event(&self, eqe: &mut [u8]) {
        self.change(eqe);
    }

    fn completion(&self, cqe: &mut [u8]) {
        self.change(cqe);
    }
}

struct Scene {
    liar: Arc<Liar>,
    device: Arc<ModelDevice>,
    _engine: EngineThread,
    _fabric: Arc<Fabric>,
}

static SCENE: Mutex<Option<Scene>> = Mutex::new(None);

fn scene() -> Scene {
    let fabric = Fabric::new(FabricConfig::default()).expect("a fabric");
    let card = HcaConfig { node_guid: 0x0002_c903_00f2_0000, ports: 1, trace: None };
    let device = Arc::new(ModelDevice::new(card, &fabric).expect("a card"));
    let liar = Arc::new(Liar::default());
    device.hca().inject(Arc::<Liar>::clone(&liar));
    let engine = device.hca().start_engine().expect("an engine");
    Scene { liar, device, _engine: engine, _fabric: fabric }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut scene_slot = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = scene_slot.get_or_insert_with(scene);
    let lies = bytes.as_chunks::<LIE_BYTES>().0.to_vec();
    *scene.liar.0.lock().unwrap_or_else(PoisonError::into_inner) = State { lies, told: 0 };
    let refused = scene.device.refused();
    let _refused_or_not = drive(Arc::<ModelDevice>::clone(&scene.device));
    assert_eq!(scene.device.refused(), refused, "the device was told to reach for memory that it hasn't got");
}

/// Everything that guests make a driver do, but for traffic.
fn drive(device: Arc<dyn PciDevice>) -> Option<()> {
    let timeouts = Timeouts { post: TIMEOUT, short: TIMEOUT, medium: TIMEOUT, long: TIMEOUT };
    let small = Profile {
        log2_qps: 12,
        log2_srqs: 10,
        log2_cqs: 10,
        log2_mpts: 12,
        log2_mtts: 15,
        ..Profile::default()
    };
    let profile = Profile { log2_mcgs: 8, ..small };
    let config = Mlx4Config { profile, timeouts, ports: false, completion_eqs: 2, ..Mlx4Config::default() };
    let hca = Mlx4Hca::open(device, config).ok()?;
    let _shown = (hca.device(), hca.query_port(1), hca.query_gid(1, 0), hca.query_pkey(1, 0));
    crate::rings::objects(&hca);
    hca.close().ok()
}
