//! The data path: executes work requests and receives packets.

use super::runset::RunSet;

#[derive(Debug)]
pub(crate) struct Engine {
    runnable: RunSet,
}
impl Engine {
    pub(crate) fn new() -> Self {
        Self { runnable: RunSet::new() }
    }
    pub(crate) fn ring(&self, qpn: u32) {
        self.runnable.ring(qpn);
    }
}
#[derive(Debug, Default)]
pub(crate) struct SendWork {
    psn: u32,
    counter: u16,
}
impl SendWork {
    pub(crate) fn start(&mut self, psn: u32) {
        self.psn = psn;
    }
    pub(crate) fn drain(&mut self, _event: bool) {}
    pub(crate) fn psn(&self) -> u32 {
        self.psn
    }
    pub(crate) fn counter(&self) -> u16 {
        self.counter
    }
}
#[derive(Debug, Default)]
pub(crate) struct ReceiveWork {
    psn: u32,
    msn: u32,
    counter: u16,
}
impl ReceiveWork {
    pub(crate) fn start(&mut self, psn: u32) {
        self.psn = psn;
    }
    pub(crate) fn psn(&self) -> u32 {
        self.psn
    }
    pub(crate) fn msn(&self) -> u32 {
        self.msn
    }
    pub(crate) fn counter(&self) -> u16 {
        self.counter
    }
}
pub(super) fn receive_datagram(_hca: &super::Hca, _port: u8, _packet: &crate::fabric::packet::Packet<'_>) {}
