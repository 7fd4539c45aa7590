//! The daemon is killed in the middle of DMA.

use std::time::Instant;

use integration::patience::until;

use crate::scene::{ADDRESS, Daemon, LIMIT, RESTART, Scene, passed};

/// Bytes that the guests look at: one MiB on either side of two regions.
const UNCHANGED: &str = "unchanged 4194304";

/// The daemon that serves guests a, b and c at last goes on.
pub(crate) fn daemon_is_killed(scene: &Scene) -> Daemon {
    let daemon = scene.daemon(LIMIT);
    let mut guests = scene.vm.spawn("exec rig-guest guarded /run/a /run/b").unwrap();
    assert_eq!(guests.line(LIMIT).unwrap(), "busy");
    scene.data_flow(100);
    daemon.0.kill().unwrap();
    assert_eq!(guests.line(LIMIT).unwrap(), "ended");
    until("the kernel resets the card", || Ok(scene.is_untouched())).unwrap();
    // Those that came when the kernel had turned bus mastering off.
    let held_back = scene.count("held_back_accesses");
    passed(
        "killed",
        &format!(
            "SIGKILL of the daemon while messages flow: guests see it, the card is reset ({held_back} held back)"
        ),
    );

    let start = Instant::now();
    let daemon = scene.daemon(RESTART);
    let taken = start.elapsed();
    assert!(taken <= RESTART, "{taken:?}");
    passed("restart", &format!("the next daemon serves {:.1} s after its start", taken.as_secs_f64()));
    for process in scene.ping("-c -n 200") {
        let output = process.wait(LIMIT).unwrap();
        assert_eq!(output.status, 0, "{output}");
    }
    guests.write(b"\n").unwrap();
    assert_eq!(guests.line(LIMIT).unwrap(), UNCHANGED);
    guests.feed(b"").unwrap();
    let output = guests.wait(LIMIT).unwrap();
    assert_eq!(output.status, 0, "{output}");
    passed("memory", "what lies around the guests' regions is as it was, also under the next daemon");
    doorbell_page_outlives_the_daemon(scene, daemon)
}

/// A doorbell page that another process has mapped keeps the card from the next daemon.
fn doorbell_page_outlives_the_daemon(scene: &Scene, daemon: Daemon) -> Daemon {
    let vm = &scene.vm;
    let mut holder = vm.spawn("exec rig-guest doorbell $(pidof paraverbsd)").unwrap();
    assert_eq!(holder.line(LIMIT).unwrap(), "mapped");
    daemon.0.kill().unwrap();
    let pid = vm.check("pidof rig-guest").unwrap();
    let named =
        format!("rig-guest (process {}) has doorbell pages (BAR2) of a VFIO device mapped", pid.trim());
    let next = vm.run_within(LIMIT, &format!("paraverbsd --device vfio:{ADDRESS} --guest a=/run/a")).unwrap();
    assert_eq!(next.status, 1, "{next}");
    assert!(next.stderr.contains("is in use: ") && next.stderr.contains(&named), "{next}");
    scene.fails("doctor", &["FAILED  files     in use: ", &named, "end that to have the card"]);
    passed("doorbell", "a page still mapped by another process: daemon and doctor say which");
    holder.kill().unwrap();
    until("the kernel resets the card", || Ok(scene.is_untouched())).unwrap();
    scene.daemon_of("", &["a", "b", "c"], RESTART)
}
