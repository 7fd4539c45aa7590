//! Memory that changes after it was checked: other threads write random bytes all the time to what the device
//! reads, while a bounded number of requests goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, anyhow};
use mlx4_wire::wqe::Opcode;
use rustix::fs::ftruncate;
use virtio_rdma::queue::CONTROL;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::completion::DestroyCq;
use virtio_rdma::request::memory::DeregMr;
use virtio_rdma::request::query::QueryDevice;
use zerocopy::FromZeros;

use super::Case;
use super::guest::{BASE, BYTES, Guest, REQUEST, at};
use super::memory::Memory;
use super::objects::{
    AREA, CQ_RING, DATA, DATA_BYTES, Objects, QP_RING, RECORDS, SLOTS, SPARE, create_cq, data, reg_mr,
    remote, ring,
};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("changing: requests and their descriptors", requests),
    ("changing: lists of segments", lists),
    ("changing: a doorbell area", area),
    ("changing: doorbell records", records),
    ("changing: rings of the HCA", hca_rings),
    ("changing: the length of memory", length),
];

/// Runs `work` while another thread repeats `change`.
fn meanwhile<T>(
    memory: &Memory,
    seed: u64,
    change: impl Fn(&Memory, &mut fastrand::Rng) -> Result<()> + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (done, started) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<()> {
            let mut random = fastrand::Rng::with_seed(seed);
            while !done.load(Ordering::Relaxed) {
                change(memory, &mut random)?;
                started.store(true, Ordering::Relaxed);
            }
            Ok(())
        });
        while !started.load(Ordering::Relaxed) && !changing.is_finished() {
            thread::yield_now();
        }
        let result = work();
        done.store(true, Ordering::Relaxed);
        changing.join().map_err(|_| anyhow!("the thread that changes has panicked"))??;
        result
    })
}

/// A number that is rather often one that means something.
fn number(random: &mut fastrand::Rng) -> u64 {
    match random.u8(0..6) {
        0 => 0,
        1 => 4096 << random.u32(0..10),
        2 => at(SPARE) + 4096 * random.u64(0..64),
        3 => BASE + BYTES - 4096,
        4 => 1 << random.u32(..64),
        _ => random.u64(..),
    }
}

fn requests(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mine = Objects::connected(&mut guest)?;
    let verb = reg_mr(mine.pd, at(SPARE), 0x8000);
    let request = guest.request(&verb, &[(at(SPARE), 0x8000)], SegmentMode::DIRECT)?;
    let good = Guest::descriptors(u32::try_from(request.len())?, 512);
    let rings = guest.queues[usize::from(CONTROL)].offset;
    let change = |memory: &Memory, random: &mut fastrand::Rng| {
        // One thing is wrong for a moment: a byte of the request, or a field of a descriptor.
        match random.u8(0..8) {
            0 => memory.write(REQUEST + random.u64(0..64), &[random.u8(..)]),
            1 => memory.write(REQUEST + 8 * random.u64(0..8), &number(random).to_le_bytes()),
            2 => memory.write(rings + 16 * random.u64(0..2), &number(random).to_le_bytes()),
            3 => memory.write(rings + 16 * random.u64(0..2) + 8, &random.u32(..).to_le_bytes()),
            4 => memory.put16(rings + 16 * random.u64(0..2) + 12, random.u16(0..8)),
            5 => memory.put16(rings + 16 * random.u64(0..2) + 14, random.u16(0..3)),
            6 => memory.write(rings, &[good[0].bytes(), good[1].bytes()].concat()),
            _ => memory.write(REQUEST, &request),
        }
    };
    let memory = guest.memory.share()?;
    let carried_out = meanwhile(&memory, scene.seed, change, || {
        let mut carried_out = 0;
        for _ in 0..1500 {
            guest.memory.write(REQUEST, &request)?;
            // Where a wild descriptor lets the reply go over the rings they are started anew.
            guest.describe(CONTROL, &good)?;
            guest.offer(CONTROL, 0)?;
            match guest.used_within(CONTROL, std::time::Duration::from_millis(500))? {
                Some((_, length)) => carried_out += u32::from(length == 24 + 16),
                None => guest.reset()?,
            }
        }
        Ok(carried_out)
    })?;
    println!("  {carried_out} of 1500 were carried out");
    guest.reset()?;
    guest.must(&QueryDevice {}, &[])?;
    let mut mine = Objects::connected(&mut guest)?;
    mine.works(&guest)
}

fn lists(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    let entries = 256;
    let entry = |index: u64| [(at(DATA) + 4096 * index).to_le_bytes(), 4096u64.to_le_bytes()].concat();
    let good: Vec<u8> = (0..entries).flat_map(entry).collect();
    let change = |memory: &Memory, random: &mut fastrand::Rng| {
        let at = SPARE + 16 * random.u64(0..entries);
        match random.u8(0..8) {
            0 => memory.write(at, &number(random).to_le_bytes()),
            1 => memory.write(at + 8, &number(random).to_le_bytes()),
            _ => memory.write(SPARE, &good),
        }
    };
    let memory = guest.memory.share()?;
    let registered = meanwhile(&memory, scene.seed, change, || {
        let mut registered = 0;
        for _ in 0..150 {
            let verb = reg_mr(mine.pd, at(DATA), entries * 4096);
            let list = [(at(SPARE), entries * 16)];
            if let Ok(mr) = guest.ask(&verb, &list, SegmentMode::INDIRECT)? {
                registered += 1;
                guest.must(&DeregMr { mr: mr.mr, ..DeregMr::new_zeroed() }, &[])?;
            }
            let verb = create_cq(mine.uar, 64 * 512, at(RECORDS) + 256);
            if let Ok(cq) = guest.ask(&verb, &list, SegmentMode::INDIRECT)? {
                registered += 1;
                guest.must(&DestroyCq { cq: cq.cq, ..DestroyCq::new_zeroed() }, &[])?;
            }
        }
        Ok(registered)
    })?;
    println!("  {registered} of 300 lists were right when they were read");
    mine.works(&guest)
}

fn area(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mine = Objects::connected(&mut guest)?;
    let change = |memory: &Memory, random: &mut fastrand::Rng| {
        let value = if random.bool() { u64::MAX } else { random.u64(..) };
        let word = match random.u8(0..5) {
            0 => 0x40,
            1 => 0x80,
            2 => 0x200 + 8 * random.u64(0..64),
            3 => 0x1000 + 8 * random.u64(0..u64::from(SLOTS)),
            // The version and the number of slots too.
            _ => 8 * random.u64(0..512),
        };
        memory.write(AREA + word, &value.to_le_bytes())
    };
    let mut objects = mine;
    let memory = guest.memory.share()?;
    meanwhile(&memory, scene.seed, change, || {
        for round in 0..300 {
            let body = remote(mine.mr.rkey.get(), at(DATA), data(mine.mr.lkey.get(), at(DATA), 64));
            objects.post(&guest, 0, Opcode::RDMA_WRITE, &body)?;
            if round % 8 == 0 {
                guest.must(&QueryDevice {}, &[])?;
            }
            while objects.poll(&guest)?.is_some() {}
        }
        scene.others_go_on()
    })
}

fn records(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    let change = |memory: &Memory, random: &mut fastrand::Rng| {
        let record = RECORDS + [0, 4, 64, 72][random.usize(0..4)];
        let value = if random.bool() { random.u32(..) } else { random.u32(0..256) };
        memory.write(record, &value.to_be_bytes())
    };
    let (keys, arm) = (mine.mr, virtio_rdma::doorbell::slot_at(mine.cq.arm.offset.get()).unwrap_or(0));
    let mut random = fastrand::Rng::with_seed(scene.seed);
    let memory = guest.memory.share()?;
    meanwhile(&memory, scene.seed, change, || {
        for _ in 0..300 {
            mine.write(&guest, keys.lkey.get(), keys.rkey.get(), 64)?;
            mine.post(&guest, 1, Opcode::SEND, &data(keys.lkey.get(), at(DATA), 64))?;
            ring(&guest, arm, random.u64(..))?;
            while mine.poll(&guest)?.is_some() {}
        }
        guest.must(&QueryDevice {}, &[])?;
        scene.others_go_on()
    })
}

fn hca_rings(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    let change = |memory: &Memory, random: &mut fastrand::Rng| match random.u8(0..3) {
        0 => memory.write(CQ_RING + random.u64(0..4096), &[random.u8(..)]),
        1 => memory.write(QP_RING + 4 * random.u64(0..2048), &random.u32(..).to_be_bytes()),
        _ => memory.write(QP_RING + random.u64(0..0x4000), &[random.u8(..)]),
    };
    let keys = mine.mr;
    let memory = guest.memory.share()?;
    for round in 0..12 {
        meanwhile(&memory, scene.seed + round, change, || {
            for post in 0..32 {
                let local = data(keys.lkey.get(), at(DATA), u32::try_from(DATA_BYTES / 2)?);
                let body = remote(keys.rkey.get(), at(DATA), local);
                mine.post(&guest, 0, [Opcode::RDMA_WRITE, Opcode::RDMA_READ][post % 2], &body)?;
                while mine.poll(&guest)?.is_some() {}
            }
            guest.must(&QueryDevice {}, &[])?;
            Ok(())
        })?;
        guest.reset()?;
        mine = Objects::connected(&mut guest)?;
    }
    mine.works(&guest)
}

fn length(scene: &Scene) -> Result<()> {
    let mut cut_off = 0;
    for round in 0..12 {
        let mut guest = scene.vm()?;
        let mut mine = Objects::connected(&mut guest)?;
        let request =
            guest.request(&reg_mr(mine.pd, at(0), BYTES), &[(at(0), BYTES)], SegmentMode::DIRECT)?;
        let memory = guest.memory.share()?;
        let change = |memory: &Memory, random: &mut fastrand::Rng| {
            ftruncate(memory.file(), random.u64(0..BYTES))?;
            Ok(ftruncate(memory.file(), BYTES)?)
        };
        meanwhile(&memory, scene.seed + round, change, || {
            for _ in 0..200 {
                // What is written may be gone already.
                let _posted = mine.write(&guest, mine.mr.lkey.get(), mine.mr.rkey.get(), 1 << 20);
                guest.memory.write(REQUEST, &request)?;
                guest.describe(CONTROL, &Guest::descriptors(u32::try_from(request.len())?, 512))?;
                guest.offer(CONTROL, 0)?;
            }
            Ok(())
        })?;
        cut_off += u32::from(guest.is_cut_off());
        drop(guest);
        scene.others_go_on()?;
    }
    println!("  {cut_off} of 12 guests were cut off");
    Ok(())
}
