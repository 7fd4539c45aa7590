//! Garbage on the control queue: the form of requests.

use anyhow::{Result, ensure};
use virtio_rdma::memory::SEGMENT_BYTES;
use virtio_rdma::queue::CONTROL;
use virtio_rdma::request::domain::{AllocPd, DeallocPd};
use virtio_rdma::request::memory::{AccessFlags, RegMr};
use virtio_rdma::request::query::{QueryDevice, QueryPort};
use virtio_rdma::request::{HEADER_BYTES, SegmentMode};
use virtio_rdma::{Opcode, Reason, Status, U32};
use zerocopy::FromZeros;

use super::Case;
use super::guest::{Guest, REPLY, REQUEST, at};
use super::queue::{Descriptor, NEXT, WRITE};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("control: random bytes", random_bytes),
    ("control: lengths that lie", lengths_that_lie),
    ("control: reserved bytes, flags, opcodes, generations", reserved_bytes),
    ("control: room for replies", room_for_replies),
];

/// Sends a request that must be refused for a reason.
fn refused(guest: &mut Guest, request: &[u8], reason: Reason) -> Result<()> {
    let (_, seen) = guest.send(request, 512)?.ended()?;
    ensure!(seen == reason, "{seen} instead of {reason} for {request:02x?}");
    Ok(())
}

fn random_bytes(scene: &Scene) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(scene.seed);
    let mut guest = scene.guest()?;
    for _ in 0..300 {
        let mut request = vec![0; random.usize(0..300)];
        random.fill(&mut request);
        let room = random.u32(0..300);
        let reply = guest.send(&request, room)?;
        if (room as usize) < HEADER_BYTES {
            ensure!(reply.bytes.is_empty(), "a reply without room");
            continue;
        }
        let short = request.len() < HEADER_BYTES;
        let reason = if short { Reason::REQUEST_TOO_SHORT } else { Reason::BAD_LENGTH };
        ensure!(reply.ended()? == (Status::INVALID, reason), "{:?} for {request:02x?}", reply.ended());
    }
    let stats = scene.stats("process")?;
    ensure!(stats.objects.get() == 0, "random bytes have made {} objects", stats.objects);
    guest.must(&QueryDevice {}, &[])?;
    Ok(())
}

fn lengths_that_lie(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let good = guest.request(&QueryPort { port: 1, ..QueryPort::new_zeroed() }, &[], SegmentMode::DIRECT)?;
    let bytes = u32::try_from(good.len())?;
    for length in [0, 1, 24, bytes - 1, bytes + 1, bytes + 16, 1 << 16, u32::MAX] {
        let mut request = good.clone();
        request[4..8].copy_from_slice(&length.to_le_bytes());
        refused(&mut guest, &request, Reason::BAD_LENGTH)?;
    }
    for length in 0..good.len() {
        // The header says what there is.
        let mut request = good[..length].to_vec();
        let reason = if length < HEADER_BYTES {
            Reason::REQUEST_TOO_SHORT
        } else {
            request[4..8].copy_from_slice(&u32::try_from(length)?.to_le_bytes());
            Reason::BAD_LENGTH
        };
        refused(&mut guest, &request, reason)?;
    }
    for extra in [1, SEGMENT_BYTES - 1, SEGMENT_BYTES, 4096] {
        let mut request = good.clone();
        request.resize(good.len() + extra, 0);
        let length = u32::try_from(request.len())?;
        request[4..8].copy_from_slice(&length.to_le_bytes());
        refused(&mut guest, &request, Reason::BAD_LENGTH)?;
    }
    // As long as may be, and one more; gigabytes, from the same descriptors.
    let most = guest.config()?.max_request_bytes.get();
    for (length, reason) in [(most, Reason::BAD_LENGTH), (most + 1, Reason::REQUEST_TOO_LONG)] {
        let mut request = vec![0; length as usize];
        request[..HEADER_BYTES].copy_from_slice(&good[..HEADER_BYTES]);
        request[4..8].copy_from_slice(&length.to_le_bytes());
        refused(&mut guest, &request, reason)?;
    }
    let mut huge: Vec<_> = (1..60).map(|next| Descriptor::new(at(0), 8 << 20, NEXT, next)).collect();
    huge.push(Descriptor::new(at(REPLY), 512, WRITE, 0));
    let length = guest.chain(CONTROL, &huge)?;
    ensure!(length == 24, "{length} bytes in reply to half a gigabyte");
    Ok(())
}

fn reserved_bytes(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let good = guest.request(&QueryPort { port: 1, ..QueryPort::new_zeroed() }, &[], SegmentMode::DIRECT)?;
    for at in [2, 3, 20, 21, 22, 23, 25, 28, 31] {
        let mut request = good.clone();
        request[at] = 1;
        refused(&mut guest, &request, Reason::RESERVED_NOT_ZERO)?;
    }
    for mode in [2, 0x80, 0xff] {
        let mut request = good.clone();
        request[1] = mode;
        refused(&mut guest, &request, Reason::UNKNOWN_FLAG)?;
    }
    for opcode in (0..=u8::MAX).map(Opcode).filter(|opcode| opcode.name().is_none()) {
        let mut request = good.clone();
        request[0] = opcode.0;
        refused(&mut guest, &request, Reason::UNKNOWN_OPCODE)?;
    }
    let pd = guest.must(&AllocPd {}, &[])?.pd;
    let access = AccessFlags::from_bits(1 << 5);
    let flag = RegMr { pd, access, ..RegMr::new_zeroed() };
    guest.refused(&flag, &[(at(REQUEST), 4096)], Reason::UNKNOWN_FLAG)?;
    guest.refused_as(&flag, &[], SegmentMode::INDIRECT, Reason::UNKNOWN_FLAG)?;

    let generation = guest.generation;
    guest.generation = generation.wrapping_sub(1);
    guest.refused(&AllocPd {}, &[], Reason::STALE_GENERATION)?;
    guest.must(&DeallocPd { pd, ..DeallocPd::new_zeroed() }, &[])?;
    guest.generation = generation;
    guest.must(&DeallocPd { pd, ..DeallocPd::new_zeroed() }, &[])?;
    guest.refused(&DeallocPd { pd, ..DeallocPd::new_zeroed() }, &[], Reason::BAD_HANDLE)
}

fn room_for_replies(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let request = guest.request(&AllocPd {}, &[], SegmentMode::DIRECT)?;
    for room in [1, 23, 24, 31] {
        let refused = scene.stats("process")?.chains_refused.get();
        let reply = guest.send(&request, room)?;
        if (room as usize) < HEADER_BYTES {
            ensure!(reply.bytes.is_empty(), "{} bytes in {room}", reply.bytes.len());
            let counted = scene.stats("process")?.chains_refused.get() - refused;
            ensure!(counted == 1, "{counted} chains were counted as refused");
        } else {
            ensure!(reply.ended()?.1 == Reason::REPLY_TOO_SHORT, "{:?}", reply.ended());
        }
    }
    ensure!(scene.stats("process")?.objects == U32::ZERO, "a request without room was carried out");
    // Nothing to read, nothing to write, and neither.
    for chain in [
        vec![Descriptor::new(at(REPLY), 512, WRITE, 0)],
        vec![Descriptor::new(at(REQUEST), 512, 0, 0)],
        vec![Descriptor::new(at(REQUEST), 0, NEXT, 1), Descriptor::new(at(REPLY), 0, WRITE, 0)],
    ] {
        let length = guest.chain(CONTROL, &chain)?;
        let expected = if chain[0].flags & WRITE != 0 { 24 } else { 0 };
        ensure!(length == expected, "{length} bytes for {chain:x?}");
    }
    guest.must(&AllocPd {}, &[])?;
    Ok(())
}
