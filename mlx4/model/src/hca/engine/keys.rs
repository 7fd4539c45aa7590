//! Work requests about memory keys: bind a window, invalidate a key, register pages under one.
//!
//! They are executed in order, after all earlier requests of their queue, as strong order asks. What the
//! queue pair may not do at all is a local operation error; a window or region that doesn't allow it is a
//! bind error (IBTA vol. 1, 11.6.2: of all memory management operations).

use mlx4_wire::cqe::Syndrome;

use super::side::Side;
use super::wqe::Request;
use crate::hca::tpt::{By, Changes};

/// Executes a request about memory keys.
pub(super) fn execute(side: &Side<'_>, request: &Request) -> Result<(), Syndrome> {
    let allowed = match request {
        Request::Bind(_) => side.running.windows_enabled(),
        Request::FastRegister(_) => side.attrs.fast_register,
        _ => true,
    };
    if !allowed {
        log::debug!("QP {:#x}: {request:?} isn't enabled", side.attrs.qpn);
        return Err(Syndrome::LOCAL_QP_OP_ERR);
    }
    let changes = Changes::begin(side.burst, side.running);
    let done = match request {
        Request::Bind(segment) => changes.bind(side.user(), segment),
        Request::LocalInvalidate(key) => changes.invalidate(side.user(), *key, By::Local),
        Request::FastRegister(segment) => changes.fast_register(side.user(), segment),
        _ => return Err(Syndrome::LOCAL_QP_OP_ERR),
    };
    match done {
        Ok(()) => count(side, request),
        Err(fault) => {
            side.refused_lkey(&fault);
            return Err(Syndrome::MW_BIND_ERR);
        }
    }
    Ok(())
}

fn count(side: &Side<'_>, request: &Request) {
    match request {
        Request::LocalInvalidate(_) => side.hca.counters.local_invalidates.add(1),
        Request::FastRegister(_) => side.hca.counters.fast_registers.add(1),
        _ => {}
    }
}
