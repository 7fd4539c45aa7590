//! What only the running card can tell: its firmware, its ports, and whether a subnet manager has found them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mlx4::{Config, Hca, PortAttributes};
use mlx4_pci::{PciAddress, VfioPci};

use super::doctor::{Finding, Report};

/// How long a link and a subnet manager have.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// Physical state of a port whose link is up, and state of one that may be used, as IBTA numbers them.
const LINK_UP: u8 = 5;
const ACTIVE: u8 = 4;

/// Notes that the card wasn't asked.
pub(crate) fn leave_out(report: &mut Report) {
    for name in ["firmware", "ports"] {
        report.note(name, Finding::LeftOut("the card can't be opened before the above is mended".into()));
    }
}

/// Brings the card up with the daemon's own driver, looks at it, and gives it back.
pub(crate) fn check(address: PciAddress, report: &mut Report) {
    let open = || -> anyhow::Result<Hca> {
        let device = Arc::new(VfioPci::open(&format!("vfio:{address}"))?);
        Ok(Hca::open(device, &Config { completion_eqs: 1, ..Config::default() })?)
    };
    let hca = match open() {
        Ok(hca) => hca,
        Err(error) => {
            let mend =
                "the message says what is wrong; ports that are Ethernet are made InfiniBand with mlxconfig";
            report.note("firmware", Finding::Bad(format!("{error:#}"), mend.into()));
            report.note("ports", Finding::LeftOut("the card doesn't come up".into()));
            return;
        }
    };
    let (major, minor, subminor) = hca.firmware().version;
    let board = &hca.capabilities().board_id;
    report.note("firmware", Finding::Good(format!("{major}.{minor}.{subminor}, board {board}")));
    let deadline = Instant::now() + PATIENCE;
    for number in (1..).take(hca.capabilities().ports.len()) {
        let (link, manager) = wait_active(&hca, number, deadline);
        report.note("link", link);
        report.note("sm", manager);
    }
    if let Err(error) = hca.close() {
        let mend = "the card was reset; look at the kernel's log (dmesg)";
        report.note("close", Finding::Bad(format!("the card doesn't stop in order: {error}"), mend.into()));
    }
}

/// What there is to say of a port as soon as it is ACTIVE, or when its time is over.
fn wait_active(hca: &Hca, number: u8, deadline: Instant) -> (Finding, Finding) {
    loop {
        let port = match hca.port(number) {
            Ok(port) => port,
            Err(error) => {
                let mend = "look at the kernel's log (dmesg)";
                let seen = format!("port {number} can't be asked: {error}");
                return (Finding::Bad(seen, mend.into()), Finding::LeftOut("the port can't be asked".into()));
            }
        };
        if port.state.0 == ACTIVE || Instant::now() >= deadline {
            return (link(number, &port), manager(number, &port));
        }
        thread::sleep(PAUSE);
    }
}

fn link(number: u8, port: &PortAttributes) -> Finding {
    if port.physical_state == LINK_UP {
        return Finding::Good(format!("port {number} is InfiniBand, and its link is up"));
    }
    Finding::Bad(
        format!("port {number} is InfiniBand, and has no link (physical state {})", port.physical_state),
        "look for its cable, and for the switch at its end".into(),
    )
}

fn manager(number: u8, port: &PortAttributes) -> Finding {
    if port.physical_state != LINK_UP {
        return Finding::LeftOut(format!("port {number} has no link"));
    }
    let (lid, sm) = (port.lid, port.sm_lid);
    if port.state.0 == ACTIVE {
        return Finding::Good(format!("port {number} is ACTIVE, LID {lid}; the subnet manager has LID {sm}"));
    }
    Finding::Bad(
        format!("port {number} is in state {}, LID {lid}: no subnet manager has set it up", port.state.0),
        "start a subnet manager on this network (opensm on a host, or the one in a switch)".into(),
    )
}

#[cfg(test)]
mod tests {
    use mlx4_model::fabric::{Fabric, FabricConfig};
    use mlx4_model::hca::HcaConfig;
    use mlx4_model::seam::ModelDevice;

    use super::*;

    #[test]
    fn card_of_the_model_has_a_link_and_a_subnet_manager() {
        let fabric =
            Fabric::new(FabricConfig { training: Duration::ZERO, ..FabricConfig::default() }).unwrap();
        let config = HcaConfig { node_guid: 0x2c9_0300_a000, ports: 1, trace: None };
        let device = Arc::new(ModelDevice::new(config, &fabric).unwrap());
        let _engine = device.hca().start_engine().unwrap();
        let hca = Hca::open(device, &Config { completion_eqs: 1, ..Config::default() }).unwrap();
        let (link, manager) = wait_active(&hca, 1, Instant::now() + Duration::from_secs(120));
        assert!(matches!(link, Finding::Good(_)), "{link:?}");
        assert!(
            matches!(&manager, Finding::Good(text) if text.starts_with("port 1 is ACTIVE")),
            "{manager:?}"
        );
        let mut port = hca.port(1).unwrap();
        port.state.0 = 2;
        assert!(matches!(super::manager(1, &port), Finding::Bad(..)));
        port.physical_state = 2;
        assert!(matches!(super::link(1, &port), Finding::Bad(..)));
        assert!(matches!(super::manager(1, &port), Finding::LeftOut(_)));
        hca.close().unwrap();
    }
}
