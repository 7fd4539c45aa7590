//! A client of the vfio-user server: accesses to regions, memory, interrupts and resets with any arguments.
//! Messages and their framing are the protocol crate's.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use ::vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};
use mlx4_model::device::PciFunction;
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{Hca, HcaConfig};
use mlx4_model::mem::DmaSpace;
use mlx4_model::vfio_user::{EventFdInterrupts, fuzzing};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::input::Input;

const MEMORY_BYTES: u64 = 1 << 20;
const VECTORS: u16 = 8;
/// Index of MSI-X, and the flags that disconnect all vectors: trigger, with no data.
const MSIX: u32 = 2;
const TRIGGER_NOTHING: u32 = 0x21;
/// Calls of an input.
const CALLS: usize = 64;
/// Longest access in bytes; the protocol's crate allocates what it is asked for.
const LONGEST: usize = 4096;

struct Scene {
    hca: Arc<Hca>,
    dma: Arc<DmaSpace>,
    irqs: Arc<EventFdInterrupts>,
    memory: File,
    _fabric: Arc<Fabric>,
}

static SCENE: Mutex<Option<Scene>> = Mutex::new(None);

fn scene() -> Scene {
    let fabric = Fabric::new(FabricConfig::default()).expect("a fabric");
    let dma = Arc::new(DmaSpace::new());
    let irqs = Arc::new(EventFdInterrupts::new(VECTORS));
    let card = HcaConfig { node_guid: 0x0002_c903_00f1_0000, ports: 1, trace: None };
    let interrupts = Arc::clone(&irqs);
    let hca = Hca::new(card, Arc::clone(&dma), interrupts, &fabric).expect("a card");
    let memory = File::from(memfd_create("client", MemfdFlags::CLOEXEC).expect("a memfd"));
    memory.set_len(MEMORY_BYTES).expect("room for memory");
    Scene { hca, dma, irqs, memory, _fabric: fabric }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut scene_slot = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = scene_slot.get_or_insert_with(scene);
    let function: Arc<dyn PciFunction> = Arc::<Hca>::clone(&scene.hca);
    let (dma, irqs) = (Arc::clone(&scene.dma), Arc::clone(&scene.irqs));
    let mut backend = fuzzing::backend(function, dma, irqs);
    let mut input = Input::new(bytes);
    for _ in 0..CALLS {
        if input.is_empty() {
            break;
        }
        scene.call(&mut backend, &mut input);
        for _ in 0..4 {
            scene.hca.run();
        }
    }
    let _infallible = backend.reset();
    scene.dma.unmap_all();
    let _infallible = backend.set_irqs(MSIX, TRIGGER_NOTHING, 0, 0, Vec::new());
}

impl Scene {
    fn call(&self, backend: &mut impl ServerBackend, input: &mut Input<'_>) {
        // Refusals are answers as well.
        let _answer = match input.u8() % 8 {
            0 | 1 => {
                let (region, offset) = place(input);
                let length = usize::from(input.pick(&[1u8, 2, 4, 4, 4, 8, 64, 255]));
                backend.region_write(region, offset, input.bytes(length))
            }
            2 => {
                let (region, offset) = place(input);
                let mut data = vec![0; input.below(LONGEST)];
                backend.region_read(region, offset, &mut data)
            }
            3 => command(backend, input),
            4 => {
                let fd = (input.u8() & 7 != 0).then(|| self.memory.try_clone().expect("a descriptor"));
                let flags = DmaMapFlags::from_bits_truncate(input.u8().into());
                backend.dma_map(flags, extent(input), extent(input), extent(input), fd)
            }
            5 => {
                let flags = DmaUnmapFlags::from_bits_truncate(u32::from(input.u8() & input.u8()));
                backend.dma_unmap(flags, extent(input), extent(input))
            }
            6 => {
                let count = input.u8() % 4;
                let event = || File::from(eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"));
                let fds = (0..count).map(|_| event()).collect();
                let (index, flags) = (u32::from(input.u8() % 6), u32::from(input.u8()));
                let start = input.pick(&[0, 1, 7, 8, u32::MAX]);
                let stated = input.pick(&[u32::from(count), u32::from(count), 0, 1, 8, u32::MAX]);
                backend.set_irqs(index, flags, start, stated, fds)
            }
            _ => backend.reset(),
        };
    }
}

/// A region, and where in it.
fn place(input: &mut Input<'_>) -> (u32, u64) {
    let region = input.pick(&[0, 0, 0, 2, 2, 7, 7, 1, 6, 9]);
    let offset = match input.u8() {
        // Command registers, the owner register, reset, the semaphore, clear-int; and anywhere.
        0..=99 => 0x8_0680 + u64::from(input.u8() % 8) * 4,
        100..=119 => input.pick(&[0x8_069c, 0xf_0010, 0xf_03fc, 0xf_00d8]),
        120..=199 => u64::from(input.u16()) * 4,
        200..=239 => u64::from(input.u32() & 0xff_ffff),
        _ => input.u64(),
    };
    (region, offset)
}

/// A command in the command registers, with mailboxes where memory may be mapped; and bus mastering on.
fn command(backend: &mut impl ServerBackend, input: &mut Input<'_>) -> std::io::Result<()> {
    const CONFIG: u32 = 7;
    backend.region_write(CONFIG, 4, &[6, 0])?;
    let [inputs, outputs] = [(); 2].map(|()| if input.u8() & 3 == 0 { input.u64() } else { page(input) });
    let mut words = Vec::new();
    words.extend(inputs.to_be_bytes());
    words.extend(input.array::<4>());
    words.extend(outputs.to_be_bytes());
    words.extend([0, 0, 0, 0]);
    for (index, word) in words.chunks_exact(4).enumerate() {
        backend.region_write(0, 0x8_0680 + 4 * index as u64, word)?;
    }
    let opcode = input.u16() & 0xfff;
    // Go, the toggle as it comes, no event.
    let last =
        1 << 23 | u32::from(input.u8() & 1) << 21 | u32::from(input.u8() & 15) << 12 | u32::from(opcode);
    backend.region_write(0, 0x8_0698, &last.to_be_bytes())
}

/// The address of a page that may be mapped.
fn page(input: &mut Input<'_>) -> u64 {
    u64::from(input.u8()) << 12
}

/// An address or a length: a number of pages, or anything.
fn extent(input: &mut Input<'_>) -> u64 {
    if input.u8() & 7 == 0 { input.u64() } else { page(input) }
}
