//! The daemon on a card behind a real kernel's VFIO: a guest with a virtual IOMMU, in which the model's card is
//! bound to vfio-pci, `paraverbsd` drives it, and processes exchange data through the daemon.
//!
//! The card outside counts what it did itself: work requests, payload, and accesses to memory that the IOMMU
//! refused it.
//!
//! - `scene`: the VM, and the daemon in it
//! - `bound`: the card goes to VFIO, and back
//! - `traffic`: two guests exchange data
//! - `killed`: the daemon is killed meanwhile
//! - `changing`: a guest's memory table changes
//! - `limits`: mappings and locked memory run out

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod bound;
mod changing;
mod killed;
mod limits;
mod scene;
mod traffic;

use integration::Rig;

use crate::scene::{ADDRESS, LIMIT, Scene, passed};

#[test]
fn daemon_serves_processes_through_vfio_and_the_iommu_refuses_the_card_nothing() {
    let rig = Rig::prepare().unwrap();
    let scene = Scene::new(&rig);
    bound::card_moves_to_vfio(&scene);
    traffic::traffic_flows(&scene);
    let daemon = killed::daemon_is_killed(&scene);
    scene.in_large_pages(|| {
        changing::memory_tables_change(&scene, daemon);
        limits::mappings_run_out(&scene);
        limits::locked_memory_runs_out(&scene);
    });
    assert_eq!(scene.count("refused_accesses"), 0);
    passed("refused", "the IOMMU has refused the card no access in all of this");
    memory_is_unmapped_on_purpose(&scene);
    bound::card_moves_back(&scene);
    scene.vm.shutdown().unwrap();
    scene.model.stop().unwrap();
}

fn memory_is_unmapped_on_purpose(scene: &Scene) {
    let output = scene.vm.check_within(LIMIT, &format!("rig-driver vfio:{ADDRESS} unmapped")).unwrap();
    assert!(output.contains("rdma write to unmapped memory: Failed"), "{output}");
    assert_eq!(scene.count("refused_accesses"), 1, "{output}");
    assert!(scene.is_untouched());
    passed("control", "memory unmapped on purpose: the card counts 1 refused access");
}
