//! What others ask of the manager: traps that they send, and SMInfo.

use std::time::Duration;

use mlx4_wire::mad::attr::{SmInfo, SmPriorityState, SmState};
use mlx4_wire::mad::header::{Method, MgmtClass, Status};
use mlx4_wire::mad::notice::{Notice, Trap};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U32, U64};

use super::manager::Manager;
use crate::fabric::datagram::Datagram;

impl Manager {
    /// A trap: the sender is told to stop repeating it, and what it says is looked into.
    pub(super) fn take_trap(&mut self, datagram: &Datagram, smp: &Smp) {
        if smp.attribute_id() != SmpAttribute::NOTICE {
            return;
        }
        let mut repress = *smp;
        repress.header.method = Method::TRAP_REPRESS;
        repress.m_key = U64::new(0);
        self.send_answer(datagram, repress);
        let notice = smp.attribute::<Notice>();
        if !notice.kind.is_generic() {
            return;
        }
        if let Some((port, _)) = self.subnet.by_lid(datagram.headers.slid) {
            self.administrator.forward_notice(port, notice, &self.subnet);
        }
        match Trap(notice.trap_number.get()) {
            Trap::LINK_STATE_CHANGED => self.request_sweep(Duration::ZERO),
            Trap::LOCAL_CHANGES | Trap::SYSTEM_IMAGE_GUID_CHANGED => {
                if let Some((port, _)) =
                    self.subnet.by_lid(datagram.headers.slid).filter(|(port, _)| *port != 0)
                {
                    self.refresh_port(port);
                }
            }
            trap => log::debug!("LID {} sent trap {trap}", datagram.headers.slid),
        }
    }

    /// SMInfo: this manager is the master, and takes no commands.
    pub(super) fn answer_sm_info(&mut self, datagram: &Datagram, mut smp: Smp) {
        if smp.attribute_id() != SmpAttribute::SM_INFO {
            return;
        }
        if smp.header.method == Method::SET {
            smp.set_status(Status::INVALID_VALUE);
        }
        self.act_count = self.act_count.wrapping_add(1);
        let state = if self.subnet.switch_info.is_some() { SmState::MASTER } else { SmState::DISCOVERING };
        smp.set_attribute(&SmInfo {
            guid: U64::new(self.subnet.end(0).map_or(0, super::subnet::End::guid)),
            sm_key: U64::new(0),
            act_count: U32::new(self.act_count),
            priority_state: SmPriorityState::new()
                .with_priority(self.subnet.priority & 0xf)
                .with_state(state),
        });
        smp.header.method = Method::GET_RESP;
        self.send_answer(datagram, smp);
    }

    fn send_answer(&mut self, datagram: &Datagram, mut smp: Smp) {
        if smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE {
            smp.set_returning(true);
        }
        self.out.push(datagram.answer(self.subnet.manager_lid(), smp.to_mad()));
    }
}
