//! What only the running card can tell: its firmware, its ports, and whether a subnet manager has found them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mlx4::{Config, Error, FieldError, Gid, Hca, PortAttributes};
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
            match error.downcast_ref() {
                Some(error) if is_ethernet(error) => {
                    report.note("firmware", Finding::LeftOut("the card isn't brought up".into()));
                    report.note("ports", ethernet(address));
                }
                _ => {
                    let mend = "the message says what is wrong; else the kernel's log (dmesg) may";
                    report.note("firmware", Finding::Bad(format!("{error:#}"), mend.into()));
                    report.note("ports", Finding::LeftOut("the card doesn't come up".into()));
                }
            }
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
        let gids = hca.gids(number);
        report.note(
            "aliases",
            gids.map_or_else(|error| unknown(number, &error), |gids| aliases(number, &gids)),
        );
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
                return (unknown(number, &error), Finding::LeftOut("the port can't be asked".into()));
            }
        };
        if port.state.0 == ACTIVE || Instant::now() >= deadline {
            return (link(number, &port), manager(number, &port));
        }
        thread::sleep(PAUSE);
    }
}

fn unknown(number: u8, error: &Error) -> Finding {
    Finding::Bad(format!("port {number} can't be asked: {error}"), "look at the kernel's log (dmesg)".into())
}

/// Whether the card doesn't come up because InfiniBand is none of a port's types.
fn is_ethernet(error: &Error) -> bool {
    matches!(error, Error::Field(FieldError { structure: "QUERY_PORT", field: "ib", .. }))
}

fn ethernet(address: PciAddress) -> Finding {
    Finding::Bad(
        "a port of the card is set to Ethernet only".into(),
        format!(
            "on a ConnectX-3 VPI card, as root: mlxconfig (or mstconfig, of the package mstflint) -d {address} set \
             LINK_TYPE_P1=1, and LINK_TYPE_P2=1 for port 2; then restart the host. EN cards have no InfiniBand"
        ),
    )
}

/// The GUIDs of a port beside its own, of which guests could have one each.
fn aliases(number: u8, gids: &[Gid]) -> Finding {
    let room = gids.len().saturating_sub(1);
    let assigned = gids.iter().skip(1).filter(|gid| gid[8..] != [0; 8]).count();
    if assigned > 0 {
        return Finding::Good(format!("port {number} has room for {room} alias GUIDs; assigned: {assigned}"));
    }
    Finding::Advice(
        format!(
            "port {number} has room for {room} alias GUIDs, and none is assigned: guests share the port's GID"
        ),
        "nothing to mend: the daemon needs none, and doesn't give guests GUIDs of their own yet".into(),
    )
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
    use mlx4::Rule;
    use mlx4_model::fabric::{Fabric, FabricConfig};
    use mlx4_model::hca::HcaConfig;
    use mlx4_model::seam::ModelDevice;

    use super::*;

    /// No test waits so long.
    const LONG: Duration = Duration::from_secs(120);

    /// What is found of port 1 of a card that is plugged into a fabric, after `settled` is so of it.
    fn found(config: FabricConfig, settled: fn(&PortAttributes) -> bool) -> (Finding, Finding, Finding) {
        let fabric = Fabric::new(config).unwrap();
        let config = HcaConfig { node_guid: 0x2c9_0300_a000, ports: 1, trace: None };
        let device = Arc::new(ModelDevice::new(config, &fabric).unwrap());
        let _engine = device.hca().start_engine().unwrap();
        let hca = Hca::open(device, &Config { completion_eqs: 1, ..Config::default() }).unwrap();
        let deadline = Instant::now() + LONG;
        while !settled(&hca.port(1).unwrap()) {
            assert!(Instant::now() < deadline, "{:?}", hca.port(1));
            thread::sleep(PAUSE);
        }
        // What isn't there by now is taken not to come.
        let (link, manager) = wait_active(&hca, 1, Instant::now());
        let aliases = aliases(1, &hca.gids(1).unwrap());
        hca.close().unwrap();
        (link, manager, aliases)
    }

    fn bad(finding: &Finding) -> (&str, &str) {
        let Finding::Bad(seen, mend) = finding else { panic!("{finding:?}") };
        (seen, mend)
    }

    #[test]
    fn port_with_a_subnet_manager_has_all_but_alias_guids() {
        let (link, manager, aliases) = found(FabricConfig::default(), |port| port.state.0 == ACTIVE);
        assert_eq!(link, Finding::Good("port 1 is InfiniBand, and its link is up".into()));
        assert!(
            matches!(&manager, Finding::Good(text) if text.starts_with("port 1 is ACTIVE")),
            "{manager:?}"
        );
        let Finding::Advice(seen, _) = aliases else { panic!("{aliases:?}") };
        assert_eq!(
            seen,
            "port 1 has room for 127 alias GUIDs, and none is assigned: guests share the port's GID"
        );
    }

    #[test]
    fn port_that_no_subnet_manager_sets_up_is_told_to_have_one_started() {
        let config = FabricConfig { subnet_manager: None, ..FabricConfig::default() };
        let (link, manager, _) = found(config, |port| port.physical_state == LINK_UP);
        assert!(matches!(link, Finding::Good(_)), "{link:?}");
        let (seen, mend) = bad(&manager);
        assert_eq!(seen, "port 1 is in state 2, LID 0: no subnet manager has set it up");
        assert!(mend.starts_with("start a subnet manager on this network (opensm"), "{mend}");
    }

    #[test]
    fn port_without_a_link_is_told_to_look_for_its_cable() {
        let config = FabricConfig { training: 10 * LONG, ..FabricConfig::default() };
        let (link, manager, _) = found(config, |port| port.physical_state == 2);
        let (seen, mend) = bad(&link);
        assert_eq!(seen, "port 1 is InfiniBand, and has no link (physical state 2)");
        assert!(mend.contains("cable"), "{mend}");
        assert_eq!(manager, Finding::LeftOut("port 1 has no link".into()));
    }

    #[test]
    fn port_that_is_ethernet_only_is_told_to_be_made_infiniband() {
        let field = |structure, field| FieldError { structure, field, value: 0, rule: Rule::Is(1) };
        assert!(is_ethernet(&Error::Field(field("QUERY_PORT", "ib"))));
        assert!(!is_ethernet(&Error::Field(field("QUERY_DEV_CAP", "rc"))));
        let finding = ethernet("vfio:0000:01:00.0".parse().unwrap());
        let mend = bad(&finding).1;
        assert!(
            mend.contains("-d 0000:01:00.0 set LINK_TYPE_P1=1, and LINK_TYPE_P2=1 for port 2;"),
            "{mend}"
        );
    }

    #[test]
    fn alias_guids_are_counted() {
        let mut gids = [[0; 16]; 4];
        gids[0][15] = 1;
        gids[2][15] = 9;
        assert_eq!(aliases(2, &gids), Finding::Good("port 2 has room for 3 alias GUIDs; assigned: 1".into()));
    }
}
