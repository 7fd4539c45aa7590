//! The form of requests, which the device checks of each in the same way: lengths, reserved bytes, flags, opcode,
//! room for the reply, generation. Each is tried with each request.

use anyhow::{Context as _, Result, ensure};
use virtio_rdma::request::{HEADER_BYTES, SegmentMode};
use virtio_rdma::{Opcode, Reason, Status};

use super::fields;
use super::stage::{Base, Stage};
use crate::guest::Reply;

/// Where the fields of the header are that the checks change.
const MODE: usize = 0x01;
const LENGTH: usize = 0x04;
const GENERATION: usize = 0x10;
/// Reserved bytes of the header.
const RESERVED: [usize; 6] = [0x02, 0x03, 0x14, 0x15, 0x16, 0x17];
/// A bit that no word of flags has.
const NO_FLAG: u64 = 1 << 31;
/// A code that no opcode has.
const NO_OPCODE: u8 = 0x7f;

/// A request whose header tells its length.
fn of_length(mut request: Vec<u8>, bytes: usize) -> Result<Vec<u8>> {
    request.resize(bytes, 0);
    if let Some(length) = request.get_mut(LENGTH..LENGTH + 4) {
        length.copy_from_slice(&u32::try_from(bytes)?.to_le_bytes());
    }
    Ok(request)
}

fn lengths(stage: &mut Stage, base: &Base) -> Result<()> {
    let good = &base.request;
    let told = u32::try_from(good.len())?;
    for lie in [0, told - 1, told + 1, told + 16, u32::MAX] {
        let mut request = good.clone();
        request[LENGTH..LENGTH + 4].copy_from_slice(&lie.to_le_bytes());
        stage.refused(&request, Reason::BAD_LENGTH).with_context(|| format!("a length of {lie}"))?;
    }
    let most = usize::try_from(stage.config.max_request_bytes.get())?;
    let shorter = good.len() - 1;
    let short = if shorter < HEADER_BYTES { Reason::REQUEST_TOO_SHORT } else { Reason::BAD_LENGTH };
    let mut lengths = vec![
        (0, Reason::REQUEST_TOO_SHORT),
        (HEADER_BYTES - 1, Reason::REQUEST_TOO_SHORT),
        (shorter, short),
        (good.len() + 1, Reason::BAD_LENGTH),
        (most + 1, Reason::REQUEST_TOO_LONG),
    ];
    if !base.opcode.has_segments() {
        lengths.push((good.len() + 16, Reason::BAD_LENGTH));
    }
    for (bytes, reason) in lengths {
        let request = of_length(good.clone(), bytes)?;
        stage.refused(&request, reason).with_context(|| format!("{bytes} bytes"))?;
    }
    // A list of segments that is nowhere.
    let bytes = HEADER_BYTES + base.opcode.body_bytes().context("the opcode is known")?;
    let mut request = of_length(good.clone(), bytes)?;
    request[MODE] = SegmentMode::INDIRECT.0;
    stage.refused(&request, Reason::BAD_LENGTH).context("an empty list of segments")
}

fn bits(stage: &mut Stage, base: &Base) -> Result<()> {
    let mut changed = |at: usize, value: u8, reason| {
        let mut request = base.request.clone();
        request[at] = value;
        stage.refused(&request, reason).with_context(|| format!("{value:#x} at {at:#x}"))
    };
    for at in RESERVED {
        changed(at, 1, Reason::RESERVED_NOT_ZERO)?;
        changed(at, 0x80, Reason::RESERVED_NOT_ZERO)?;
    }
    changed(MODE, 2, Reason::UNKNOWN_FLAG)?;
    changed(MODE, 0xff, Reason::UNKNOWN_FLAG)?;
    changed(0, NO_OPCODE, Reason::UNKNOWN_OPCODE)?;
    for leaf in fields::of_body(base.opcode)? {
        if leaf.is_reserved() {
            for at in leaf.offset..leaf.offset + leaf.bytes {
                changed(at, 1, Reason::RESERVED_NOT_ZERO)?;
            }
        }
    }
    for leaf in fields::of_body(base.opcode)?.iter().filter(|leaf| leaf.is_flags()) {
        let mut request = base.request.clone();
        leaf.set(&mut request, NO_FLAG)?;
        stage.refused(&request, Reason::UNKNOWN_FLAG).context(leaf.path.clone())?;
        stage.tried(base.opcode, &leaf.path);
    }
    Ok(())
}

fn rooms(stage: &mut Stage, base: &Base) -> Result<()> {
    let answer = base.opcode.answer_bytes().context("the opcode is known")?;
    for room in [HEADER_BYTES, HEADER_BYTES + answer - 1] {
        if (HEADER_BYTES..HEADER_BYTES + answer).contains(&room) {
            stage.refused_in(&base.request, u32::try_from(room)?, Reason::REPLY_TOO_SHORT)?;
        }
    }
    let reply = stage.guest.send(&base.request, u32::try_from(HEADER_BYTES - 1)?)?;
    ensure!(reply.bytes.is_empty(), "a reply of {} bytes without room", reply.bytes.len());
    stage.nothing_has_changed()
}

/// Another generation: what destroys something has nothing to destroy, and all else is refused.
fn generations(stage: &mut Stage, base: &Base) -> Result<()> {
    for generation in [0, stage.guest.generation.wrapping_sub(1), stage.guest.generation.wrapping_add(1)] {
        let mut request = base.request.clone();
        request[GENERATION..GENERATION + 4].copy_from_slice(&generation.to_le_bytes());
        if !base.opcode.destroys() {
            stage.refused(&request, Reason::STALE_GENERATION)?;
            continue;
        }
        let reply: Reply = stage.ask(&request)?;
        ensure!(reply.ended()? == (Status::OK, Reason::NONE), "{:?}", reply.ended());
        ensure!(reply.bytes[HEADER_BYTES..].iter().all(|byte| *byte == 0), "an answer that isn't zero");
        stage.nothing_has_changed()?;
    }
    Ok(())
}

/// Tries all of that with all requests.
pub(crate) fn all(stage: &mut Stage) -> Result<()> {
    for base in stage.bases.clone() {
        for check in [lengths, bits, rooms, generations] {
            check(stage, &base).with_context(|| base.name)?;
        }
    }
    let tried = |opcode: &&Opcode| stage.bases.iter().any(|base| base.opcode == **opcode);
    let missing: Vec<_> = Opcode::KNOWN.iter().filter(|opcode| !tried(opcode)).collect();
    ensure!(missing.is_empty(), "requests whose form nobody tried: {missing:?}");
    Ok(())
}
