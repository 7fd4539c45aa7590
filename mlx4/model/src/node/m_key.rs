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
