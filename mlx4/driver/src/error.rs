//! What can go wrong.

use std::fmt;
use std::io;
use std::time::Duration;

use mlx4_pci::{DmaError, InterruptError, MemoryError, RegisterError, ResetError};
use mlx4_queue::geometry::GeometryError;
use mlx4_queue::request::PostError;
use mlx4_queue::{CqError, PlaceError, ResizeError};
use mlx4_wire::cmd::{Opcode, Status};

/// What a field that the device wrote must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Not more than this.
    AtMost(u64),
    /// Not less than this.
    AtLeast(u64),
    /// A power of two.
    PowerOfTwo,
    /// A multiple of this.
    MultipleOf(u64),
    /// This.
    Is(u64),
    /// What the words say.
    Other(&'static str),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {limit:#x}"),
            Self::AtLeast(limit) => write!(f, "at least {limit:#x}"),
            Self::PowerOfTwo => f.write_str("a power of two"),
            Self::MultipleOf(unit) => write!(f, "a multiple of {unit:#x}"),
            Self::Is(value) => write!(f, "{value:#x}"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// A field that the device wrote has a value that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} of {structure} is {value:#x}, but must be {rule}")]
pub struct FieldError {
    /// Where the field is.
    pub structure: &'static str,
    /// The field.
    pub field: &'static str,
    /// What it says.
    pub value: u64,
    /// What it must be.
    pub rule: Rule,
}

/// Checks fields of one structure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields(pub(crate) &'static str);

impl Fields {
    fn rule(self, field: &'static str, value: u64, rule: Rule) -> Result<u64, FieldError> {
        let good = match rule {
            Rule::AtMost(limit) => value <= limit,
            Rule::AtLeast(limit) => value >= limit,
            Rule::PowerOfTwo => value.is_power_of_two(),
            Rule::MultipleOf(unit) => value.is_multiple_of(unit),
            Rule::Is(wanted) => value == wanted,
            Rule::Other(_) => false,
        };
        if good { Ok(value) } else { Err(FieldError { structure: self.0, field, value, rule }) }
    }

    pub(crate) fn at_most<T: Copy + Into<u64>>(
        self,
        field: &'static str,
        value: T,
        limit: u64,
    ) -> Result<T, FieldError> {
        self.rule(field, value.into(), Rule::AtMost(limit)).map(|_| value)
    }

    pub(crate) fn at_least<T: Copy + Into<u64>>(
        self,
        field: &'static str,
        value: T,
        limit: u64,
    ) -> Result<T, FieldError> {
        self.rule(field, value.into(), Rule::AtLeast(limit)).map(|_| value)
    }

    pub(crate) fn between<T: Copy + Into<u64>>(
        self,
        field: &'static str,
        value: T,
        least: u64,
        most: u64,
    ) -> Result<T, FieldError> {
        self.at_least(field, value, least)?;
        self.at_most(field, value, most)
    }

    pub(crate) fn power_of_two<T: Copy + Into<u64>>(
        self,
        field: &'static str,
        value: T,
    ) -> Result<T, FieldError> {
        self.rule(field, value.into(), Rule::PowerOfTwo).map(|_| value)
    }

    pub(crate) fn multiple_of<T: Copy + Into<u64>>(
        self,
        field: &'static str,
        value: T,
        unit: u64,
    ) -> Result<T, FieldError> {
        self.rule(field, value.into(), Rule::MultipleOf(unit)).map(|_| value)
    }

    /// A rule in words, which the caller has tried.
    pub(crate) fn holds<T: Copy + Into<u64>>(
        self,
        field: &'static str,
        value: T,
        good: bool,
        rule: &'static str,
    ) -> Result<T, FieldError> {
        if good { Ok(value) } else { self.rule(field, value.into(), Rule::Other(rule)).map(|_| value) }
    }

    pub(crate) fn is<T: Copy + Into<u64>>(
        self,
        field: &'static str,
        value: T,
        wanted: u64,
    ) -> Result<T, FieldError> {
        self.rule(field, value.into(), Rule::Is(wanted)).map(|_| value)
    }
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum CommandFailure {
    /// The device refused it.
    #[error("failed with {0}")]
    Status(Status),
    /// The command register, or all places for commands, were taken for too long.
    #[error("could not be posted for {0:?}")]
    Busy(Duration),
    /// It didn't end in time. What it names may still be used by the device.
    #[error("did not end within {0:?}")]
    Timeout(Duration),
    /// The register reads as all ones: the device is gone, or in reset.
    #[error("can't be posted: the device is gone")]
    Gone,
    /// The device has failed, or was closed.
    #[error("can't be posted: the device has failed or was closed")]
    Dead,
    /// The command register can't be reached.
    #[error("can't reach the command register")]
    Register(#[source] RegisterError),
    /// The mailbox can't be reached.
    #[error("can't reach the mailbox")]
    Mailbox(#[source] MemoryError),
}

/// A command of the device has failed.
#[derive(Debug, thiserror::Error)]
#[error("{opcode} {failure}")]
pub struct CommandError {
    /// The command.
    pub opcode: Opcode,
    /// Why.
    pub failure: CommandFailure,
}

impl CommandError {
    /// The status with which the device refused it, if it did.
    pub fn status(&self) -> Option<Status> {
        match self.failure {
            CommandFailure::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Whether the device may have carried the command out although it failed: it hasn't answered, or has failed
    /// itself, at whatever point.
    pub fn leaves_open(&self) -> bool {
        self.status().is_none_or(|status| status == Status::INTERNAL_ERR)
    }
}

/// An operation of the driver has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command has failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The device says something that can't be.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// Memory can't be mapped for the device, or unmapped.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// A completion queue of this process can't move to another ring.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// An access to mapped memory isn't inside it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A register or doorbell can't be reached.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// An interrupt can't be had.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    /// The device can't be reset.
    #[error(transparent)]
    Reset(#[from] ResetError),
    /// A queue can't be as large.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A queue isn't inside its memory.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A request can't be posted.
    #[error(transparent)]
    Post(#[from] PostError),
    /// A completion can't be.
    #[error(transparent)]
    Completion(#[from] CqError),
    /// The device reads as all ones.
    #[error("{0} is gone: its registers read as all ones")]
    Gone(String),
    /// Another driver has claimed the device.
    #[error("{name} has an owner ({owner:#x} in its ownership word)")]
    Owned {
        /// The device.
        name: String,
        /// What the ownership word says.
        owner: u32,
    },
    /// The device isn't one that this driver knows.
    #[error("{name} is {vendor:04x}:{device:04x}, which isn't a ConnectX that this driver knows")]
    Unknown {
        /// The device.
        name: String,
        /// PCI vendor id.
        vendor: u16,
        /// PCI device id.
        device: u16,
    },
    /// None is left of what was asked for.
    #[error("no {0} left")]
    Exhausted(&'static str),
    /// An argument is out of range.
    #[error("{what} of {value:#x} is out of range")]
    Argument {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// An attribute that the transition needs isn't given, or one is given that it doesn't take.
    #[error("{attribute} {problem} for a transition from {from} to {to}")]
    Attribute {
        /// The attribute.
        attribute: &'static str,
        /// What is wrong about it.
        problem: &'static str,
        /// State of the queue pair.
        from: &'static str,
        /// State asked for.
        to: &'static str,
    },
    /// There is no such transition.
    #[error("a queue pair can't go from {from} to {to}")]
    Transition {
        /// State of the queue pair.
        from: &'static str,
        /// State asked for.
        to: &'static str,
    },
    /// A thread or a descriptor that the driver needs can't be had.
    #[error("can't make {what}")]
    Host {
        /// What.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An object can't go while others use it.
    #[error("{0} is used by other objects, which must go first")]
    Used(&'static str),
    /// The device was closed while objects were in use.
    #[error("{0} objects of the device were still in use; the device was reset")]
    InUse(usize),
    /// A management datagram was answered with an error.
    #[error("management attribute {attribute:#06x} was answered with status {status:#06x}")]
    Mad {
        /// Attribute id.
        attribute: u16,
        /// Status of the answer.
        status: u16,
    },
}

impl Error {
    /// What the device said no with, if that is what happened.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Command(error) => error.status(),
            _ => None,
        }
    }

    /// Whether the device may have done what it was told ([`CommandError::leaves_open`]): what the command named
    /// is then not free before the next reset.
    pub fn leaves_open(&self) -> bool {
        matches!(self, Self::Command(error) if error.leaves_open())
    }

    pub(crate) fn argument(what: &'static str, value: impl Into<u64>) -> Self {
        Self::Argument { what, value: value.into() }
    }
}

/// The result of an operation of the driver.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_error_names_structure_field_value_and_rule() {
        let error = Fields("QUERY_DEV_CAP").at_most("log2_max_qps", 31u8, 24).unwrap_err();
        assert_eq!(error.to_string(), "log2_max_qps of QUERY_DEV_CAP is 0x1f, but must be at most 0x18");
        assert!(Fields("X").power_of_two("size", 12u32).is_err());
        assert!(Fields("X").multiple_of("offset", 6u32, 4).is_err());
        assert!(Fields("X").at_least("ports", 0u8, 1).is_err());
        assert_eq!(Fields("X").is("version", 3u16, 3), Ok(3));
    }

    #[test]
    fn command_error_has_opcode_and_status() {
        let failure = CommandFailure::Status(Status::BAD_QP_STATE);
        let error = CommandError { opcode: Opcode::RST2INIT_QP, failure };
        assert_eq!(error.to_string(), "RST2INIT_QP failed with BAD_QP_STATE");
        assert_eq!(Error::from(error).status(), Some(Status::BAD_QP_STATE));
    }

    #[test]
    fn command_may_have_been_carried_out_unless_the_device_has_refused_it() {
        let failed = |failure| Error::from(CommandError { opcode: Opcode::MODIFY_CQ, failure });
        assert!(failed(CommandFailure::Timeout(Duration::ZERO)).leaves_open());
        assert!(failed(CommandFailure::Status(Status::INTERNAL_ERR)).leaves_open());
        assert!(!failed(CommandFailure::Status(Status::BAD_RES_STATE)).leaves_open());
        assert!(!Error::Exhausted("number").leaves_open());
    }
}
