//! Whether an SMP may pass a port's M_Key (IBTA vol. 1, 14.2.4).

use std::time::{Duration, Instant};

use mlx4_wire::mad::header::Method;
use mlx4_wire::mad::smp::Smp;

use super::port::PortState;

/// The outcome of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MKeyCheck {
    /// The SMP may do what it asks for.
    Pass,
    /// It may read, but not the M_Key itself.
    PassHidden,
    /// It gets no answer.
    Violation,
}

impl PortState {
    /// Checks the M_Key of a Get, Set or TrapRepress, counts a violation, and works the lease: a violation
    /// starts it, a right key stops it, and when it ends the protection is off.
    pub(super) fn check_m_key(&self, smp: &Smp, ignore: bool, now: Instant) -> MKeyCheck {
        let mut settings = self.settings();
        if settings.lease_end.is_some_and(|end| end <= now) {
            settings.lease_end = None;
            settings.info.link.set_m_key_protect_bits(0);
        }
        let m_key = settings.info.m_key;
        if ignore || m_key.get() == 0 || m_key == smp.m_key {
            settings.lease_end = None;
            return MKeyCheck::Pass;
        }
        let protect_bits = settings.info.link.m_key_protect_bits();
        if smp.header.method == Method::GET && protect_bits < 2 {
            return if protect_bits == 0 { MKeyCheck::Pass } else { MKeyCheck::PassHidden };
        }
        self.m_key_violations.count();
        let period = settings.info.m_key_lease_period.get();
        if period != 0 && settings.lease_end.is_none() {
            settings.lease_end = now.checked_add(Duration::from_secs(period.into()));
        }
        MKeyCheck::Violation
    }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::mad::notice::Trap;
    use mlx4_wire::mad::portinfo::{PortInfo, PortState as LogicalState};
    use mlx4_wire::mad::smp::SmpAttribute;
    use mlx4_wire::{U16, U64};

    use super::super::testing::{active_ca, port_info, send, set_ok, smp};
    use super::super::{MadInput, NodeState};
    use super::*;

    const KEY: u64 = 0x1234;

    fn guarded(protect_bits: u8, lease: u16) -> NodeState {
        let node = active_ca();
        let mut info = port_info(LogicalState::NO_CHANGE);
        info.m_key = U64::new(KEY);
        info.m_key_lease_period = U16::new(lease);
        info.link.set_m_key_protect_bits(protect_bits);
        set_ok(&node, 1, &info);
        node
    }

    fn with_key(method: Method, key: u64) -> Smp {
        let mut smp = smp(method, SmpAttribute::PORT_INFO, 1);
        smp.m_key = U64::new(key);
        smp.set_attribute(&port_info(LogicalState::NO_CHANGE));
        smp
    }

    fn key_shown(node: &NodeState, key: u64) -> Option<u64> {
        let reply = send(node, 1, &with_key(Method::GET, key)).reply?;
        Some(Smp::from_mad(&reply).attribute::<PortInfo>().m_key.get())
    }

    #[test]
    fn get_shows_the_key_by_protect_bits() {
        assert_eq!(key_shown(&guarded(0, 0), 0), Some(KEY));
        assert_eq!(key_shown(&guarded(1, 0), 0), Some(0));
        assert_eq!(key_shown(&guarded(1, 0), KEY), Some(KEY));
        assert_eq!(key_shown(&guarded(2, 0), 0), None);
        assert_eq!(key_shown(&guarded(3, 0), 0), None);
        assert_eq!(key_shown(&guarded(3, 0), KEY), Some(KEY));
    }

    #[test]
    fn set_with_a_wrong_key_is_dropped_counted_and_told() {
        let node = guarded(0, 0);
        let answer = send(&node, 1, &with_key(Method::SET, 5));
        assert_eq!(answer.reply, None);
        let trap = answer.changes.trap.expect("trap");
        assert_eq!(trap.trap_number.get(), Trap::BAD_M_KEY.0);
        assert_eq!(trap.details[2..4], [0, 3], "the sender's LID");
        assert_eq!(trap.details[14..22], [0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(node.port(1).expect("port").m_key_violations.get(), 1);
    }

    #[test]
    fn ignored_key_lets_the_host_in() {
        let node = guarded(3, 0);
        let input = MadInput { ignore_mkey: true, slid: 0 };
        let answer = node.process_mad(1, &with_key(Method::SET, 5).to_mad(), &input);
        assert!(answer.reply.is_some());
        assert_eq!(node.port(1).expect("port").m_key(), 0);
    }

    #[test]
    fn trap_repress_is_heard_and_not_answered() {
        let node = guarded(0, 0);
        let mut repress = with_key(Method::TRAP_REPRESS, KEY);
        repress.header.attribute_id.set(SmpAttribute::NOTICE.0);
        let answer = send(&node, 1, &repress);
        assert_eq!((answer.reply, answer.changes.trap_repressed), (None, Some(0x55)));
        repress.m_key = U64::new(KEY + 1);
        assert_eq!(send(&node, 1, &repress).changes.trap_repressed, None);
    }

    #[test]
    fn lease_ends_the_protection_unless_the_manager_comes_back() {
        let node = guarded(2, 10);
        let port = node.port(1).expect("port");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let wrong = with_key(Method::GET, 0);
        let right = with_key(Method::GET, KEY);
        assert_eq!(port.check_m_key(&wrong, false, at(0)), MKeyCheck::Violation);
        assert_eq!(port.check_m_key(&right, false, at(5)), MKeyCheck::Pass);
        assert_eq!(port.check_m_key(&wrong, false, at(11)), MKeyCheck::Violation);
        assert_eq!(port.check_m_key(&wrong, false, at(20)), MKeyCheck::Violation);
        assert_eq!(port.check_m_key(&wrong, false, at(21)), MKeyCheck::Pass);
        assert_eq!(port.m_key(), KEY, "the key itself stays");
        let set = with_key(Method::SET, 0);
        assert_eq!(port.check_m_key(&set, false, at(22)), MKeyCheck::Violation);
    }
}
