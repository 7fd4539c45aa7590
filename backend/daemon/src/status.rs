//! How a daemon is.

use paraverbs_rdma::GuestStatus;

/// How a daemon is at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The HCA's device, as the configuration names it.
    pub device: String,
    /// How the HCA is.
    pub state: HcaState,
    /// Firmware version: major, minor, subminor.
    pub firmware: (u16, u16, u16),
    /// The ports, from port 1; none while the HCA isn't running.
    pub ports: Vec<PortStatus>,
    /// Objects that the HCA works with, the driver's own included; 0 while it isn't running.
    pub objects: usize,
    /// Bytes of guests that are gone whose memory stays mapped until the HCA's next reset.
    pub quarantined_bytes: u64,
    /// The guests, in the order of the configuration.
    pub guests: Vec<GuestStatus>,
}

/// How the HCA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HcaState {
    /// It works.
    Running,
    /// It has failed and is being brought up again.
    Recovering,
    /// It could not be brought up again.
    Failed,
}

impl HcaState {
    pub(crate) fn of(code: u8) -> Self {
        let states = [Self::Running, Self::Recovering, Self::Failed];
        states.into_iter().find(|state| *state as u8 == code).unwrap_or(Self::Failed)
    }
}

/// How a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// Its number, from 1.
    pub number: u8,
    /// Whether it is ACTIVE.
    pub active: bool,
    /// Its LID; 0 before the subnet manager has given one.
    pub lid: u16,
}
