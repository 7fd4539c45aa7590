//! The guest's limits: one more of everything than it may have.

use anyhow::{Context as _, Result, bail};
use virtio_rdma::{Reason, U32};

use super::fields;
use super::stage::{Base, Stage};
use crate::objects::SLOTS;

/// Asks for the same again and again until it is refused, for this reason.
fn until_refused(stage: &mut Stage<'_>, base: &Base, reason: Reason, most: u32) -> Result<()> {
    for _ in 0..=most {
        let (_, seen) = stage.ask(&base.request)?.ended()?;
        match seen {
            Reason::NONE => {}
            seen if seen == reason => {
                stage.note(reason);
                // Once more: it stays so, and costs nothing.
                stage.take_stock()?;
                return stage.refused(&base.request, reason);
            }
            seen => bail!("{seen} instead of {reason}"),
        }
    }
    bail!("{most} and one more")
}

/// Objects of which a guest may have few, the slots of an area, the places of a group, and bytes.
pub(crate) fn all(stage: &mut Stage<'_>) -> Result<()> {
    let uars = stage.config.max_uars.get();
    let domains = stage.device.max_xrcd.get();
    for (name, reason, most) in [
        ("OPEN_XRCD", Reason::OBJECT_LIMIT, domains),
        ("ALLOC_UAR", Reason::OBJECT_LIMIT, uars),
        ("ALLOC_PD", Reason::OBJECT_LIMIT, stage.device.max_pd.get()),
        ("CREATE_CQ", Reason::SLOT_LIMIT, SLOTS),
    ] {
        let base = stage.named(name)?;
        until_refused(stage, &base, reason, most).with_context(|| name)?;
    }
    bytes(stage).context("bytes")?;
    stage.guest.reset()
}

/// A region of which each segment is the same: more bytes than the guest may register, of a few pages.
fn bytes(stage: &mut Stage<'_>) -> Result<()> {
    let base = stage.named("REG_MR")?;
    let most = stage.config.max_registered_bytes.get();
    let (mut request, length) = (base.request.clone(), 4 << 20);
    let count = 1000;
    let set = |request: &mut Vec<u8>, path: &str, value| -> Result<()> {
        let leaves = fields::of(base.opcode)?;
        leaves.iter().find(|leaf| leaf.path == path).context("a field")?.set(request, value)
    };
    set(&mut request, "segment.address", crate::guest::BASE)?;
    set(&mut request, "segment.length", length)?;
    let segment = request[request.len() - 16..].to_vec();
    for _ in 1..count {
        request.extend_from_slice(&segment);
    }
    set(&mut request, "iova", 0)?;
    set(&mut request, "length", count * length)?;
    let told = u32::try_from(request.len())?;
    request[4..8].copy_from_slice(&U32::new(told).get().to_le_bytes());
    let base = Base { request, ..base };
    until_refused(stage, &base, Reason::BYTE_LIMIT, u32::try_from(most / (count * length))?)
}
