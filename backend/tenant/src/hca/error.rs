//! Why the HCA did not do something, and what the guest is told.

use virtio_rdma::Reason;

/// Why the HCA did not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HcaError {
    /// It refused the command for its arguments.
    #[error("HCA refused the command")]
    Refused,
    /// The object is in use.
    #[error("object is in use")]
    Busy,
    /// It has no more objects of that kind, or no memory for one.
    #[error("HCA has no more objects of that kind")]
    NoResources,
    /// The host can't map more memory for it.
    #[error("host can't map more memory for the HCA")]
    NoMappings,
    /// The ring's geometry is none that it has.
    #[error("ring geometry is none of the queue format")]
    Geometry,
    /// It can't do that at all.
    #[error("HCA can't do that")]
    Unsupported,
    /// The multicast group is none that this can be done with.
    #[error("multicast group is not attached, or none")]
    NoGroup,
    /// It failed at the command.
    #[error("HCA failed at the command")]
    Failed,
    /// It did not answer in time.
    #[error("HCA did not answer in time")]
    TimedOut,
    /// It is lost, or being reset.
    #[error("HCA is lost")]
    Lost,
}

impl HcaError {
    /// Whether the HCA may still use what the command spoke of.
    pub const fn leaves_open(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut | Self::Lost)
    }

    /// What the guest is told.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Refused => Reason::COMMAND_REFUSED,
            Self::Busy => Reason::IN_USE,
            Self::NoResources => Reason::HCA_LIMIT,
            Self::NoMappings => Reason::MAPPING_LIMIT,
            Self::Geometry => Reason::BAD_GEOMETRY,
            Self::Unsupported => Reason::NOT_OFFERED,
            Self::NoGroup => Reason::BAD_GID,
            Self::Failed => Reason::COMMAND_FAILED,
            Self::TimedOut => Reason::COMMAND_TIMEOUT,
            Self::Lost => Reason::HCA_LOST,
        }
    }

    /// What the guest is told of a destruction that failed: the memory must be kept aside.
    pub(crate) const fn reason_of_destruction(self) -> Reason {
        match self {
            Self::Busy | Self::TimedOut | Self::Lost => self.reason(),
            _ => Reason::COMMAND_FAILED,
        }
    }
}
