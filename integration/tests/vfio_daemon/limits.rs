//! Guests that map as much as the host lets them, while two others exchange data.

use integration::patience::until;
use integration::{Output, Process};

use crate::scene::{LIMIT, SIGTERM, Scene, command, passed};

/// How many mappings the kernel lets a program have.
const ENTRIES: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
/// A low number of them, and the usual one.
const FEW: u32 = 64;
const MANY: u32 = 65_535;
/// What the daemon may lock, in MiB: what its driver needs, and a little more.
const LOCKED: u32 = 64;
/// Requests of three messages or so.
const A_FEW: u64 = 10;
/// What a guest is told.
const ENOMEM: &str = "REG_MR refused: MAPPING_LIMIT (Cannot allocate memory (os error 12))";

/// Starts guests that register until that is refused. Answers how many regions each could.
fn greedy(scene: &Scene, sockets: &str) -> (Process, Vec<u32>) {
    let mut greedy = scene.vm.spawn(&format!("exec rig-guest greedy {sockets}")).unwrap();
    let mut regions = Vec::new();
    loop {
        let line = greedy.line(LIMIT).unwrap();
        if line == "full" {
            return (greedy, regions);
        }
        let (count, refusal) = line.split_once(' ').unwrap();
        assert_eq!(refusal, ENOMEM);
        regions.push(count.parse().unwrap());
    }
}

/// While the greedy have all there is, the two others go on; and what one gives back can be had again.
fn room_comes_back(scene: &Scene, mut greedy: Process) {
    scene.data_flow(A_FEW);
    greedy.write(b"\n").unwrap();
    assert_eq!(greedy.line(LIMIT).unwrap(), "again");
    greedy.feed(b"").unwrap();
    let output = greedy.wait(LIMIT).unwrap();
    assert_eq!(output.status, 0, "{output}");
}

/// A guest that registers more at once than it may have mapped gets something smaller, before and after.
fn one_is_too_large(scene: &Scene) {
    let mut large = scene.vm.spawn("exec rig-guest large /run/c").unwrap();
    for _ in 0..2 {
        assert_eq!(large.line(LIMIT).unwrap(), ENOMEM);
        scene.data_flow(A_FEW);
        large.write(b"\n").unwrap();
    }
    assert_eq!(large.line(LIMIT).unwrap(), "small");
    let output = large.wait(LIMIT).unwrap();
    assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
    passed("large", &format!("{FEW} mappings in the kernel: ENOMEM for 64 MiB in one region, 2 MiB succeed"));
}

/// The daemon has ended, and has warned of this and nothing else.
fn ended(scene: &Scene, output: &Output, warning: &str) {
    until("the kernel resets the card", || Ok(scene.is_untouched())).unwrap();
    assert!(output.stderr.lines().all(|line| line.contains(warning)), "{output}");
    assert!(!output.stderr.is_empty(), "nobody was warned");
}

pub(crate) fn mappings_run_out(scene: &Scene) {
    let limit = |entries| scene.vm.check(&format!("echo {entries} > {ENTRIES}")).unwrap();
    limit(FEW);
    let daemon = scene.daemon_of("", &["a", "b", "c", "d", "e", "f", "g"], LIMIT);
    limit(MANY);
    let players = scene.play();
    one_is_too_large(scene);
    let (all, regions) = greedy(scene, "/run/c /run/d /run/e /run/f /run/g");
    // Each may have a quarter of what there is; the last finds less.
    let [first, second, third, .., last] = regions[..] else { panic!("{regions:?}") };
    assert!(first > 3 && [second, third] == [first; 2] && last < first, "{regions:?}");
    room_comes_back(scene, all);
    let messages = players.stop();
    ended(scene, &daemon.0.kill().unwrap(), "dma_entry_limit");
    passed(
        "mappings",
        &format!("{FEW} in the kernel: ENOMEM after {regions:?} of 2 MiB; {messages} of others"),
    );
}

pub(crate) fn locked_memory_runs_out(scene: &Scene) {
    let few = scene.vm.run_within(LIMIT, &command("rig-guest confined 1", &["a"])).unwrap();
    assert_eq!(few.status, 1, "{few}");
    assert!(few.stderr.contains("LimitMEMLOCK=infinity"), "{few}");
    let by = format!("rig-guest confined {LOCKED}");
    let daemon = scene.daemon_of(&by, &["a", "b", "c"], LIMIT);
    let players = scene.play();
    let (all, regions) = greedy(scene, "/run/c");
    assert!(regions[0] > 3, "{regions:?}");
    room_comes_back(scene, all);
    let messages = players.stop();
    daemon.0.signal(SIGTERM).unwrap();
    let output = daemon.0.wait(LIMIT).unwrap();
    assert_eq!(output.status, 0, "{output}");
    ended(scene, &output, "LimitMEMLOCK=infinity");
    passed("memlock", &format!("{LOCKED} MiB: ENOMEM after {regions:?} of 2 MiB; {messages} of others"));
}
