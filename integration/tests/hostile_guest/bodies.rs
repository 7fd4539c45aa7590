//! Every request with random bodies, of numbers that mean something rather often.

use anyhow::{Context as _, Result, ensure};
use virtio_rdma::request::{HEADER_BYTES, SegmentMode};
use virtio_rdma::{Opcode, Status, Verb};

use super::Case;
use super::guest::{BASE, BYTES, Guest, at};
use super::objects::{AREA, CQ_RING, DATA, Objects, QP_RING, RECORDS, SPARE};
use super::scene::Scene;
use super::verbs::{self, every_verb};

pub(crate) const CASES: &[Case] =
    &[("bodies: random, of every request", random_bodies), ("bodies: random bits of good requests", flipped)];

/// How often each request is asked for.
const ROUNDS: u64 = 80;

/// What a run knows.
struct Fuzz<'a> {
    guest: &'a mut Guest,
    random: fastrand::Rng,
    handles: Vec<u32>,
    tried: u64,
    carried_out: u64,
}

impl Fuzz<'_> {
    fn address(&mut self) -> u64 {
        let places = [AREA, CQ_RING, DATA, QP_RING, RECORDS, SPARE];
        let place = at(places[self.random.usize(0..places.len())]);
        match self.random.u8(0..8) {
            0 => self.random.u64(..),
            1 => 1 << self.random.u32(..64),
            2 => BASE + BYTES - 8 * self.random.u64(0..600),
            3 => place + 8 * self.random.u64(0..512),
            4 => 4096 << self.random.u32(0..12),
            _ => place + 4096 * self.random.u64(0..4),
        }
    }

    fn number(&mut self) -> u32 {
        match self.random.u8(0..8) {
            0 => self.random.u32(..),
            1 => 1 << self.random.u32(..32),
            2 => 0,
            3 => self.random.u32(0..32),
            _ => self.handles[self.random.usize(0..self.handles.len())],
        }
    }

    /// The bytes of one field.
    fn field(&mut self, bytes: usize) -> Vec<u8> {
        match bytes {
            8 => self.address().to_le_bytes().to_vec(),
            4 => self.number().to_le_bytes().to_vec(),
            2 => [self.random.u16(0..9), self.random.u16(..)][self.random.usize(0..2)].to_le_bytes().to_vec(),
            _ => (0..bytes)
                .map(|_| if self.random.u8(0..4) == 0 { self.random.u8(..) } else { self.random.u8(0..8) })
                .collect(),
        }
    }

    /// One request of a kind.
    fn ask<V: Verb>(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        for field in V::FIELDS {
            let value = if field.name.starts_with("reserved") && self.random.u8(0..50) != 0 {
                vec![0; field.bytes]
            } else {
                self.field(field.bytes)
            };
            bytes.extend(value);
        }
        let verb = V::read_from_bytes(&bytes).ok().context("a body")?;
        let count = if V::OPCODE.has_segments() { self.random.usize(0..4) } else { 0 };
        let mut segment = || (self.address(), 4096 << self.random.u32(0..4));
        let segments: Vec<_> = (0..count).map(|_| segment()).collect();
        let mode =
            if count != 0 && self.random.u8(0..4) == 0 { SegmentMode::INDIRECT } else { SegmentMode::DIRECT };
        let request = self.guest.request(&verb, &segments, mode)?;
        let reply = self.guest.send(&request, 512)?;
        self.tried += 1;
        let (status, reason) = reply.ended().with_context(|| format!("{} {request:02x?}", V::NAME))?;
        if status == Status::OK {
            self.carried_out += 1;
            let answer = V::OPCODE.answer_bytes().unwrap_or(0);
            ensure!(reply.bytes.len() == HEADER_BYTES + answer, "{}: {} bytes", V::NAME, reply.bytes.len());
            // The handle comes first, where there is one.
            if let Some(handle) = reply.bytes.get(HEADER_BYTES..HEADER_BYTES + 4).filter(|_| answer < 64) {
                self.handles.push(u32::from_le_bytes(handle.try_into()?));
                let excess = self.handles.len().saturating_sub(64);
                self.handles.drain(..excess);
            }
        }
        ensure!(status != Status::IO && status != Status::TIMED_OUT, "{}: {reason} {request:02x?}", V::NAME);
        Ok(())
    }

    fn all(&mut self) -> Result<()> {
        macro_rules! each {
            ($($verb:ident)*) => { $( self.ask::<verbs::$verb>()?; )* };
        }
        every_verb!(each);
        Ok(())
    }
}

fn random_bodies(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mine = Objects::connected(&mut guest)?;
    let pairs = mine.pairs.map(|pair| pair.created.qp.get());
    let handles = [&[mine.pd, mine.uar, mine.cq.cq.get(), mine.mr.mr.get()][..], &pairs].concat();
    let random = fastrand::Rng::with_seed(scene.seed);
    let mut fuzz = Fuzz { guest: &mut guest, random, handles, tried: 0, carried_out: 0 };
    for _ in 0..ROUNDS {
        fuzz.all()?;
    }
    let (tried, carried_out) = (fuzz.tried, fuzz.carried_out);
    ensure!(tried >= ROUNDS * Opcode::KNOWN.len() as u64, "{tried} requests are not all of them");
    println!("  {carried_out} of {tried} requests were carried out");
    guest.reset()?;
    let stats = scene.stats("process")?;
    ensure!(stats.objects.get() == 0 && stats.registered_bytes.get() == 0, "after the reset: {stats:?}");
    Objects::connected(&mut guest)?.works(&guest)
}

fn flipped(scene: &Scene) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(scene.seed);
    let mut guest = scene.guest()?;
    for _ in 0..10 {
        let mine = Objects::connected(&mut guest)?;
        let ring = [(at(CQ_RING) + 0x1000, 4096)];
        let cq = super::objects::create_cq(mine.uar, 64, at(RECORDS) + 256);
        let qp = super::objects::create_qp(mine.pd, mine.uar, mine.cq.cq.get(), at(RECORDS) + 512);
        let rings = [(at(QP_RING) + 0x8000, 0x2000)];
        let mr = super::objects::reg_mr(mine.pd, at(DATA), 4096);
        let [init, rtr, rts] = super::objects::transitions(mine.pairs[0].created.qp.get(), 1, 1);
        let direct = SegmentMode::DIRECT;
        let good = [
            guest.request(&cq, &ring, direct)?,
            guest.request(&qp, &rings, direct)?,
            guest.request(&mr, &[(at(DATA), 4096)], direct)?,
            guest.request(&init, &[], direct)?,
            guest.request(&rtr, &[], direct)?,
            guest.request(&rts, &[], direct)?,
        ];
        for _ in 0..100 {
            let mut request = good[random.usize(0..good.len())].clone();
            for _ in 0..random.u8(1..4) {
                let at = random.usize(0..request.len());
                request[at] ^= 1 << random.u8(0..8);
            }
            let (status, reason) = guest.send(&request, 512)?.ended()?;
            let failed = [Status::IO, Status::TIMED_OUT].contains(&status);
            let stale = reason == virtio_rdma::Reason::STALE_GENERATION;
            ensure!(!failed || stale, "{reason} {request:02x?}");
        }
        guest.reset()?;
    }
    Ok(())
}
