//! What failures of the driver mean to a tenant.

use std::io;

use mlx4::{CommandFailure, Error};
use mlx4_pci::DmaError;
use mlx4_wire::cmd::Status;
use paraverbs_tenant::hca::HcaError;

/// Of a creation, change or query: a refusal has changed nothing.
pub(crate) fn told(error: &Error) -> HcaError {
    match error {
        Error::Command(error) => match &error.failure {
            CommandFailure::Status(status) => refused(*status),
            CommandFailure::Busy(_) | CommandFailure::Timeout(_) => HcaError::TimedOut,
            CommandFailure::Gone | CommandFailure::Dead => HcaError::Lost,
            CommandFailure::Register(_) | CommandFailure::Mailbox(_) => HcaError::Failed,
        },
        Error::Exhausted(_) => HcaError::NoResources,
        Error::Dma(error) => mapping(error),
        Error::Argument { .. }
        | Error::Attribute { .. }
        | Error::Transition { .. }
        | Error::Geometry(_)
        | Error::Place(_)
        | Error::Post(_)
        | Error::Completion(_)
        | Error::Resize(_) => HcaError::Refused,
        Error::Used(_) | Error::InUse(_) => HcaError::Busy,
        Error::Gone(_) | Error::Owned { .. } | Error::Unknown { .. } | Error::Reset(_) => HcaError::Lost,
        Error::Host { .. } | Error::Interrupt(_) => HcaError::NoResources,
        Error::Field(_) | Error::Memory(_) | Error::Register(_) | Error::Mad { .. } => HcaError::Failed,
    }
}

fn refused(status: Status) -> HcaError {
    match status {
        Status::EXCEED_LIM => HcaError::NoResources,
        Status::RESOURCE_BUSY | Status::REG_BOUND => HcaError::Busy,
        Status::INTERNAL_ERR => HcaError::Failed,
        _ => HcaError::Refused,
    }
}

/// Of a destruction: whatever the HCA said, it has not given the object back.
pub(crate) fn told_of_destruction(error: &Error) -> HcaError {
    match told(error) {
        open @ (HcaError::TimedOut | HcaError::Lost) => open,
        _ => HcaError::Failed,
    }
}

/// Of a mapping.
pub(crate) fn mapping(error: &DmaError) -> HcaError {
    match error {
        // Where the limits can't be told, nothing was mapped for want of one.
        DmaError::NoMapping { .. } | DmaError::Memlock { .. } | DmaError::Limits(_) => HcaError::NoMappings,
        DmaError::Map { source, .. } if source.kind() == io::ErrorKind::OutOfMemory => HcaError::NoMappings,
        DmaError::NoAddress { .. } | DmaError::Allocate { .. } => HcaError::NoResources,
        DmaError::Size { .. }
        | DmaError::Unaligned { .. }
        | DmaError::Reserved { .. }
        | DmaError::Overlaps { .. }
        | DmaError::Map { .. } => HcaError::Refused,
        DmaError::Unmap { .. } => HcaError::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mlx4::CommandError;
    use mlx4_wire::cmd::Opcode;

    use super::*;

    fn failure(failure: CommandFailure) -> Error {
        CommandError { opcode: Opcode::SW2HW_CQ, failure }.into()
    }

    #[test]
    fn only_what_was_not_answered_leaves_a_creation_open() {
        let status = |status| told(&failure(CommandFailure::Status(status)));
        assert_eq!(status(Status::BAD_PARAM), HcaError::Refused);
        assert_eq!(status(Status::EXCEED_LIM), HcaError::NoResources);
        assert_eq!(status(Status::REG_BOUND), HcaError::Busy);
        assert!(status(Status::INTERNAL_ERR).leaves_open());
        assert_eq!(told(&failure(CommandFailure::Timeout(Duration::ZERO))), HcaError::TimedOut);
        assert_eq!(told(&failure(CommandFailure::Dead)), HcaError::Lost);
    }

    #[test]
    fn memory_that_the_host_has_no_room_for_was_not_mapped() {
        let refused = |kind: io::ErrorKind| DmaError::Map { iova: 0, len: 1, source: kind.into() };
        for error in [
            DmaError::NoMapping { maximum: 1 },
            DmaError::Memlock { len: 1, limit: 1 },
            DmaError::Limits(io::ErrorKind::Unsupported.into()),
            refused(io::ErrorKind::OutOfMemory),
        ] {
            assert_eq!(mapping(&error), HcaError::NoMappings, "{error}");
        }
        assert_eq!(mapping(&refused(io::ErrorKind::AlreadyExists)), HcaError::Refused);
        let kept = DmaError::Unmap { iova: 0, len: 1, source: io::ErrorKind::Other.into() };
        assert!(mapping(&kept).leaves_open());
    }

    #[test]
    fn every_failed_destruction_is_left_open() {
        for status in [Status::BAD_PARAM, Status::REG_BOUND, Status::EXCEED_LIM, Status::INTERNAL_ERR] {
            assert_eq!(told_of_destruction(&failure(CommandFailure::Status(status))), HcaError::Failed);
        }
        assert_eq!(told_of_destruction(&failure(CommandFailure::Gone)), HcaError::Lost);
        assert_eq!(told_of_destruction(&Error::Used("an object")), HcaError::Failed);
    }
}
