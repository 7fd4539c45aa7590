//! Attributes of queue pairs, and which of them a transition needs or takes (IBTA vol. 1, 11.2.5.2).

use mlx4_wire::ctx::qp::{Mtu, PathMigration, QpState};

use crate::error::{Error, Result};
use crate::path::Path;
use crate::region::Access;

/// Attributes that a transition changes. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Index in the port's P_Key table.
    pub pkey_index: Option<u8>,
    /// Port, from 1.
    pub port: Option<u8>,
    /// What the other end may do; local writes don't matter.
    pub access: Option<Access>,
    /// Q_Key.
    pub qkey: Option<u32>,
    /// Path to the other end.
    pub path: Option<Path>,
    /// Greatest packet.
    pub mtu: Option<Mtu>,
    /// Queue pair at the other end, 24 bits.
    pub remote_qpn: Option<u32>,
    /// First PSN that comes, 24 bits.
    pub receive_psn: Option<u32>,
    /// Reads and atomics that the other end may have under way.
    pub responder_reads: Option<u8>,
    /// Shortest time that the other end shall wait after an RNR NAK (IBTA table 45).
    pub min_rnr_timer: Option<u8>,
    /// First PSN that goes out, 24 bits.
    pub send_psn: Option<u32>,
    /// Local ACK timeout: 4.096 µs × 2^n; 0 is none.
    pub timeout: Option<u8>,
    /// Retries after a timeout.
    pub retry_count: Option<u8>,
    /// Retries after an RNR NAK; 7 is without end.
    pub rnr_retry: Option<u8>,
    /// Reads and atomics that this side has under way.
    pub requester_reads: Option<u8>,
    /// Alternate path, with its P_Key index and timeout.
    pub alternate: Option<AlternatePath>,
    /// Path migration state.
    pub migration: Option<PathMigration>,
    /// RTS to SQD only: an event tells that the send queue is drained.
    pub drained_event: bool,
}

/// The path that a queue pair migrates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlternatePath {
    /// The path.
    pub path: Path,
    /// Index in its port's P_Key table.
    pub pkey_index: u8,
    /// Local ACK timeout.
    pub timeout: u8,
}

/// A set of attributes.
type Set = u32;

const PKEY: Set = 1 << 0;
const PORT: Set = 1 << 1;
const ACCESS: Set = 1 << 2;
const QKEY: Set = 1 << 3;
const PATH: Set = 1 << 4;
const MTU: Set = 1 << 5;
const REMOTE: Set = 1 << 6;
const RECEIVE_PSN: Set = 1 << 7;
const RESPONDER: Set = 1 << 8;
const MIN_RNR: Set = 1 << 9;
const SEND_PSN: Set = 1 << 10;
const TIMEOUT: Set = 1 << 11;
const RETRY: Set = 1 << 12;
const RNR: Set = 1 << 13;
const REQUESTER: Set = 1 << 14;
const ALTERNATE: Set = 1 << 15;
const MIGRATION: Set = 1 << 16;

/// Names, by bit.
const NAMES: [&str; 17] = [
    "P_Key index",
    "port",
    "access",
    "Q_Key",
    "path",
    "MTU",
    "remote QP number",
    "receive PSN",
    "responder reads",
    "minimum RNR timer",
    "send PSN",
    "timeout",
    "retry count",
    "RNR retry count",
    "requester reads",
    "alternate path",
    "path migration state",
];

fn name(set: Set) -> &'static str {
    NAMES.get(set.trailing_zeros() as usize).copied().unwrap_or("attribute")
}

impl Attributes {
    fn set(&self) -> Set {
        let bit = |given: bool, bit: Set| if given { bit } else { 0 };
        bit(self.pkey_index.is_some(), PKEY)
            | bit(self.port.is_some(), PORT)
            | bit(self.access.is_some(), ACCESS)
            | bit(self.qkey.is_some(), QKEY)
            | bit(self.path.is_some(), PATH)
            | bit(self.mtu.is_some(), MTU)
            | bit(self.remote_qpn.is_some(), REMOTE)
            | bit(self.receive_psn.is_some(), RECEIVE_PSN)
            | bit(self.responder_reads.is_some(), RESPONDER)
            | bit(self.min_rnr_timer.is_some(), MIN_RNR)
            | bit(self.send_psn.is_some(), SEND_PSN)
            | bit(self.timeout.is_some(), TIMEOUT)
            | bit(self.retry_count.is_some(), RETRY)
            | bit(self.rnr_retry.is_some(), RNR)
            | bit(self.requester_reads.is_some(), REQUESTER)
            | bit(self.alternate.is_some(), ALTERNATE)
            | bit(self.migration.is_some(), MIGRATION)
    }

    /// Checks that all attributes are given that a transition needs, and none that it doesn't take.
    pub(super) fn check(&self, role: Role, from: QpState, to: QpState) -> Result<()> {
        let (required, optional) = accepted(role, from, to);
        let given = self.set();
        let missing = required & !given;
        let extra = given & !(required | optional);
        let (which, problem) = match (missing, extra) {
            (0, 0) => return Ok(()),
            (0, extra) => (extra, "can't be given"),
            (missing, _) => (missing, "is missing"),
        };
        Err(Error::Attribute { attribute: name(which), problem, from: state_name(from), to: state_name(to) })
    }
}

/// The name of a state, for messages.
pub(super) fn state_name(state: QpState) -> &'static str {
    state.name().unwrap_or("an unknown state")
}

/// What a queue pair is, as far as its attributes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Rc,
    Uc,
    XrcSend,
    XrcReceive,
    /// Special queue pairs too.
    Datagram,
}

impl Role {
    fn is_connected(self) -> bool {
        self != Self::Datagram
    }

    /// Whether it waits for acknowledgements of what it sends.
    fn requests(self) -> bool {
        matches!(self, Self::Rc | Self::XrcSend)
    }

    /// Whether it acknowledges what comes.
    fn responds(self) -> bool {
        matches!(self, Self::Rc | Self::XrcReceive)
    }
}

fn when(role: bool, set: Set) -> Set {
    if role { set } else { 0 }
}

/// Attributes that a transition needs, and those that it takes besides.
fn accepted(role: Role, from: QpState, to: QpState) -> (Set, Set) {
    use QpState as S;
    let (connected, requests, responds) = (role.is_connected(), role.requests(), role.responds());
    let first = PKEY | PORT | if connected { ACCESS } else { QKEY };
    // What may change in RTS and on the way there.
    let running = if connected { ACCESS | ALTERNATE | MIGRATION | when(responds, MIN_RNR) } else { QKEY };
    match (from, to) {
        (S::RST, S::INIT) => (first, 0),
        (S::INIT, S::INIT) => (0, first),
        (S::INIT, S::RTR) if connected => (
            PATH | MTU | REMOTE | RECEIVE_PSN | when(responds, RESPONDER | MIN_RNR),
            ALTERNATE | ACCESS | PKEY,
        ),
        (S::INIT, S::RTR) => (0, PKEY | QKEY),
        (S::RTR, S::RTS) => {
            let reliable = when(requests || responds, TIMEOUT) | when(requests, RETRY | RNR | REQUESTER);
            (SEND_PSN | reliable, running)
        }
        (S::RTS, S::RTS) | (S::SQD | S::SQ_DRAINING, S::RTS) => (0, running),
        (S::SQER, S::RTS) => match role {
            Role::Uc => (0, ACCESS),
            Role::Datagram => (0, QKEY),
            _ => (0, 0),
        },
        (S::SQD | S::SQ_DRAINING, S::SQD) if connected => {
            let requester = when(requests, RETRY | RNR | REQUESTER);
            let responder = when(responds, RESPONDER | MIN_RNR);
            let reliable = when(requests || responds, TIMEOUT) | requester | responder;
            (0, PKEY | ACCESS | PATH | ALTERNATE | MIGRATION | reliable)
        }
        (S::SQD | S::SQ_DRAINING, S::SQD) => (0, PKEY | QKEY),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_attribute_is_named() {
        let attributes = Attributes { port: Some(1), pkey_index: Some(0), ..Attributes::default() };
        let error = attributes.check(Role::Rc, QpState::RST, QpState::INIT).unwrap_err();
        assert_eq!(error.to_string(), "access is missing for a transition from RST to INIT");
        let error = attributes.check(Role::Datagram, QpState::RST, QpState::INIT).unwrap_err();
        assert_eq!(error.to_string(), "Q_Key is missing for a transition from RST to INIT");
    }

    #[test]
    fn attribute_that_the_transition_does_not_take_is_named() {
        let attributes = Attributes { send_psn: Some(1), mtu: Some(Mtu::MTU_256), ..Attributes::default() };
        let error = attributes.check(Role::Datagram, QpState::RTR, QpState::RTS).unwrap_err();
        assert_eq!(error.to_string(), "MTU can't be given for a transition from RTR to RTS");
        let attributes = Attributes { qkey: Some(1), ..Attributes::default() };
        assert!(attributes.check(Role::Datagram, QpState::RTS, QpState::ERR).is_err());
    }

    #[test]
    fn ends_of_an_extended_connection_need_what_their_direction_has() {
        let rtr = Attributes {
            path: Some(Path::local(1, 2, 0)),
            mtu: Some(Mtu::MTU_1024),
            remote_qpn: Some(3),
            receive_psn: Some(4),
            ..Attributes::default()
        };
        let to_rtr = |role, given: Attributes| given.check(role, QpState::INIT, QpState::RTR).is_ok();
        let responder = Attributes { responder_reads: Some(1), min_rnr_timer: Some(1), ..rtr };
        assert!(to_rtr(Role::XrcSend, rtr) && !to_rtr(Role::XrcSend, responder));
        assert!(to_rtr(Role::XrcReceive, responder) && !to_rtr(Role::XrcReceive, rtr));
        let rts = Attributes { send_psn: Some(1), timeout: Some(14), ..Attributes::default() };
        let requester =
            Attributes { retry_count: Some(7), rnr_retry: Some(7), requester_reads: Some(1), ..rts };
        let to_rts = |role, given: Attributes| given.check(role, QpState::RTR, QpState::RTS).is_ok();
        assert!(to_rts(Role::XrcSend, requester) && !to_rts(Role::XrcSend, rts));
        assert!(to_rts(Role::XrcReceive, rts) && !to_rts(Role::XrcReceive, requester));
    }

    #[test]
    fn every_attribute_has_a_name() {
        let attributes = Attributes { migration: Some(PathMigration::MIGRATED), ..Attributes::default() };
        assert_eq!(name(attributes.set()), "path migration state");
        let attributes = Attributes { pkey_index: Some(0), ..Attributes::default() };
        assert_eq!(name(attributes.set()), "P_Key index");
    }
}
