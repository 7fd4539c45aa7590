//! A guest that does everything it can to harm: written by hand, against the whole daemon on the model, while two
//! well-behaved guests exchange data and must see no error.
//!
//! After each case the two others have gone on, no thread has panicked, and what there is in the model, the driver,
//! the daemon and this process is what there was before.
//!
//! The same in each run, but for `PARAVERBS_SEED`, which chooses others; `PARAVERBS_CASES` runs only the cases whose names contain it.
//!
//! - [`scene`]: the daemon, the others, the counts
//! - [`guest`], [`memory`], [`queue`], [`objects`]: the hostile guest
//! - [`abi`]: every check of every request
//! - the rest: the cases

mod abi;
mod addresses;
mod bodies;
mod changed_in_traffic;
mod changed_memory;
mod changing;
mod control;
mod floods;
mod guest;
mod handles;
mod limits;
mod memory;
mod objects;
mod protocol;
mod queue;
mod rings;
mod scene;
mod traffic;
mod verbs;

use anyhow::{Context as _, Result, ensure};
use scene::Scene;

/// A case and its name.
type Case = (&'static str, fn(&Scene) -> Result<()>);

#[test]
fn hostile_guest_costs_the_others_nothing() -> Result<()> {
    let seed = match std::env::var("PARAVERBS_SEED") {
        Ok(text) => text.parse().with_context(|| format!("PARAVERBS_SEED={text:?}"))?,
        Err(_) => 0x686f_7374_696c_6531,
    };
    println!("PARAVERBS_SEED={seed}");
    let only = std::env::var("PARAVERBS_CASES").unwrap_or_default();
    let scene = Scene::start(seed)?;
    // What a first guest of a socket needs for good is there when counting begins.
    for name in ["process", "vm", "small"] {
        scene.rehearse(name)?;
    }
    let before = scene.rest()?;
    let cases = [
        control::CASES,
        abi::CASES,
        bodies::CASES,
        rings::CASES,
        handles::CASES,
        addresses::CASES,
        changing::CASES,
        changed_memory::CASES,
        changed_in_traffic::CASES,
        protocol::CASES,
        floods::CASES,
        limits::CASES,
        traffic::CASES,
    ]
    .concat();
    let mut done = 0;
    for (name, case) in cases.iter().filter(|(name, _)| name.contains(&only)) {
        scene.run(name, *case, &before)?;
        done += 1;
    }
    ensure!(done != 0, "no case has {only:?} in its name");
    let messages = scene.stop()?;
    println!("{done} cases; {messages} messages between the two others");
    Ok(())
}
