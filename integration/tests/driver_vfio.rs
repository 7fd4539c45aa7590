//! Our driver on a card behind a real kernel's VFIO: in a guest with a virtual IOMMU, where the model's cards
//! are bound to vfio-pci. The demo runs there, and the driver's own tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use integration::{Model, Rig, Vm, VmConfig, passed};

/// Where cards are in a guest.
const CARDS: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];
const LIMIT: Duration = Duration::from_secs(120);
/// What the demo may take under TCG.
const DEMO_LIMIT: Duration = Duration::from_secs(400);
/// What a file of tests may take, beside other VMs.
const SUITE_LIMIT: Duration = Duration::from_secs(400);

/// Gives a card to vfio-pci.
fn bind(vm: &Vm, card: &str) {
    let folder = format!("/sys/bus/pci/devices/{card}");
    vm.check(&format!(
        "echo vfio-pci > {folder}/driver_override && echo {card} > /sys/bus/pci/drivers_probe"
    ))
    .unwrap();
}

#[test]
fn our_driver_brings_the_port_up_through_vfio_and_leaves_nothing_behind() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &[]).unwrap();
    let vm = rig.boot(VmConfig::new("a").memory_mib(1024).iommu().hca(model.socket(0))).unwrap();
    let program = integration::program("integration", "rig-driver").unwrap();
    vm.put("/bin/rig-driver", 0o755, &std::fs::read(program).unwrap()).unwrap();
    let untouched = model.dump().unwrap();

    let unbound = vm.run(&format!("rig-driver vfio:{}", CARDS[0])).unwrap();
    assert_ne!(unbound.status, 0, "{unbound}");
    assert!(
        unbound.stderr.contains("vfio-pci"),
        "an unbound card's error says what to bind it to: {unbound}"
    );

    vm.check("modprobe -a vfio-pci vfio_iommu_type1").unwrap();
    bind(&vm, CARDS[0]);
    for _ in 0..2 {
        let run = vm.check_within(LIMIT, &format!("RUST_LOG=info rig-driver vfio:{}", CARDS[0])).unwrap();
        assert!(run.contains("port 1 ACTIVE lid "), "{run}");
        assert!(run.contains("rdma write of 65536 bytes verified"), "{run}");
        assert!(run.ends_with("closed\n"), "{run}");
        assert_eq!(model.dump().unwrap(), untouched);
    }
    vm.shutdown().unwrap();
    model.stop().unwrap();
}

/// Files of the driver's tests that run over VFIO in every run of the tests, and those that do with `--all`: each
/// test takes seconds here, since both cards are reset, brought up and linked for it.
const ALWAYS: [&str; 3] = ["rc", "memory", "fast"];
const WITH_ALL: [&str; 9] =
    ["uc", "datagrams", "completion", "bring_up", "management", "windows", "xrc", "foreign", "failure"];
/// Files that never do.
const NEVER: [(&str, &str); 2] = [
    ("corrupt", "lies of a card that are made inside the model"),
    ("scale", "counts the card's pages, and ten thousands of commands take a quarter of an hour in this VM"),
];
/// The cases of a hostile guest's that change its memory table, and more of them with `--all`.
const CHANGES: [&str; 1] = ["in traffic: "];
const MORE_CHANGES: [&str; 3] = ["memory: truncated", "memory: holes", "memory: a region goes"];
/// Tests of those files that can't run on a card that is elsewhere, each with why.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    ("bring_up", "driver_brings_the_model_up_to_active_and_leaves_nothing_behind", INSIDE),
    ("bring_up", "driver_can_be_opened_again_after_it_was_closed", TWO_PORTS),
    ("bring_up", "link_of_one_port_goes_down_and_comes_up_and_the_other_works_on", TWO_PORTS),
    ("bring_up", "driver_whose_qp0_is_mute_leaves_its_port_in_init", INSIDE),
    ("memory", "icm_grows_with_objects_and_shrinks_when_they_are_gone", INSIDE),
    ("failure", "failed_firmware_is_noticed_and_told_and_the_device_can_be_opened_again", FAULTY),
    ("failure", "whichever_command_fails_in_the_device_itself_no_memory_is_taken_from_it", FAULTY),
    ("failure", "memory_of_tables_that_the_device_has_kept_is_taken_back_before_it_is_used_again", FAULTY),
    ("failure", "queue_has_moved_although_the_device_does_not_give_back_what_was_of_its_old_ring", FAULTY),
    ("failure", "whichever_command_is_refused_everything_is_given_back", LARGE),
    ("failure", "whichever_command_is_not_answered_no_memory_is_taken_from_the_device", LARGE),
];
const INSIDE: &str = "looks into the card";
const TWO_PORTS: &str = "needs a card with two ports";
const FAULTY: &str = "makes the card fail from inside";
const LARGE: &str = "registers 300 MiB for every command that can fail";

/// Runs one file in a guest, whose cards are bound to vfio-pci.
fn run_file(vm: &Vm, seam: &str, file: &str) {
    let program = integration::test_program("driver", file).unwrap();
    vm.put("/bin/suite", 0o755, &std::fs::read(program).unwrap()).unwrap();
    let tests = vm.check("suite --list").unwrap();
    let all: Vec<_> = tests.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let left_out: Vec<_> = LEFT_OUT.iter().filter(|(of, ..)| *of == file).collect();
    let mut command = format!("{seam} suite --test-threads 1 --exact");
    for (_, test, why) in &left_out {
        assert!(all.contains(test), "{file} has no test {test}");
        command += &format!(" --skip {test}");
        println!("not    {file}  {test}: {why}");
    }
    let run = vm.check_within(SUITE_LIMIT, &format!("{command} 2>&1")).unwrap();
    let ended_well = run.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ok")).count();
    assert_eq!(ended_well + left_out.len(), all.len(), "{run}");
    passed(format!("{file}: {ended_well} of {} tests of the driver, through VFIO", all.len()));
}

/// The demo's guests share a card; they have no direct doorbells, and the card's inside is compared here. Their
/// memory is of large pages: the virtual IOMMU tells the model of each page, and it takes 65,535 of them.
fn demo_passes(vm: &Vm) {
    vm.check("echo always > /sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap();
    let program = integration::program("paraverbs-cli", "paraverbs").unwrap();
    vm.put("/bin/paraverbs", 0o755, &std::fs::read(program).unwrap()).unwrap();
    let text = vm.check_within(DEMO_LIMIT, &format!("paraverbs demo --device vfio:{}", CARDS[0])).unwrap();
    let not_made: Vec<_> = text.lines().filter(|line| line.starts_with("-  ")).collect();
    let names: Vec<_> = not_made.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(names, ["direct", "work-requests", "payload", "rejected-keys", "teardown"], "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert_eq!(last, "demo: 13 checks passed, 0 failed, 5 can't be made", "{text}");
    passed(format!("demo through VFIO: {last}"));
}

/// A guest whose memory comes and goes while the card uses it; the daemon maps and unmaps.
fn memory_tables_change(vm: &Vm) {
    let program = integration::test_program("integration", "hostile_guest").unwrap();
    vm.put("/bin/hostile", 0o755, &std::fs::read(program).unwrap()).unwrap();
    let run = format!("PARAVERBS_DEVICE=vfio:{} hostile --nocapture", CARDS[0]);
    let more: &[&str] = if integration::all() { &MORE_CHANGES } else { &[] };
    for cases in CHANGES.iter().chain(more) {
        let text = vm.check_within(SUITE_LIMIT, &format!("PARAVERBS_CASES='{cases}' {run} 2>&1")).unwrap();
        let settled: Vec<_> = text.lines().filter(|line| line.contains(", settled after ")).collect();
        assert!(!settled.is_empty(), "{text}");
        settled.iter().for_each(|line| passed(format!("through VFIO: {line}")));
    }
}

/// A guest with two cards that are bound to vfio-pci, and what is left in them.
struct Scene {
    model: Model,
    vm: Vm,
    untouched: serde_json::Value,
}

impl Scene {
    fn new(rig: &Rig, memory_mib: u32) -> Self {
        let model = Model::start(rig, CARDS.len(), &[]).unwrap();
        let config = VmConfig::new("a").memory_mib(memory_mib).iommu();
        let vm = rig.boot(config.hca(model.socket(0)).hca(model.socket(1))).unwrap();
        let untouched = model.dump().unwrap();
        vm.check("modprobe -a vfio-pci vfio_iommu_type1").unwrap();
        CARDS.iter().for_each(|card| bind(&vm, card));
        Self { model, vm, untouched }
    }

    /// Nothing is left in the cards, and they were refused nothing.
    fn is_unharmed(&self, after: &str) {
        assert_eq!(self.model.dump().unwrap(), self.untouched, "{after} left something");
        for card in 0..CARDS.len() {
            assert_eq!(self.model.count(card, "refused_accesses").unwrap(), 0, "{after}");
        }
    }

    fn end(self) {
        self.vm.shutdown().unwrap();
        self.model.stop().unwrap();
    }
}

#[test]
fn demo_and_guests_whose_memory_changes_pass_through_vfio() {
    let rig = Rig::prepare().unwrap();
    let scene = Scene::new(&rig, 3072);
    demo_passes(&scene.vm);
    scene.is_unharmed("the demo");
    memory_tables_change(&scene.vm);
    scene.is_unharmed("changes of memory tables");
    scene.end();
}

#[test]
fn driver_s_own_tests_pass_through_vfio() {
    let rig = Rig::prepare().unwrap();
    let scene = Scene::new(&rig, 1024);
    let seam = format!("PARAVERBS_SEAM=vfio:{},vfio:{}", CARDS[0], CARDS[1]);
    let more: &[&str] = if integration::all() { &WITH_ALL } else { &[] };
    for file in ALWAYS.iter().chain(more) {
        run_file(&scene.vm, &seam, file);
        scene.is_unharmed(file);
    }
    for file in WITH_ALL.iter().filter(|_| !integration::all()) {
        println!("not    {file}  only with --all");
    }
    NEVER.iter().for_each(|(file, why)| println!("not    {file}  {why}"));
    scene.end();
}

#[test]
fn every_file_of_the_driver_s_tests_is_in_a_list() {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx4/driver/tests");
    let names = std::fs::read_dir(tests).unwrap().map(|entry| entry.unwrap().file_name());
    let mut files: Vec<_> =
        names.filter_map(|name| Some(name.to_str()?.strip_suffix(".rs")?.to_owned())).collect();
    let never = NEVER.map(|(file, _)| file);
    let mut listed: Vec<_> = ALWAYS.iter().chain(&WITH_ALL).chain(&never).copied().collect();
    files.sort();
    listed.sort();
    assert_eq!(files, listed);
}
