//! libFuzzer around a target: `PARAVERBS_FUZZ_TARGET` names it. `cargo xtask fuzz` builds and runs this.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use paraverbs_fuzz::Target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("PARAVERBS_FUZZ_TARGET").unwrap_or_default();
        paraverbs_fuzz::target(&name).expect("PARAVERBS_FUZZ_TARGET names a target")
    });
    (target.run)(data);
});
