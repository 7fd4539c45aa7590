//! Which attributes a change of a queue pair needs and allows, by its type (`ibv_modify_qp(3)`, IBTA 11.2.5.2).

use virtio_rdma::Reason;
use virtio_rdma::request::queue_pair::QpAttrMask as Mask;

use crate::hca::{QpKind, QpState};

/// The attributes of one kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    needed: Mask,
    allowed: Mask,
}

const fn any(masks: &[Mask]) -> Mask {
    let mut all = Mask::NONE;
    let mut index = 0;
    while index < masks.len() {
        all = all.union(masks[index]);
        index += 1;
    }
    all
}

const CONNECT: Mask = any(&[Mask::AV, Mask::PATH_MTU, Mask::DEST_QPN, Mask::RQ_PSN]);
const RESPONDER: Mask = any(&[Mask::MAX_DEST_RD_ATOMIC, Mask::MIN_RNR_TIMER]);
const REQUESTER: Mask = any(&[Mask::MAX_QP_RD_ATOMIC, Mask::RETRY_CNT, Mask::RNR_RETRY]);
const INIT_CONNECTED: Mask = any(&[Mask::PKEY_INDEX, Mask::PORT, Mask::ACCESS_FLAGS]);
const INIT_DATAGRAM: Mask = any(&[Mask::PKEY_INDEX, Mask::PORT, Mask::QKEY]);
/// What a connection may change while it is ready to send.
const RUNNING: Mask = any(&[Mask::CUR_STATE, Mask::ALT_PATH, Mask::ACCESS_FLAGS, Mask::PATH_MIG_STATE]);

/// Whether a type answers as a responder with RNR NAKs.
const fn responds(kind: QpKind) -> bool {
    matches!(kind, QpKind::Rc | QpKind::XrcRecv)
}

const fn requests(kind: QpKind) -> bool {
    matches!(kind, QpKind::Rc | QpKind::XrcSend)
}

fn rule(needed: Mask, allowed: Mask) -> Option<Rule> {
    Some(Rule { needed, allowed })
}

fn to_init(kind: QpKind, from: QpState) -> Option<Rule> {
    let all = if kind == QpKind::Ud { INIT_DATAGRAM } else { INIT_CONNECTED };
    match from {
        QpState::Reset => rule(all, Mask::NONE),
        QpState::Init => rule(Mask::NONE, all),
        _ => None,
    }
}

fn to_rtr(kind: QpKind) -> Option<Rule> {
    match kind {
        QpKind::Ud => rule(Mask::NONE, any(&[Mask::PKEY_INDEX, Mask::QKEY])),
        _ => rule(
            if responds(kind) { CONNECT | RESPONDER } else { CONNECT },
            any(&[Mask::ALT_PATH, Mask::ACCESS_FLAGS, Mask::PKEY_INDEX]),
        ),
    }
}

/// What may change on the way to, or in, RTS.
fn running(kind: QpKind) -> Mask {
    match kind {
        QpKind::Ud => any(&[Mask::CUR_STATE, Mask::QKEY]),
        _ if responds(kind) => RUNNING | Mask::MIN_RNR_TIMER,
        _ => RUNNING,
    }
}

fn first_rts(kind: QpKind) -> Mask {
    match kind {
        QpKind::Ud | QpKind::Uc => Mask::SQ_PSN,
        _ if requests(kind) => any(&[Mask::SQ_PSN, Mask::TIMEOUT]) | REQUESTER,
        _ => any(&[Mask::SQ_PSN, Mask::TIMEOUT]),
    }
}

fn to_rts(kind: QpKind, from: QpState) -> Option<Rule> {
    match from {
        QpState::Rtr => rule(first_rts(kind), running(kind)),
        QpState::Rts | QpState::Sqd => rule(Mask::NONE, running(kind)),
        QpState::Sqe if kind == QpKind::Ud => rule(Mask::NONE, running(kind)),
        QpState::Sqe if kind == QpKind::Uc => rule(Mask::NONE, any(&[Mask::CUR_STATE, Mask::ACCESS_FLAGS])),
        _ => None,
    }
}

fn to_sqd(kind: QpKind, from: QpState) -> Option<Rule> {
    let connected =
        any(&[Mask::AV, Mask::ALT_PATH, Mask::ACCESS_FLAGS, Mask::PKEY_INDEX, Mask::PATH_MIG_STATE]);
    match (from, kind) {
        (QpState::Rts, _) => rule(Mask::NONE, Mask::EN_SQD_ASYNC_NOTIFY),
        (QpState::Sqd, QpKind::Ud) => rule(Mask::NONE, any(&[Mask::PKEY_INDEX, Mask::QKEY])),
        (QpState::Sqd, QpKind::Uc) => rule(Mask::NONE, connected),
        (QpState::Sqd, _) => {
            let mut allowed = connected | any(&[Mask::PORT, Mask::TIMEOUT]);
            if responds(kind) {
                allowed = allowed | RESPONDER;
            }
            if requests(kind) {
                allowed = allowed | REQUESTER;
            }
            rule(Mask::NONE, allowed)
        }
        _ => None,
    }
}

fn rule_of(kind: QpKind, from: QpState, to: QpState) -> Option<Rule> {
    match to {
        QpState::Reset | QpState::Err => rule(Mask::NONE, Mask::NONE),
        QpState::Init => to_init(kind, from),
        QpState::Rtr if from == QpState::Init => to_rtr(kind),
        QpState::Rts => to_rts(kind, from),
        QpState::Sqd => to_sqd(kind, from),
        QpState::Rtr | QpState::Sqe => None,
    }
}

/// Whether a queue pair of this type may go from one state to the other with these attributes.
pub(super) fn check(kind: QpKind, from: QpState, to: QpState, mask: Mask) -> Result<(), Reason> {
    let rule = rule_of(kind, from, to).ok_or(Reason::BAD_TRANSITION)?;
    let allowed = rule.needed | rule.allowed | Mask::STATE;
    if mask.contains(rule.needed) && allowed.contains(mask) {
        Ok(())
    } else {
        Err(Reason::BAD_ATTRIBUTE_MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [QpState; 7] =
        [QpState::Reset, QpState::Init, QpState::Rtr, QpState::Rts, QpState::Sqd, QpState::Sqe, QpState::Err];
    const KINDS: [QpKind; 5] = [QpKind::Rc, QpKind::Uc, QpKind::Ud, QpKind::XrcSend, QpKind::XrcRecv];

    #[test]
    fn every_state_goes_to_reset_and_error_with_the_state_alone() {
        for (kind, from) in KINDS.iter().flat_map(|kind| STATES.map(|from| (*kind, from))) {
            for to in [QpState::Reset, QpState::Err] {
                assert_eq!(check(kind, from, to, Mask::STATE), Ok(()));
                assert_eq!(check(kind, from, to, Mask::STATE | Mask::QKEY), Err(Reason::BAD_ATTRIBUTE_MASK));
            }
            assert_eq!(check(kind, from, QpState::Sqe, Mask::STATE), Err(Reason::BAD_TRANSITION));
        }
    }

    #[test]
    fn connection_needs_what_the_specification_lists() {
        let rc = CONNECT | RESPONDER | Mask::STATE;
        assert_eq!(check(QpKind::Rc, QpState::Init, QpState::Rtr, rc), Ok(()));
        for bit in
            (0..32).map(|bit| Mask::from_bits(1 << bit)).filter(|bit| (CONNECT | RESPONDER).contains(*bit))
        {
            let lacking = check(QpKind::Rc, QpState::Init, QpState::Rtr, rc.without(bit));
            assert_eq!(lacking, Err(Reason::BAD_ATTRIBUTE_MASK), "{bit:?}");
        }
        assert_eq!(check(QpKind::Uc, QpState::Init, QpState::Rtr, rc), Err(Reason::BAD_ATTRIBUTE_MASK));
        assert_eq!(check(QpKind::XrcSend, QpState::Init, QpState::Rtr, CONNECT | Mask::STATE), Ok(()));
        assert_eq!(check(QpKind::XrcRecv, QpState::Rtr, QpState::Rts, Mask::SQ_PSN | Mask::TIMEOUT), Ok(()));
        assert_eq!(check(QpKind::Ud, QpState::Init, QpState::Rtr, Mask::STATE), Ok(()));
    }

    #[test]
    fn states_are_not_skipped() {
        for kind in KINDS {
            for (from, to) in [
                (QpState::Reset, QpState::Rtr),
                (QpState::Reset, QpState::Rts),
                (QpState::Init, QpState::Rts),
                (QpState::Err, QpState::Rts),
                (QpState::Rts, QpState::Init),
                (QpState::Rtr, QpState::Rtr),
            ] {
                let all = Mask::from_bits(0x1f_ffff);
                assert_eq!(
                    check(kind, from, to, all),
                    Err(Reason::BAD_TRANSITION),
                    "{kind:?} {from:?} {to:?}"
                );
            }
        }
        assert_eq!(check(QpKind::Rc, QpState::Sqe, QpState::Rts, Mask::STATE), Err(Reason::BAD_TRANSITION));
        assert_eq!(check(QpKind::Ud, QpState::Sqe, QpState::Rts, Mask::STATE), Ok(()));
    }
}
