//! Virtqueues that are none: wrong chains, wrong indexes, wrong places.

use anyhow::{Result, ensure};
use vhost::{VhostBackend, VringConfigData};
use virtio_rdma::queue::{CONTROL, EVENT, FIRST_VECTOR, MAD_RECEIVE, MAD_SEND};
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::domain::AllocPd;
use virtio_rdma::request::query::QueryDevice;

use super::Case;
use super::guest::{BASE, BYTES, Guest, REPLY, REQUEST, USER, at};
use super::objects::SPARE;
use super::queue::{AVAILABLE, Descriptor, INDIRECT, NEXT, SIZE, USED, WRITE};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("rings: chains of wrong form", wrong_chains),
    ("rings: indirect tables", indirect_tables),
    ("rings: heads and indexes", heads_and_indexes),
    ("rings: random descriptors in all queues", random_descriptors),
    ("rings: sizes and places", sizes_and_places),
];

fn chains_refused(scene: &Scene) -> Result<u64> {
    Ok(scene.stats("process")?.chains_refused.get())
}

/// Puts a chain into the control queue that must be refused, and then a good one. Where a request is to be read there
/// is one that makes something.
fn refused(scene: &Scene, guest: &mut Guest, chain: &[Descriptor]) -> Result<()> {
    let before = chains_refused(scene)?;
    let had = scene.stats("process")?.objects;
    let request = guest.request(&AllocPd {}, &[], SegmentMode::DIRECT)?;
    guest.memory.write(REQUEST, &request)?;
    let length = guest.chain(CONTROL, chain)?;
    ensure!(length == 0, "{length} bytes were written to {chain:x?}");
    scene.eventually("the chain is counted", |scene| Ok(chains_refused(scene)? == before + 1))?;
    ensure!(scene.stats("process")?.objects == had, "what {chain:x?} asks for was carried out");
    guest.must(&QueryDevice {}, &[])?;
    Ok(())
}

fn wrong_chains(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let reply = Descriptor::new(at(REPLY), 512, WRITE, 0);
    let read = |address, length, next| Descriptor::new(address, length, NEXT, next);
    let chains: &[&[Descriptor]] = &[
        // Loops.
        &[read(at(REQUEST), 24, 0)],
        &[read(at(REQUEST), 24, 1), read(at(REQUEST), 24, 0)],
        &[read(at(REQUEST), 24, 1), Descriptor { flags: WRITE | NEXT, next: 1, ..reply }],
        // The next is none.
        &[read(at(REQUEST), 24, SIZE)],
        &[read(at(REQUEST), 24, u16::MAX)],
        // What is to be read stands behind what is to be written.
        &[Descriptor { flags: WRITE | NEXT, next: 1, ..reply }, Descriptor::new(at(REQUEST), 24, 0, 0)],
        // Outside memory: before, behind, across the end, around the end of the address space.
        &[read(0, 24, 1), reply],
        &[read(BASE - 1, 24, 1), reply],
        &[read(BASE + BYTES, 24, 1), reply],
        &[read(BASE + BYTES - 23, 24, 1), reply],
        &[read(at(REQUEST), u32::MAX, 1), reply],
        &[read(u64::MAX, 24, 1), reply],
        &[read(u64::MAX - 22, 24, 1), reply],
        &[read(at(REQUEST), 24, 1), Descriptor { address: u64::MAX - 511, ..reply }],
        &[read(at(REQUEST), 24, 1), Descriptor { address: 0, ..reply }],
        &[read(at(REQUEST), 24, 1), Descriptor { length: u32::MAX, ..reply }],
    ];
    for chain in chains {
        refused(scene, &mut guest, chain)?;
    }
    // Descriptors of no bytes mean nothing, wherever there is memory.
    let request = guest.request(&QueryDevice {}, &[], SegmentMode::DIRECT)?;
    guest.memory.write(REQUEST, &request)?;
    let length = guest.chain(
        CONTROL,
        &[
            read(at(REQUEST), 0, 1),
            read(at(REQUEST), 10, 2),
            read(at(REQUEST + 10), 14, 3),
            read(at(REQUEST + 24), 0, 4),
            Descriptor::new(at(REPLY), 0, WRITE | NEXT, 5),
            reply,
        ],
    )?;
    ensure!(length == 24 + 232, "{length} bytes in reply to a request in pieces");
    Ok(())
}

fn indirect_tables(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let request = guest.request(&QueryDevice {}, &[], SegmentMode::DIRECT)?;
    let table = |guest: &Guest, offset, descriptors: &[Descriptor]| {
        let bytes: Vec<u8> = descriptors.iter().flat_map(Descriptor::bytes).collect();
        guest.memory.write(offset, &bytes)
    };
    let [read, write] = Guest::descriptors(24, 512);
    let name = |length, flags| [Descriptor::new(at(SPARE), length, INDIRECT | flags, 0)];

    guest.memory.write(REQUEST, &request)?;
    table(&guest, SPARE, &[read, write])?;
    let length = guest.chain(CONTROL, &name(32, 0))?;
    ensure!(length == 24 + 232, "{length} bytes in reply to a good indirect chain");
    // Half a descriptor, none, more than memory has, outside memory, more in the chain behind it.
    for length in [0, 1, 15, 16, 17, 31] {
        refused(scene, &mut guest, &name(length, 0))?;
    }
    refused(scene, &mut guest, &name(u32::MAX, 0))?;
    refused(scene, &mut guest, &name(0xffff_fff0, 0))?;
    for address in [0, u64::MAX - 31, BASE + BYTES - 16] {
        refused(scene, &mut guest, &[Descriptor::new(address, 32, INDIRECT, 0)])?;
    }
    // A table in a table, a table that names itself, a loop in it, a next outside it.
    table(&guest, SPARE + 0x1000, &[read, write])?;
    table(&guest, SPARE, &[Descriptor::new(at(SPARE + 0x1000), 32, INDIRECT, 0)])?;
    refused(scene, &mut guest, &name(16, 0))?;
    table(&guest, SPARE, &[Descriptor::new(at(SPARE), 16, INDIRECT | NEXT, 0)])?;
    refused(scene, &mut guest, &name(16, 0))?;
    table(&guest, SPARE, &[Descriptor { next: 0, ..read }])?;
    refused(scene, &mut guest, &name(16, 0))?;
    for next in [2, 3, SIZE, u16::MAX] {
        table(&guest, SPARE, &[Descriptor { next, ..read }, write])?;
        refused(scene, &mut guest, &name(32, 0))?;
    }
    Ok(())
}

fn heads_and_indexes(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    for head in [SIZE, SIZE + 1, 0x8000, u16::MAX] {
        let before = chains_refused(scene)?;
        guest.offer(CONTROL, head)?;
        scene.eventually("a head that is none is counted", |scene| Ok(chains_refused(scene)? > before))?;
        guest.must(&QueryDevice {}, &[])?;
    }
    // The index jumps: it is more ahead than there are descriptors, or behind.
    let available = guest.queues[usize::from(CONTROL)].offset + AVAILABLE + 2;
    for jump in [SIZE + 1, 0x8000, u16::MAX] {
        let (before, index) = (chains_refused(scene)?, guest.queues[usize::from(CONTROL)].offered);
        guest.memory.put16(available, index.wrapping_add(jump))?;
        guest.kick(CONTROL);
        scene.eventually("an index that jumps is counted", |scene| Ok(chains_refused(scene)? > before))?;
        guest.memory.put16(available, index)?;
        guest.must(&QueryDevice {}, &[])?;
    }
    Ok(())
}

fn random_descriptors(scene: &Scene) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(scene.seed);
    let mut guest = scene.guest()?;
    let queues = [CONTROL, EVENT, MAD_RECEIVE, MAD_SEND, FIRST_VECTOR, FIRST_VECTOR + 7];
    for _ in 0..2000 {
        let queue = queues[random.usize(0..queues.len())];
        for index in 0..8 {
            let address = match random.u8(0..4) {
                0 => random.u64(..),
                1 => BASE + BYTES - random.u64(0..64),
                // Not where the rings are.
                _ => at(SPARE) + random.u64(0..0x10_0000),
            };
            let length = if random.bool() { random.u32(0..0x4000) } else { random.u32(..) };
            let next = if random.u8(0..10) == 0 { random.u16(..) } else { random.u16(0..8) };
            let descriptor = Descriptor::new(address, length, random.u16(0..8), next);
            guest.queues[usize::from(queue)].describe(&guest.memory, index, descriptor)?;
        }
        guest.offer(queue, random.u16(0..8))?;
        if queue == CONTROL || queue == MAD_SEND {
            guest.used(queue)?;
        }
    }
    guest.must(&QueryDevice {}, &[])?;
    Ok(())
}

fn sizes_and_places(scene: &Scene) -> Result<()> {
    let good = |rings: u64| VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: rings,
        used_ring_addr: rings + USED,
        avail_ring_addr: rings + AVAILABLE,
        log_addr: None,
    };
    // Sizes that no queue has are refused, or change nothing.
    for size in [0, 1, 3, 63, 1025, 2048, 0x8000, u16::MAX] {
        let guest = scene.guest()?;
        let taken = guest.frontend.set_vring_num(0, size);
        ensure!(taken.is_err() || size < 1024, "size {size} was taken");
        if !guest.is_cut_off() {
            guest.kick(CONTROL);
        }
    }
    let end = USER + BYTES;
    let places = [
        // Outside memory, misaligned, across its end.
        good(0),
        good(BASE),
        good(end),
        good(end - 16),
        good(end - 0x1000),
        good(!0xfff),
        good(USER + 8),
        VringConfigData { used_ring_addr: USER + 1, ..good(USER) },
        VringConfigData { avail_ring_addr: end - 2, ..good(USER) },
        // All in one place: the device writes over what it reads.
        VringConfigData { used_ring_addr: USER, avail_ring_addr: USER, ..good(USER) },
        VringConfigData { used_ring_addr: USER + 16, avail_ring_addr: USER + 32, ..good(USER) },
    ];
    for place in places {
        let mut guest = scene.guest()?;
        let _refused = guest.frontend.set_vring_addr(0, &place);
        // Whatever there is, it is looked at.
        for _ in 0..100 {
            guest.offer(CONTROL, 0)?;
        }
        scene.others_go_on()?;
    }
    // A queue of the largest size whose rings don't fit any more where they are.
    let guest = scene.guest()?;
    guest.frontend.set_vring_addr(0, &good(end - 0x1000))?;
    guest.frontend.set_vring_num(0, 1024)?;
    let before = chains_refused(scene)?;
    guest.kick(CONTROL);
    scene.eventually("rings outside memory are counted", |scene| Ok(chains_refused(scene)? > before))
}
