//! Traffic that a guest makes with itself: over its own queues, without end, while it takes things away.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use mlx4_wire::wqe::Opcode;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use vhost::VhostBackend;
use virtio_rdma::U32;
use virtio_rdma::queue::CONTROL;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::memory::DeregMr;
use virtio_rdma::request::query::QueryDevice;
use virtio_rdma::request::queue_pair::{DestroyQp, ModifyQp, QpAttrMask, QpAttributes, QpState};
use zerocopy::FromZeros;

use super::Case;
use super::guest::{BYTES, Guest, REQUEST, at};
use super::objects::{
    AREA, CQ_RING, DATA, DATA_BYTES, Objects, QP_RING, RECORDS, data, lid, reg_mr, remote, transitions,
};
use super::protocol::{SET_VRING_CALL, message, send};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("traffic: over the guest's own queues", over_queues),
    ("traffic: to itself, and to nowhere", strange_paths),
    ("traffic: sends that nobody receives", nobody_receives),
    ("traffic: objects that go in its middle", objects_go),
    ("traffic: a guest that goes in its middle", guest_goes),
    ("traffic: calls that block", calls_that_block),
];

/// How long a call is full at a time.
const FULL: Duration = Duration::from_millis(10);
/// Requests that are answered while a call is filled and emptied.
const CALLS: u32 = 1000;

fn over_queues(scene: &Scene) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(scene.seed);
    for place in [0, 0x1000, 0x8000, AREA, AREA + 0x1000, RECORDS, CQ_RING, QP_RING, QP_RING + 0x2000] {
        let mut guest = scene.guest()?;
        let mut mine = Objects::connected(&mut guest)?;
        let whole = guest.must(&reg_mr(mine.pd, at(0), BYTES), &[(at(0), BYTES)])?;
        let mut noise = vec![0; 0x2000];
        random.fill(&mut noise);
        guest.memory.write(DATA, &noise)?;
        for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
            let (near, far) = if opcode == Opcode::RDMA_WRITE { (DATA, place) } else { (place, DATA) };
            let body = remote(whole.rkey.get(), at(far), data(whole.lkey.get(), at(near), 0x2000));
            mine.post(&guest, 0, opcode, &body)?;
        }
        let request = guest.request(&QueryDevice {}, &[], SegmentMode::DIRECT)?;
        let _lost = guest.memory.write(REQUEST, &request);
        guest.offer(CONTROL, 0)?;
        scene.others_go_on()?;
    }
    Ok(())
}

fn strange_paths(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let lid = lid(&mut guest)?;
    let mine = Objects::new(&mut guest)?;
    let own = mine.pairs[0].created.qpn.get();
    for (dlid, dest) in [
        (lid, own),
        (0, own),
        (0xc000, own),
        (0xfffe, own),
        (0xffff, own),
        (lid + 100, own),
        (lid, 0xff_ffff),
    ] {
        guest.reset()?;
        let mut mine = Objects::new(&mut guest)?;
        let dest = if dest == own { mine.pairs[0].created.qpn.get() } else { dest };
        let mut connected = true;
        for step in transitions(mine.pairs[0].created.qp.get(), dlid, dest) {
            connected &= guest.ask(&step, &[], SegmentMode::DIRECT)?.is_ok();
        }
        if !connected {
            continue;
        }
        for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ, Opcode::SEND] {
            let local = data(mine.mr.lkey.get(), at(DATA), 4096);
            let far = remote(mine.mr.rkey.get(), at(DATA) + 8192, local.clone());
            mine.post(&guest, 0, opcode, if opcode == Opcode::SEND { &local } else { &far })?;
        }
        // It ends, somehow.
        mine.completion(&guest)?;
        scene.others_go_on()?;
    }
    Ok(())
}

fn nobody_receives(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let lid = lid(&mut guest)?;
    let mut mine = Objects::new(&mut guest)?;
    let [one, other] = mine.pairs;
    for (pair, dest) in [(one, other), (other, one)] {
        let [init, rtr, rts] = transitions(pair.created.qp.get(), lid, dest.created.qpn.get());
        // The shortest timer, and retries without end.
        let rtr = ModifyQp { attributes: QpAttributes { min_rnr_timer: 1, ..rtr.attributes }, ..rtr };
        let rts = ModifyQp {
            attributes: QpAttributes { rnr_retry: 7, retry_cnt: 7, timeout: 1, ..rts.attributes },
            ..rts
        };
        for step in [init, rtr, rts] {
            guest.must(&step, &[])?;
        }
    }
    for pair in 0..2 {
        for _ in 0..16 {
            mine.post(&guest, pair, Opcode::SEND, &data(mine.mr.lkey.get(), at(DATA), 4096))?;
        }
    }
    for _ in 0..4 {
        scene.others_go_on()?;
        guest.must(&QueryDevice {}, &[])?;
    }
    for pair in &mine.pairs {
        guest.must(&DestroyQp { qp: pair.created.qp, ..DestroyQp::new_zeroed() }, &[])?;
    }
    Ok(())
}

/// Posts as many large writes as the queue has room for.
fn keep_busy(guest: &Guest, mine: &mut Objects) -> Result<()> {
    for _ in 0..16 {
        let half = u32::try_from(DATA_BYTES / 2)?;
        mine.write(guest, mine.mr.lkey.get(), mine.mr.rkey.get(), half)?;
    }
    Ok(())
}

fn objects_go(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let to = |qp: U32, qp_state| ModifyQp {
        qp,
        attr_mask: QpAttrMask::STATE,
        attributes: QpAttributes { qp_state, ..QpAttributes::new_zeroed() },
    };
    for round in 0..12 {
        let mut mine = Objects::connected(&mut guest)?;
        keep_busy(&guest, &mut mine)?;
        let qp = mine.pairs[round / 6].created.qp;
        match round % 6 {
            0 => drop(guest.must(&to(qp, QpState::RESET), &[])?),
            1 => drop(guest.must(&to(qp, QpState::ERR), &[])?),
            2 => drop(guest.must(&DestroyQp { qp, ..DestroyQp::new_zeroed() }, &[])?),
            3 => drop(guest.must(&DeregMr { mr: mine.mr.mr, ..DeregMr::new_zeroed() }, &[])?),
            4 => drop(guest.frontend.set_mem_table(&[guest.region()])?),
            _ => {}
        }
        guest.reset()?;
        scene.others_go_on()?;
    }
    Objects::connected(&mut guest)?.works(&guest)
}

fn guest_goes(scene: &Scene) -> Result<()> {
    for _ in 0..12 {
        let mut guest = scene.guest()?;
        let mut mine = Objects::connected(&mut guest)?;
        keep_busy(&guest, &mut mine)?;
        // A request is under way too.
        let verb = reg_mr(mine.pd, at(0), BYTES);
        let request = guest.request(&verb, &[(at(0), BYTES)], SegmentMode::DIRECT)?;
        guest.memory.write(REQUEST, &request)?;
        guest.describe(CONTROL, &Guest::descriptors(u32::try_from(request.len())?, 512))?;
        for _ in 0..8 {
            guest.offer(CONTROL, 0)?;
        }
    }
    Ok(())
}

/// What the guest's helpers do to a call.
#[derive(Default)]
struct Filling {
    /// Requests that were answered.
    answered: AtomicU64,
    /// The device waits for room in the call: from now on there is none.
    stuck: AtomicBool,
    stop: AtomicBool,
}

impl Filling {
    fn is(&self, flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }

    /// Empties the call for a moment, again and again, until the device answers no more; then only fills it.
    fn help(&self, call: &OwnedFd) {
        let mut seen = 0;
        while !self.is(&self.stop) {
            let _blocked = rustix::io::write(call, &(u64::MAX - 1).to_ne_bytes());
            let since = Instant::now();
            while !self.is(&self.stuck) && self.answered.load(Ordering::SeqCst) == seen {
                if seen != 0 && since.elapsed() > FULL {
                    self.stuck.store(true, Ordering::SeqCst);
                }
            }
            seen = self.answered.load(Ordering::SeqCst);
            if !self.is(&self.stuck) {
                let _empty = rustix::io::read(call, &mut [0; 8]);
            }
        }
    }

    /// Fills the call whenever there is room, once the device waits for it.
    fn fill(&self, call: &OwnedFd) {
        while !self.is(&self.stop) {
            if self.is(&self.stuck) {
                let _blocked = rustix::io::write(call, &(u64::MAX - 1).to_ne_bytes());
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn calls_that_block(scene: &Scene) -> Result<()> {
    let (call, filling) = (eventfd(0, EventfdFlags::empty())?, Filling::default());
    thread::scope(|scope| {
        let helpers = [
            scope.spawn(|| filling.help(&call)),
            scope.spawn(|| filling.fill(&call)),
            scope.spawn(|| filling.fill(&call)),
        ];
        let result = signalled(scene, &call, &filling);
        filling.stop.store(true, Ordering::SeqCst);
        filling.stuck.store(true, Ordering::SeqCst);
        fcntl_setfl(&call, OFlags::NONBLOCK)?;
        // They may wait for either.
        while helpers.iter().any(|helper| !helper.is_finished()) {
            let _empty = rustix::io::read(&call, &mut [0; 8]);
            thread::sleep(Duration::from_millis(1));
            let _readable = rustix::io::write(&call, &1u64.to_ne_bytes());
            thread::sleep(Duration::from_millis(1));
        }
        result
    })
}

/// Lets the device signal by a call that others fill; and goes, which must not wait for them.
fn signalled(scene: &Scene, call: &OwnedFd, filling: &Filling) -> Result<()> {
    let mut guest = scene.guest()?;
    send(&guest.stream, &message(SET_VRING_CALL, 1, 8, &u64::from(CONTROL).to_le_bytes()), &[call.as_fd()]);
    let request = guest.request(&QueryDevice {}, &[], SegmentMode::DIRECT)?;
    guest.memory.write(REQUEST, &request)?;
    guest.describe(CONTROL, &Guest::descriptors(u32::try_from(request.len())?, 512))?;
    let mut waits = false;
    for _ in 0..CALLS {
        guest.offer(CONTROL, 0)?;
        waits = guest.used_within(CONTROL, 4 * FULL)?.is_none();
        if waits {
            break;
        }
        filling.answered.fetch_add(1, Ordering::SeqCst);
    }
    println!("  the device waits for room in a call: {waits}");
    scene.others_go_on()?;
    drop(guest);
    // Another one is served though the helpers are still there.
    let mut next = scene.guest()?;
    next.must(&QueryDevice {}, &[])?;
    Ok(())
}
