//! A guest that registers a region of more chunks than it may have mapped, and then a small one.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{Access, Context};

use crate::{say, told};

/// Bytes that the guest tries to register.
const LARGE: usize = 64 << 20;
/// Bytes of what it gets in any case.
const SMALL: usize = 2 << 20;

/// Says why the large one is refused, and when the small one is there.
pub(crate) fn run(socket: &Path) -> Result<()> {
    let context = Context::connect(socket)?;
    let pd = context.alloc_pd()?;
    for _ in 0..2 {
        let refused = pd.alloc_mr(LARGE, Access::LOCAL_WRITE).err().context("it was registered")?;
        ensure!(refused.errno() == rustix::io::Errno::NOMEM.raw_os_error(), "not ENOMEM: {refused}");
        say(&refused.to_string())?;
        ensure!(told()?, "nobody listens");
        pd.alloc_mr(SMALL, Access::LOCAL_WRITE)?;
    }
    say("small")
}
