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
        // In RESET the HCA has no context of it yet, or that of whoever had the number before.
        QpState::Err if from == QpState::Reset => None,
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
    fn every_state_goes_to_reset_and_all_but_reset_to_error_with_the_state_alone() {
        for (kind, from) in KINDS.iter().flat_map(|kind| STATES.map(|from| (*kind, from))) {
            let error = if from == QpState::Reset { Err(Reason::BAD_TRANSITION) } else { Ok(()) };
            assert_eq!(check(kind, from, QpState::Err, Mask::STATE), error);
            assert_eq!(check(kind, from, QpState::Reset, Mask::STATE), Ok(()));
            let more = check(kind, from, QpState::Reset, Mask::STATE | Mask::QKEY);
            assert_eq!(more, Err(Reason::BAD_ATTRIBUTE_MASK));
        }
    }

    /// What Linux's `ib_modify_qp_is_ok` (drivers/infiniband/core/verbs.c) has: what each type needs and may have
    /// besides, by change. A type that isn't named may not make the change.
    const LINUX: &[(QpState, QpState, &[QpKind], &str, &str)] = {
        use QpKind::{Rc, Uc, Ud, XrcRecv, XrcSend};
        use QpState::{Init, Reset, Rtr, Rts, Sqd, Sqe};
        const ALL: &[QpKind] = &[Rc, Uc, Ud, XrcSend, XrcRecv];
        const CONNECTED: &[QpKind] = &[Rc, Uc, XrcSend, XrcRecv];
        &[
            (Reset, Init, &[Ud], "PKEY_INDEX PORT QKEY", ""),
            (Reset, Init, CONNECTED, "PKEY_INDEX PORT ACCESS_FLAGS", ""),
            (Init, Init, &[Ud], "", "PKEY_INDEX PORT QKEY"),
            (Init, Init, CONNECTED, "", "PKEY_INDEX PORT ACCESS_FLAGS"),
            (Init, Rtr, &[Ud], "", "PKEY_INDEX QKEY"),
            (Init, Rtr, &[Uc, XrcSend], "AV PATH_MTU DEST_QPN RQ_PSN", "ALT_PATH ACCESS_FLAGS PKEY_INDEX"),
            (
                Init,
                Rtr,
                &[Rc, XrcRecv],
                "AV PATH_MTU DEST_QPN RQ_PSN MAX_DEST_RD_ATOMIC MIN_RNR_TIMER",
                "ALT_PATH ACCESS_FLAGS PKEY_INDEX",
            ),
            (Rtr, Rts, &[Ud], "SQ_PSN", "CUR_STATE QKEY"),
            (Rtr, Rts, &[Uc], "SQ_PSN", "CUR_STATE ALT_PATH ACCESS_FLAGS PATH_MIG_STATE"),
            (
                Rtr,
                Rts,
                &[Rc],
                "TIMEOUT RETRY_CNT RNR_RETRY SQ_PSN MAX_QP_RD_ATOMIC",
                "CUR_STATE ALT_PATH ACCESS_FLAGS MIN_RNR_TIMER PATH_MIG_STATE",
            ),
            (
                Rtr,
                Rts,
                &[XrcSend],
                "TIMEOUT RETRY_CNT RNR_RETRY SQ_PSN MAX_QP_RD_ATOMIC",
                "CUR_STATE ALT_PATH ACCESS_FLAGS PATH_MIG_STATE",
            ),
            (
                Rtr,
                Rts,
                &[XrcRecv],
                "TIMEOUT SQ_PSN",
                "CUR_STATE ALT_PATH ACCESS_FLAGS MIN_RNR_TIMER PATH_MIG_STATE",
            ),
            (Rts, Rts, &[Ud], "", "CUR_STATE QKEY"),
            (Rts, Rts, &[Uc, XrcSend], "", "CUR_STATE ACCESS_FLAGS ALT_PATH PATH_MIG_STATE"),
            (Rts, Rts, &[Rc, XrcRecv], "", "CUR_STATE ACCESS_FLAGS ALT_PATH PATH_MIG_STATE MIN_RNR_TIMER"),
            (Rts, Sqd, ALL, "", "EN_SQD_ASYNC_NOTIFY"),
            (Sqd, Rts, &[Ud], "", "CUR_STATE QKEY"),
            (Sqd, Rts, &[Uc, XrcSend], "", "CUR_STATE ALT_PATH ACCESS_FLAGS PATH_MIG_STATE"),
            (Sqd, Rts, &[Rc, XrcRecv], "", "CUR_STATE ALT_PATH ACCESS_FLAGS MIN_RNR_TIMER PATH_MIG_STATE"),
            (Sqd, Sqd, &[Ud], "", "PKEY_INDEX QKEY"),
            (Sqd, Sqd, &[Uc], "", "AV ALT_PATH ACCESS_FLAGS PKEY_INDEX PATH_MIG_STATE"),
            (
                Sqd,
                Sqd,
                &[Rc],
                "",
                "PORT AV TIMEOUT RETRY_CNT RNR_RETRY MAX_QP_RD_ATOMIC MAX_DEST_RD_ATOMIC ALT_PATH ACCESS_FLAGS \
                 PKEY_INDEX MIN_RNR_TIMER PATH_MIG_STATE",
            ),
            (
                Sqd,
                Sqd,
                &[XrcSend],
                "",
                "PORT AV TIMEOUT RETRY_CNT RNR_RETRY MAX_QP_RD_ATOMIC ALT_PATH ACCESS_FLAGS PKEY_INDEX \
                 PATH_MIG_STATE",
            ),
            (
                Sqd,
                Sqd,
                &[XrcRecv],
                "",
                "PORT AV TIMEOUT MAX_DEST_RD_ATOMIC ALT_PATH ACCESS_FLAGS PKEY_INDEX MIN_RNR_TIMER \
                 PATH_MIG_STATE",
            ),
            (Sqe, Rts, &[Ud], "", "CUR_STATE QKEY"),
            (Sqe, Rts, &[Uc], "", "CUR_STATE ACCESS_FLAGS"),
        ]
    };

    fn mask(names: &str) -> Mask {
        let bit = |name| Mask::KNOWN.iter().find(|(known, _)| *known == name).unwrap().1;
        names.split_whitespace().map(bit).fold(Mask::NONE, Mask::union)
    }

    #[test]
    fn changes_need_and_allow_what_linux_does() {
        for (kind, from) in KINDS.iter().flat_map(|kind| STATES.map(|from| (*kind, from))) {
            for to in STATES.into_iter().filter(|to| !matches!(to, QpState::Reset | QpState::Err)) {
                let row = LINUX.iter().find(|row| (row.0, row.1) == (from, to) && row.2.contains(&kind));
                let expected = row.map(|row| Rule { needed: mask(row.3), allowed: mask(row.4) });
                assert_eq!(rule_of(kind, from, to), expected, "{kind:?} {from:?} {to:?}");
            }
        }
    }

    #[test]
    fn mask_has_what_is_needed_and_nothing_that_is_not_allowed() {
        let rc = CONNECT | RESPONDER | Mask::STATE;
        let to_rtr = |kind, mask| check(kind, QpState::Init, QpState::Rtr, mask);
        assert_eq!(to_rtr(QpKind::Rc, rc), Ok(()));
        for (name, bit) in Mask::KNOWN.iter().filter(|(_, bit)| (CONNECT | RESPONDER).contains(*bit)) {
            assert_eq!(to_rtr(QpKind::Rc, rc.without(*bit)), Err(Reason::BAD_ATTRIBUTE_MASK), "{name}");
        }
        assert_eq!(to_rtr(QpKind::Uc, rc), Err(Reason::BAD_ATTRIBUTE_MASK));
        assert_eq!(to_rtr(QpKind::Rc, Mask::NONE), Err(Reason::BAD_ATTRIBUTE_MASK));
    }
}
