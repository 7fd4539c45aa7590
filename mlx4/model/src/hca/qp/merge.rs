//! What each transition takes from its mailbox: the driver fills in only what it changes, and zero is not a
//! value. Required fields are always taken, optional ones where the mask says so.

use mlx4_wire::Number24;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::path::AddressPath;
use mlx4_wire::ctx::qp::{OptPar, QpContext, QpMailbox, QpState};

/// The state that a transition leads to from `from`.
///
/// # Errors
/// BAD_QP_STATE where it doesn't start there; BAD_OP for an opcode that is no transition between live
/// states.
pub(super) fn target(opcode: Opcode, from: QpState) -> Result<QpState, Status> {
    use QpState as S;
    let (starts, to): (&[QpState], QpState) = match opcode {
        Opcode::INIT2INIT_QP => (&[S::INIT], S::INIT),
        Opcode::INIT2RTR_QP => (&[S::INIT], S::RTR),
        Opcode::RTR2RTS_QP => (&[S::RTR], S::RTS),
        Opcode::RTS2RTS_QP => (&[S::RTS], S::RTS),
        Opcode::SQERR2RTS_QP => (&[S::SQER], S::RTS),
        Opcode::RTS2SQD_QP => (&[S::RTS], S::SQ_DRAINING),
        Opcode::SQD2SQD_QP => (&[S::SQD, S::SQ_DRAINING], from),
        Opcode::SQD2RTS_QP => (&[S::SQD, S::SQ_DRAINING], S::RTS),
        _ => return Err(Status::BAD_OP),
    };
    if starts.contains(&from) { Ok(to) } else { Err(Status::BAD_QP_STATE) }
}

/// The context of a new queue pair, from RST2INIT's mailbox.
pub(super) fn initial(qpn: u32, mailbox: &QpMailbox) -> QpContext {
    let (new, optional) = (&mailbox.context, mailbox.optional);
    let mut context = *new;
    context.local_qpn = Number24::wrapping(qpn);
    context.flags.set_state(QpState::INIT);
    context.responder.set_remote_read(optional.remote_read() && new.responder.remote_read());
    context.responder.set_remote_write(optional.remote_write() && new.responder.remote_write());
    context.responder.set_remote_atomic(optional.remote_atomic() && new.responder.remote_atomic());
    context
}

/// The context after a transition.
pub(super) fn merge(opcode: Opcode, old: &QpContext, mailbox: &QpMailbox) -> QpContext {
    let new = &mailbox.context;
    let mut context = *old;
    match opcode {
        Opcode::INIT2RTR_QP => {
            context.mtu_message = new.mtu_message;
            context.remote_qpn = new.remote_qpn;
            take_path(&mut context.primary_path, &new.primary_path);
            context.rnr_next_psn = new.rnr_next_psn;
            context.responder.set_log2_max_reads(new.responder.log2_max_reads());
        }
        Opcode::RTR2RTS_QP => {
            context.next_send_psn = new.next_send_psn;
            context.primary_path.timeout = new.primary_path.timeout;
            // What work requests may do is said at RST2INIT.
            context.requester = new.requester.with_fast_register(old.requester.fast_register());
        }
        _ => {}
    }
    take_optional(&mut context, new, mailbox.optional);
    context
}

fn take_optional(context: &mut QpContext, new: &QpContext, optional: OptPar) {
    if optional.primary_path() {
        take_path(&mut context.primary_path, &new.primary_path);
    }
    if optional.alternate_path() {
        context.alternate_path = new.alternate_path;
    }
    if optional.sched_queue() {
        context.primary_path.sched_queue = new.primary_path.sched_queue;
    }
    if optional.pkey_index() {
        context.primary_path.pkey_index = new.primary_path.pkey_index;
    }
    if optional.ack_timeout() {
        context.primary_path.timeout = new.primary_path.timeout;
    }
    if optional.qkey() {
        context.qkey = new.qkey;
    }
    if optional.path_migration() {
        context.flags.set_path_migration(new.flags.path_migration());
    }
    take_requester(context, new, optional);
    take_responder(context, new, optional);
}

fn take_requester(context: &mut QpContext, new: &QpContext, optional: OptPar) {
    if optional.retry_count() {
        context.requester.set_retry_count(new.requester.retry_count());
    }
    if optional.rnr_retry() {
        context.requester.set_rnr_retry(new.requester.rnr_retry());
    }
    if optional.requester_reads() {
        context.requester.set_log2_max_reads(new.requester.log2_max_reads());
    }
}

fn take_responder(context: &mut QpContext, new: &QpContext, optional: OptPar) {
    if optional.remote_read() {
        context.responder.set_remote_read(new.responder.remote_read());
    }
    if optional.remote_write() {
        context.responder.set_remote_write(new.responder.remote_write());
    }
    if optional.remote_atomic() {
        context.responder.set_remote_atomic(new.responder.remote_atomic());
    }
    if optional.min_rnr_timer() {
        context.rnr_next_psn.set_min_rnr_timer(new.rnr_next_psn.min_rnr_timer());
    }
    if optional.responder_reads() {
        context.responder.set_log2_max_reads(new.responder.log2_max_reads());
    }
}

/// The address, without the P_Key index and the acknowledgement timeout, which have mask bits of their own.
fn take_path(path: &mut AddressPath, new: &AddressPath) {
    let (pkey_index, timeout) = (path.pkey_index, path.timeout);
    *path = *new;
    path.pkey_index = pkey_index;
    path.timeout = timeout;
}
