//! BAR2: the UAR pages. Three doorbells in a page mean something; every other store is dropped.

use std::sync::Mutex;

use mlx4_wire::doorbell::{CQ_DOORBELL, CqDoorbell, EqDoorbell, SEND_DOORBELL, SendDoorbell, UAR_PAGE_BYTES};
use mlx4_wire::regs::eqn_of_doorbell;
use zerocopy::FromBytes;

use super::Hca;
use super::qp::Qp;

/// The first word of a CQ doorbell that was written in two halves, and the page it was written to.
pub(super) type HalfDoorbell = Mutex<Option<(u64, [u8; 4])>>;

impl Hca {
    /// Takes a store of whole words to BAR2.
    pub(super) fn uar_write(&self, offset: u64, data: &[u8]) {
        let page = offset / u64::from(UAR_PAGE_BYTES);
        let inside = u32::try_from(offset % u64::from(UAR_PAGE_BYTES)).unwrap_or(0);
        match (inside, data.len()) {
            (SEND_DOORBELL, 4) => {
                if let Ok(doorbell) = SendDoorbell::read_from_bytes(data) {
                    self.ring_send(page, doorbell.qpn());
                }
            }
            (CQ_DOORBELL, 8) => {
                if let Ok(doorbell) = CqDoorbell::read_from_bytes(data) {
                    self.ring_cq(page, &doorbell);
                }
            }
            (CQ_DOORBELL, 4) => self.half_doorbell(page, data, None),
            (_, 4) if inside == CQ_DOORBELL + 4 => self.half_doorbell(page, &[], Some(data)),
            (_, 4) => self.ring_eq(offset, data),
            _ => self.counters.bad_doorbells.add(1),
        }
    }

    fn half_doorbell(&self, page: u64, first: &[u8], second: Option<&[u8]>) {
        let mut half = self.half_doorbell.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(second) = second else {
            *half = first.try_into().ok().map(|word| (page, word));
            return;
        };
        let Some((of, first)) = half.take() else { return };
        let whole = [&first[..], second].concat();
        if let (true, Ok(doorbell)) = (of == page, CqDoorbell::read_from_bytes(&whole)) {
            self.ring_cq(page, &doorbell);
        }
    }

    /// A send doorbell through a UAR page: the queue pair must name that page.
    fn ring_send(&self, page: u64, qpn: u32) {
        let running = self.running.load();
        let Some(running) = running.as_deref() else { return };
        let is_of_page = |qp: &Qp| qp.qpn == qpn && u64::from(qp.uar_page()) == page;
        if running.qps.with(qpn, is_of_page) == Some(true) {
            self.engine.ring(qpn);
        } else {
            log::debug!("send doorbell for QP {qpn:#x} through UAR page {page:#x} refused");
            self.counters.bad_doorbells.add(1);
        }
    }

    /// An arm doorbell through a UAR page: the CQ must name that page.
    fn ring_cq(&self, page: u64, doorbell: &CqDoorbell) {
        let Some((burst, running)) = self.enter() else { return };
        match running.cqs.get(doorbell.arm.cqn()) {
            Some(cq) if u64::from(cq.uar_page) == page => {
                if cq.arm(&burst, doorbell) {
                    self.engine.ring_cq(cq.cqn);
                }
            }
            _ => {
                log::debug!("arm of CQ {:#x} through UAR page {page:#x} refused", doorbell.arm.cqn());
                self.counters.bad_doorbells.add(1);
            }
        }
    }

    fn ring_eq(&self, offset: u64, data: &[u8]) {
        let eq = eqn_of_doorbell(offset)
            .and_then(|eqn| self.running.load_full().and_then(|running| running.eqs.get(eqn)));
        match (eq, EqDoorbell::read_from_bytes(data)) {
            (Some(eq), Ok(doorbell)) => eq.doorbell(doorbell),
            _ => self.counters.bad_doorbells.add(1),
        }
    }
}
