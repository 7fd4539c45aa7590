//! A guest whose memory table changes, beside two that exchange data: what the card can reach follows.

use integration::Process;
use integration::patience::until;

use crate::scene::{Daemon, LIMIT, Scene, passed};

/// Requests of three messages or so.
const A_FEW: u64 = 10;
/// Less than this the driver maps for itself meanwhile: the card's tables of what the guests have.
const OF_DRIVER: u64 = 1 << 20;

/// The guest, and how many bytes the region has that comes and goes.
struct Guest<'a> {
    scene: &'a Scene,
    process: Process,
    bytes: u64,
    /// What the card can reach without the region.
    without: u64,
}

impl<'a> Guest<'a> {
    fn new(scene: &'a Scene) -> Self {
        let mut process = scene.vm.spawn("exec rig-guest changing /run/c").unwrap();
        let line = process.line(LIMIT).unwrap();
        let bytes = line.strip_prefix("ready ").unwrap().parse().unwrap();
        Self { scene, process, bytes, without: scene.count("mapped_bytes") }
    }

    /// Has the guest go on; answers what it says at the end of its next step, which begins so.
    fn step(&mut self, what: &str) -> String {
        self.process.write(b"\n").unwrap();
        let line = self.process.line(LIMIT).unwrap();
        let rest = line.strip_prefix(what).unwrap_or_else(|| panic!("{line} instead of {what}"));
        rest.trim().to_owned()
    }

    /// The card can reach as much of the region as is said here, and the driver's tables for it.
    fn reaches(&self, bytes: u64) {
        let mapped = self.scene.count("mapped_bytes");
        let least = self.without + bytes;
        assert!((least..least + OF_DRIVER).contains(&mapped), "{mapped} bytes, {} without", self.without);
    }

    /// The two others go on, and the IOMMU has refused the card nothing.
    fn harms_nobody(&self) {
        self.scene.data_flow(A_FEW);
        assert_eq!(self.scene.count("refused_accesses"), 0);
    }
}

/// The daemon serves guests a, b and c, and is killed.
pub(crate) fn memory_tables_change(scene: &Scene, daemon: Daemon) {
    let players = scene.play();
    region_comes_and_goes(scene);
    let messages = players.stop();
    let output = daemon.0.kill().unwrap();
    assert_eq!(output.stderr, "", "the daemon has warned of something");
    until("the kernel resets the card", || Ok(scene.is_untouched())).unwrap();
    passed("beside it", &format!("{messages} of two other guests, and the card was refused no access"));
}

fn region_comes_and_goes(scene: &Scene) {
    let mut guest = Guest::new(scene);
    guest.step("added");
    guest.reaches(0);
    guest.step("registered");
    guest.reaches(guest.bytes);
    passed("mapped", &format!("a new region is mapped when it is registered: {} MiB", guest.bytes >> 20));
    let pieces = guest.step("written");
    guest.harms_nobody();
    passed(
        "chunks",
        &format!("{pieces} writes across its chunks of 2 MiB and the parts at its ends, compared"),
    );

    let rejected = scene.count("rejected_rkeys");
    let written = guest.step("removed");
    guest.reaches(0);
    guest.harms_nobody();
    assert_eq!(scene.count("rejected_rkeys"), rejected + 1);
    passed(
        "removed",
        &format!("it goes after {written} of endless writes: the next is refused, it is unmapped"),
    );
    guest.step("refused");
    guest.reaches(0);
    assert_eq!(scene.count("rejected_rkeys"), rejected + 2);
    passed("dead key", "where it was nothing can be registered, and the card refuses its key, once");

    guest.step("replaced");
    guest.reaches(guest.bytes);
    guest.harms_nobody();
    passed(
        "replaced",
        "other memory in its place: mapped, written and compared; the old memory is as it was",
    );
    guest.step("set");
    guest.reaches(0);
    guest.harms_nobody();
    passed("table", "a whole new table without it: unmapped, and the guest's own memory works");
    guest.process.feed(b"\n").unwrap();
    let output = guest.process.wait(LIMIT).unwrap();
    assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
}
