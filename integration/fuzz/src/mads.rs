//! Datagrams of management: at the agents of a card and a switch, and over the wire to the switch, the subnet
//! manager and administrator, and our driver.

use std::sync::{Arc, Mutex, PoisonError};

use mlx4_model::fabric::packet::{Headers, Packet};
use mlx4_model::fabric::{Endpoint, Plug};
use mlx4_model::node::{MadInput, NodeConfig, NodeState};
use mlx4_wire::mad::{DEFAULT_PKEY, QP1_QKEY};
use vm_memory::VolatileSlice;

use crate::input::Input;
use crate::world::World;

const MAD_BYTES: usize = 256;
/// Datagrams of an input.
const DATAGRAMS: usize = 8;
/// Classes that somebody answers: subnet management by LID and directed route, SA, PMA; and one that nobody has.
const CLASSES: [u8; 5] = [0x01, 0x81, 0x03, 0x04, 0x07];
const METHODS: [u8; 9] = [0x01, 0x02, 0x05, 0x06, 0x12, 0x14, 0x15, 0x81, 0x92];
/// Attributes of all of them.
const ATTRIBUTES: [u16; 24] = [
    0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1d, 0x20, 0x30,
    0x31, 0x33, 0x35, 0x36, 0x38, 0x39, 0xf3,
];

/// A port that only sends.
struct Mute;

impl Endpoint for Mute {
    fn receive(&self, _: &Packet<'_>) {}

    fn link_changed(&self, _: bool) {}
}

struct Scene {
    world: World,
    plug: Plug,
    card: NodeState,
    switch: NodeState,
}

static SCENE: Mutex<Option<Scene>> = Mutex::new(None);

fn scene() -> Scene {
    let world = World::new();
    let plug = world.fabric.plug(Arc::new(Mute)).expect("a port of the switch");
    let node = |config: &NodeConfig| NodeState::new(config).expect("a node");
    let card = node(&NodeConfig::connectx3(0x1000, 2, "card"));
    card.link_up(1);
    let switch = node(&NodeConfig::switch(0x2000, 36, "switch"));
    switch.link_up(3);
    Scene { world, plug, card, switch }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut scene_slot = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = scene_slot.get_or_insert_with(scene);
    let mut input = Input::new(bytes);
    for _ in 0..DATAGRAMS {
        if input.is_empty() {
            break;
        }
        let to = input.u8();
        let mad = datagram(&mut input);
        match to % 4 {
            0 => agent(&scene.card, 1 + (to >> 7), &mad, &mut input),
            1 => agent(&scene.switch, to >> 3, &mad, &mut input),
            _ => scene.send(&mad, &mut input),
        }
    }
    scene.world.work();
    // What was set lasts for this input only.
    scene.card.reset();
    scene.switch.reset();
    assert_eq!(scene.world.device.refused(), 0, "the device reached for memory that it hasn't got");
}

fn agent(node: &NodeState, port: u8, mad: &[u8; MAD_BYTES], input: &mut Input<'_>) {
    let flags = input.u8();
    let about = MadInput { ignore_mkey: flags & 1 != 0, slid: u16::from(flags) };
    // Agents are asked of ports that are there.
    let port = if node.port(port).is_some() { port } else { 1 };
    let _answer = node.process_mad(port, mad, &about);
}

/// 256 bytes, with a header that is known to somebody, mostly.
fn datagram(input: &mut Input<'_>) -> [u8; MAD_BYTES] {
    let form = input.u8();
    let mut mad = [0; MAD_BYTES];
    if form & 1 != 0 {
        (mad[0], mad[1], mad[2], mad[3]) = (1, input.pick(&CLASSES), 1, input.pick(&METHODS));
        if mad[1] == 0x03 {
            mad[2] = 2;
        }
        mad[0x10..0x12].copy_from_slice(&input.pick(&ATTRIBUTES).to_be_bytes());
        mad[0x14..0x18].copy_from_slice(&input.array::<4>());
        let rest: [u8; MAD_BYTES - 0x20] = input.array();
        mad[0x20..].copy_from_slice(&rest);
        if form & 2 != 0 {
            // The route begins and ends here, or goes one hop.
            (mad[6], mad[7]) = (form >> 6, form >> 7);
            mad[0x20..0x24].fill(0xff);
        }
    } else {
        mad = input.array();
    }
    mad
}

impl Scene {
    /// Sends a datagram to whom the input says.
    fn send(&self, mad: &[u8; MAD_BYTES], input: &mut Input<'_>) {
        let form = input.u8();
        let dlid = match form & 3 {
            0 => 0xffff,
            1 => self.world.lid,
            2 => 1,
            _ => input.u16(),
        };
        let vl15 = form & 4 == 0;
        let headers = Headers {
            vl15,
            dlid,
            slid: if form & 8 == 0 { 0xffff } else { input.u16() },
            src_qp: u32::from(!vl15),
            dest_qp: u32::from(!vl15),
            qkey: if vl15 { 0 } else { QP1_QKEY },
            pkey: DEFAULT_PKEY,
            ..Headers::default()
        };
        let mut bytes = *mad;
        let length = if form & 0x80 == 0 { MAD_BYTES } else { input.below(MAD_BYTES) };
        let payload = [VolatileSlice::from(&mut bytes[..length])];
        self.plug.send(&Packet { headers, payload: &payload });
        self.world.work();
    }
}
