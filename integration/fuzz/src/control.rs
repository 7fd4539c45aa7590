//! A guest's control queue: requests that are nearly right, one after the other; or a virtqueue of any bytes.
//!
//! In a request a word whose top byte is 0xfa stands for a handle that the guest was given, and one whose top
//! byte is 0xfb for an address in its memory: else hardly any request would reach its objects.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use paraverbs_rdma::fuzzing::{Guest, Parts};
use paraverbs_rdma::{RdmaHost, RelayConfig};
use paraverbs_tenant::hca::Hca;
use paraverbs_tenant::{GuestConfig, Host};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_rdma::request::{HEADER_BYTES, Opcode, RequestHeader, SegmentMode};
use virtio_rdma::{Reserved, U32, U64};
use zerocopy::IntoBytes;

use crate::input::Input;
use crate::world::World;

const BASE: u64 = 0x1_0000_0000;
const BYTES: usize = 4 << 20;
/// Where things are in the guest's memory.
const QUEUE: u64 = 0;
const REQUEST: u64 = 0x1_0000;
const REPLY: u64 = 0x2_0000;
/// Requests of an input.
const REQUESTS: usize = 32;
/// Longest request in bytes.
const LONGEST: usize = 512;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Scene {
    world: World,
    guest: Guest,
}

static SCENE: Mutex<Option<Scene>> = Mutex::new(None);

fn scene() -> Scene {
    let world = World::new();
    let hca: Arc<dyn Hca> = Arc::<paraverbs_hca::Mlx4Hca>::clone(&world.hca);
    let host = RdmaHost::start(Host::new(hca), None, RelayConfig::default()).expect("a relay");
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(BYTES as u64).expect("room for memory");
    let guest = Guest::new(&host, GuestConfig::default(), &file, BASE, BYTES).expect("a guest");
    Scene { world, guest }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut scene_slot = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = scene_slot.get_or_insert_with(scene);
    let mut input = Input::new(bytes);
    if input.u8() & 1 == 0 {
        requests(&scene.guest, &mut input);
    } else {
        any_queue(&scene.guest, &mut input);
    }
    scene.world.work();
    scene.guest.reset();
    assert_eq!(scene.world.device.refused(), 0, "the device reached for memory that it hasn't got");
}

/// A virtqueue whose bytes are the input's, at a place that is too.
fn any_queue(guest: &Guest, input: &mut Input<'_>) {
    let place = |input: &mut Input<'_>| match input.u8() {
        0..=199 => BASE + QUEUE + u64::from(input.u16() & 0xfff) * 16,
        200..=229 => BASE + BYTES as u64 - u64::from(input.u16()),
        _ => input.u64(),
    };
    let size = 1 << (input.u8() % 11);
    let parts = Parts { descriptors: place(input), available: place(input), used: place(input), size };
    while !input.is_empty() {
        let at = u64::from(input.u16());
        let piece: [u8; 16] = input.array();
        guest.write(QUEUE + at, &piece);
    }
    guest.control(parts);
}

fn requests(guest: &Guest, input: &mut Input<'_>) {
    let generation = guest.config().generation.get();
    let mut handles = Vec::new();
    for _ in 0..REQUESTS {
        if input.is_empty() {
            return;
        }
        let request = request(input, generation, &handles);
        let reply = carry_out(guest, &request);
        handles.extend(reply);
    }
}

/// A request whose header is right, mostly.
fn request(input: &mut Input<'_>, generation: u32, handles: &[u32]) -> Vec<u8> {
    let opcode = input.pick(Opcode::KNOWN);
    let kind = input.u8();
    let body = opcode.body_bytes().unwrap_or(0);
    let segments = if opcode.has_segments() { usize::from(kind & 7) * 16 } else { 0 };
    let mut words = input.bytes((body + segments).min(LONGEST)).to_vec();
    words.resize((body + segments).min(LONGEST), 0);
    for word in words.chunks_exact_mut(4) {
        stand_in(word, handles);
    }
    let header = RequestHeader {
        opcode,
        segment_mode: if kind & 0x40 == 0 { SegmentMode::DIRECT } else { SegmentMode::INDIRECT },
        reserved: Reserved::ZERO,
        length: U32::new(u32::try_from(HEADER_BYTES + words.len()).unwrap_or(0)),
        cookie: U64::new(1),
        generation: U32::new(generation.wrapping_add(u32::from(kind >= 0xf0))),
        reserved_end: Reserved::ZERO,
    };
    let mut request = header.as_bytes().to_vec();
    request.extend(words);
    request
}

/// Puts a handle or an address in the place of a word that stands for one.
fn stand_in(word: &mut [u8], handles: &[u32]) {
    let [low, middle, _, top] = *word else { return };
    match top {
        0xfa if !handles.is_empty() => {
            word.copy_from_slice(&handles[usize::from(low) % handles.len()].to_le_bytes());
        }
        // The word after it is the upper half of the address, and has to be 1.
        0xfb => word.copy_from_slice(&(u32::from(low) << 12 | u32::from(middle & 0x3f) << 6).to_le_bytes()),
        _ => {}
    }
}

/// Puts a request into a queue of two descriptors; answers what may be handles in the reply.
fn carry_out(guest: &Guest, request: &[u8]) -> Vec<u32> {
    let length = u32::try_from(request.len()).unwrap_or(0);
    guest.write(REQUEST, request);
    guest.write(REPLY, &[0; 64]);
    let descriptor = |address: u64, bytes: u32, flags: u16, next: u16| {
        [&address.to_le_bytes()[..], &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    guest.write(QUEUE, &descriptor(BASE + REQUEST, length, NEXT, 1));
    guest.write(QUEUE + 16, &descriptor(BASE + REPLY, 4096, WRITE, 0));
    // Flags, index 1, and the first entry: descriptor 0.
    guest.write(QUEUE + 0x100, &[0, 0, 1, 0, 0, 0]);
    guest.write(QUEUE + 0x200, &[0; 16]);
    let [descriptors, available, used] = [0, 0x100, 0x200].map(|at| BASE + QUEUE + at);
    guest.control(Parts { descriptors, available, used, size: 4 });
    let mut used_index = [0; 2];
    guest.read(QUEUE + 0x202, &mut used_index);
    assert_eq!(used_index, [1, 0], "a request without a reply: {request:x?}");
    let mut reply = [0; HEADER_BYTES + 8];
    guest.read(REPLY, &mut reply);
    let [status, ..] = reply;
    if status != 0 {
        return Vec::new();
    }
    let word = |at: usize| reply[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    [word(HEADER_BYTES), word(HEADER_BYTES + 4)].into_iter().filter(|word| *word != 0).collect()
}
