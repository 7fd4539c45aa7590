//! Too much of everything: kicks, doorbells, requests, events, completions.

use anyhow::{Context as _, Result, ensure};
use vhost::vhost_user::VhostUserFrontend;
use virtio_rdma::event::{AsyncEvent, EventType};
use virtio_rdma::queue::{CONTROL, EVENT, FIRST_KICK, FIRST_VECTOR, QUEUES};
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::query::QueryDevice;
use zerocopy::FromBytes;

use super::Case;
use super::guest::{BASE, BYTES, Guest, USER, at, region};
use super::memory::{Memory, Seals};
use super::objects::{CQ_ENTRIES, DATA, Objects, SPARE, alloc_uar, create_cq};
use super::queue::{Descriptor, SIZE, WRITE};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("floods: kicks", kicks),
    ("floods: doorbells", doorbells),
    ("floods: requests", requests),
    ("floods: events that nobody takes", events),
    ("floods: completions that nobody takes", completions),
];

fn kicks(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    for round in 0..20_000u16 {
        guest.kick(round % QUEUES);
        if round % 2000 == 0 {
            guest.must(&QueryDevice {}, &[])?;
            scene.others_go_on()?;
        }
    }
    mine.works(&guest)
}

fn doorbells(scene: &Scene) -> Result<()> {
    const MANY: u32 = 4096;
    let mut guest = scene.guest()?;
    // Two areas with all slots there are, rung all the time.
    let areas = [SPARE, SPARE + 0x1_0000];
    for area in areas {
        guest.must(&alloc_uar(at(area), MANY), &[])?;
        guest.memory.write(area + 4096, &[0x5a; 8 * MANY as usize])?;
    }
    let rung = |scene: &Scene| Ok::<_, anyhow::Error>(scene.stats("process")?.bad_doorbells.get());
    for round in 0..3000 {
        for area in areas {
            guest.memory.write(area + 0x200, &[0xff; 512])?;
            guest.memory.write(area + 0x80, &[0xff; 8])?;
        }
        guest.kick(FIRST_KICK);
        if round % 1000 == 0 {
            scene.others_go_on()?;
            guest.must(&QueryDevice {}, &[])?;
        }
    }
    scene.eventually("doorbells of nothing are counted", |scene| Ok(rung(scene)? >= u64::from(MANY)))
}

fn requests(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let request = guest.request(&QueryDevice {}, &[], SegmentMode::DIRECT)?;
    guest.memory.write(super::guest::REQUEST, &request)?;
    guest.describe(CONTROL, &Guest::descriptors(u32::try_from(request.len())?, 512))?;
    for _ in 0..30 {
        // As many as the queue has, of one chain.
        for _ in 0..SIZE {
            guest.offer(CONTROL, 0)?;
        }
        for _ in 0..SIZE {
            let (_, length) = guest.used(CONTROL)?;
            ensure!(length == 24 + 232, "a reply of {length} bytes");
        }
    }
    scene.others_go_on()
}

fn events(scene: &Scene) -> Result<()> {
    const ELSEWHERE: u64 = BASE + (1 << 30);
    let mut guest = scene.guest()?;
    let more = Memory::new(BYTES, Seals::Shrink)?;
    let there = region(&more, ELSEWHERE, USER + (1 << 30));
    guest.frontend.add_mem_region(&there)?;
    let uar = guest.must(&alloc_uar(at(SPARE), 4096), &[])?.uar.get();
    let kept = u64::from(guest.config()?.max_events.get());
    let count = kept + 100;
    for index in 0..count {
        let ring = ELSEWHERE + 4096 * (1 + index % 1024);
        guest.must(&create_cq(uar, 64, ELSEWHERE + 8 * (index % 512)), &[(ring, 4096)])?;
    }
    // All of them are lost at once, and nobody takes the events.
    guest.frontend.remove_mem_region(&there)?;
    scene.others_go_on()?;
    // Now somebody does.
    let (mut taken, mut lost) = (0, 0);
    while taken + lost < count {
        let buffer = Descriptor::new(at(DATA), 32, WRITE, 0);
        guest.describe(EVENT, &[buffer])?;
        guest.offer(EVENT, 0)?;
        let (_, length) = guest.used(EVENT)?;
        ensure!(length == 32, "an event of {length} bytes");
        let event = AsyncEvent::read_from_bytes(&guest.memory.read(DATA, 32)?).ok().context("an event")?;
        lost += u64::from(event.lost.get());
        match event.event_type {
            EventType::CQ_ERR => taken += 1,
            EventType::EVENTS_LOST => {}
            _ => ensure!(false, "{event:?}"),
        }
    }
    ensure!((taken, lost) == (kept, count - kept), "{taken} events were kept, {lost} lost");
    let stats = scene.stats("process")?;
    ensure!(stats.async_events_lost.get() == lost, "{} were counted as lost", stats.async_events_lost);
    Ok(())
}

fn completions(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    // The CQ's events have no buffer, and its completions nobody takes: it overruns.
    for _ in 0..4 * CQ_ENTRIES {
        mine.write(&guest, mine.mr.lkey.get(), mine.mr.rkey.get(), 64)?;
        guest.kick(FIRST_VECTOR);
    }
    scene.others_go_on()?;
    guest.must(&QueryDevice {}, &[])?;
    guest.reset()?;
    Objects::connected(&mut guest)?.works(&guest)
}
