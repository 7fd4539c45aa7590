//! Where things are: the workspace, its build folder, and the rig's own folder in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The workspace's root folder.
pub(crate) fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// The build folder: the one this program was built in, else the one cargo would use.
pub(crate) fn target() -> PathBuf {
    if let Ok(exe) = std::env::current_exe()
        && let Some(folder) = exe.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file())
    {
        return folder.to_owned();
    }
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The folder of everything that the rig fetches and builds. `PARAVERBS_RIG_DIR` puts it elsewhere, so
/// that several checkouts can share one.
pub(crate) fn rig() -> PathBuf {
    std::env::var_os("PARAVERBS_RIG_DIR").map_or_else(|| target().join("rig"), PathBuf::from)
}

/// The folder of the logs of the test that this thread belongs to.
pub(crate) fn logs(rig: &Path) -> PathBuf {
    let test = std::env::var("NEXTEST_TEST_NAME")
        .ok()
        .or_else(|| std::thread::current().name().filter(|name| *name != "main").map(str::to_owned));
    let exe = std::env::current_exe().ok();
    let program = exe.as_deref().and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
    let program = program.unwrap_or_default();
    // Test binaries end in a hash that changes with each build.
    let program = match program.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 => name,
        _ => &program,
    };
    let name = match test {
        Some(test) => format!("{program}-{}", test.replace("::", "-")),
        None => program.to_owned(),
    };
    rig.join("logs").join(name)
}

/// A name that this process hasn't used yet: `name`, `name.2`, `name.3`...
pub(crate) fn unused(name: &str) -> String {
    static USED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());
    let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let count = used.entry(name.to_owned()).or_default();
    *count += 1;
    if *count == 1 { name.to_owned() } else { format!("{name}.{count}") }
}
