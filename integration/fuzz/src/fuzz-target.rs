//! One target under LLVM's fuzzer: `PARAVERBS_FUZZ` names it. `cargo xtask fuzz` builds and runs this.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use paraverbs_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("PARAVERBS_FUZZ").expect("PARAVERBS_FUZZ names a target");
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("there is no target {name}")).1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
