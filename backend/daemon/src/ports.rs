//! Waiting for the HCA's ports.

use std::thread;
use std::time::{Duration, Instant};

use paraverbs_hca::Mlx4Hca;
use paraverbs_tenant::hca::Hca as _;

/// How long a subnet manager has before guests are served without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often ports are looked at.
const PAUSE: Duration = Duration::from_millis(10);
/// A port's state ACTIVE, as verbs numbers them.
pub(crate) const ACTIVE: u8 = 4;

/// Waits until each port is ACTIVE, for a while; warns of those that aren't. False if it was cancelled.
pub(crate) fn wait_active(hca: &Mlx4Hca, cancelled: &dyn Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    for port in 1..=hca.device().ports {
        while !hca.query_port(port).is_ok_and(|info| info.state == ACTIVE) {
            if cancelled() {
                return false;
            }
            if Instant::now() >= deadline {
                log::warn!(
                    "port {port} is not ACTIVE after {} s, guests are served all the same; look for its cable \
                     and for a subnet manager",
                    PATIENCE.as_secs()
                );
                break;
            }
            thread::sleep(PAUSE);
        }
    }
    true
}
