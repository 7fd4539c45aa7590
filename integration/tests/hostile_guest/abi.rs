//! Each check that the device makes of a request, tried with a request that is good but for one thing: the reason is
//! the one that the specification has, nothing has changed, and in the end the good requests are carried out.
//!
//! The table is whole: a field, a reason or a request without a row is a failure ([`complete`]).
//!
//! - [`stage`], [`requests`]: a guest that has one of everything, and a good request of every kind
//! - [`fields`]: where fields are
//! - [`form`]: what is checked of each request in the same way
//! - [`rows`], [`queue_pair_rows`]: what is checked of each field
//! - [`limits`]: what a guest may have

mod complete;
mod fields;
mod form;
mod limits;
mod queue_pair_rows;
mod requests;
mod rows;
mod stage;

use anyhow::{Context as _, Result, ensure};
use virtio_rdma::Reason;

use self::stage::{Base, Stage};
use super::Case;
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[("abi: every check of every request", every_check)];

/// A value of a field: of the stage, or always the same.
type Value = fn(&Stage<'_>) -> u64;
/// A good request's name, the fields that are set to what they must not be, and the reason.
type Row = (&'static str, &'static [(&'static str, Value)], Reason);

fn set(stage: &mut Stage<'_>, base: &Base, path: &str, request: &mut [u8], value: u64) -> Result<()> {
    let leaves = fields::of(base.opcode)?;
    leaves.iter().find(|leaf| leaf.path == path).context("there is no such field")?.set(request, value)?;
    stage.tried(base.opcode, path);
    Ok(())
}

fn row(stage: &mut Stage<'_>, (name, changes, reason): &Row) -> Result<()> {
    let base = stage.named(name)?;
    let mut request = base.request.clone();
    for (path, value) in *changes {
        let value = value(stage);
        set(stage, &base, path, &mut request, value)?;
    }
    stage.refused(&request, *reason)
}

fn handle(stage: &mut Stage<'_>, name: &str, path: &str) -> Result<()> {
    let base = stage.named(name)?;
    let leaf = fields::of(base.opcode)?.into_iter().find(|leaf| leaf.path == path);
    let at = leaf.context("there is no such field")?.offset;
    let good = u32::from_le_bytes(base.request[at..at + 4].try_into()?);
    for bad in [0, u32::MAX, good ^ 1 << 31, good ^ 1 << 24] {
        let mut request = base.request.clone();
        set(stage, &base, path, &mut request, bad.into())?;
        stage.refused(&request, Reason::BAD_HANDLE).with_context(|| format!("{bad:#x}"))?;
    }
    Ok(())
}

fn every_check(scene: &Scene) -> Result<()> {
    let mut stage = Stage::new(scene).context("the stage")?;
    form::all(&mut stage)?;
    for (name, path) in rows::HANDLES {
        handle(&mut stage, name, path).with_context(|| format!("{name}: {path}"))?;
    }
    let rows = [
        rows::IN_USE,
        rows::QUERIES,
        rows::AREAS,
        rows::MEMORY,
        rows::COMPLETION_QUEUES,
        rows::SHARED_RECEIVE_QUEUES,
        queue_pair_rows::CREATION,
        queue_pair_rows::CHANGES,
        queue_pair_rows::DATAGRAMS,
    ]
    .concat();
    for each in &rows {
        let fields = || each.1.iter().map(|(path, value)| format!("{path}={:#x}", value(&stage)));
        let what = format!("{}: {}", each.0, fields().collect::<Vec<_>>().join(", "));
        row(&mut stage, each).with_context(|| what)?;
    }
    // After all that what is good is carried out, once, and the guest's queues work.
    for base in stage.bases.clone() {
        match base.refused {
            Some(reason) => stage.refused(&base.request, reason),
            None => stage.carried_out(&base.request),
        }
        .with_context(|| format!("good: {}", base.name))?;
        stage.take_stock()?;
    }
    stage.mine.works(&stage.guest)?;
    limits::all(&mut stage)?;
    let left = scene.stats("process")?;
    ensure!(left.objects.get() == 0 && left.registered_bytes.get() == 0, "left by a reset: {left:?}");
    println!("  {} rows, {} requests", rows.len(), stage.bases.len());
    complete::check(&stage)
}
