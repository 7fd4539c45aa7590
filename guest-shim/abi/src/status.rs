//! How a request ends: a status, which is verbs' error, and a reason, which tells a person more.

codes! {
    /// The result of a request, as a driver acts on it.
    pub enum Status {
        /// It was carried out.
        OK = 0,
        /// An argument is wrong.
        INVALID = 1,
        /// A limit of the guest is reached, or the HCA has no more of it.
        NO_MEMORY = 2,
        /// The object is used by another one.
        BUSY = 3,
        /// The guest may not do that.
        NOT_PERMITTED = 4,
        /// The device doesn't do that.
        NOT_SUPPORTED = 5,
        /// An address is not in the guest's memory.
        FAULT = 6,
        /// The HCA failed, or what the request speaks of was lost with it.
        IO = 7,
        /// Not now; the same request may succeed later.
        AGAIN = 8,
        /// The HCA did not answer in time.
        TIMED_OUT = 9,
        /// Another guest has it.
        ADDRESS_IN_USE = 10,
    }
}

impl Status {
    /// The error number that verbs return for it (Linux's numbers); 0 for [`Status::OK`]. An unknown status is
    /// an input/output error.
    pub const fn errno(self) -> i32 {
        match self {
            Self::OK => 0,
            Self::INVALID => 22,        // EINVAL
            Self::NO_MEMORY => 12,      // ENOMEM
            Self::BUSY => 16,           // EBUSY
            Self::NOT_PERMITTED => 1,   // EPERM
            Self::NOT_SUPPORTED => 95,  // EOPNOTSUPP
            Self::FAULT => 14,          // EFAULT
            Self::AGAIN => 11,          // EAGAIN
            Self::TIMED_OUT => 110,     // ETIMEDOUT
            Self::ADDRESS_IN_USE => 98, // EADDRINUSE
            _ => 5,                     // EIO
        }
    }
}

codes! {
    /// Why a request was not carried out, for logs and messages. A driver acts on the [`Status`] only: later
    /// minor versions add reasons.
    pub enum Reason {
        /// It was carried out.
        NONE = 0,

        /// The request is shorter than its header.
        REQUEST_TOO_SHORT = 0x01,
        /// The header's length is not that of the request, or not one that the opcode has.
        BAD_LENGTH = 0x02,
        /// The request is longer than the device takes.
        REQUEST_TOO_LONG = 0x03,
        /// There is no room for the reply.
        REPLY_TOO_SHORT = 0x04,
        /// A reserved byte is not zero.
        RESERVED_NOT_ZERO = 0x05,
        /// A bit is set that has no meaning.
        UNKNOWN_FLAG = 0x06,
        /// The device doesn't know the opcode.
        UNKNOWN_OPCODE = 0x07,
        /// The device doesn't offer that: the capability is clear.
        NOT_OFFERED = 0x08,

        /// A segment is empty, wraps, or is not aligned.
        BAD_SEGMENT = 0x10,
        /// The segments don't add up to the memory they describe.
        BAD_SEGMENT_SUM = 0x11,
        /// There are more segments than the device takes.
        TOO_MANY_SEGMENTS = 0x12,
        /// An address is not in one region of the guest's memory.
        NOT_IN_MEMORY = 0x13,
        /// An address is not aligned as it must be.
        MISALIGNED = 0x14,
        /// The memory cannot be written.
        READ_ONLY_MEMORY = 0x15,

        /// A handle names no object of that kind.
        BAD_HANDLE = 0x20,
        /// Objects that shall work together don't fit: of another PD, format or type.
        MISMATCH = 0x21,
        /// Another object still uses this one.
        IN_USE = 0x22,
        /// The request was made for another generation: what it names is gone.
        STALE_GENERATION = 0x23,

        /// There is no such port.
        BAD_PORT = 0x30,
        /// There is no such entry in the port's table.
        BAD_INDEX = 0x31,
        /// The queue pair can't go from its state to that one.
        BAD_TRANSITION = 0x32,
        /// The transition needs attributes that the mask lacks, or doesn't allow some that it has.
        BAD_ATTRIBUTE_MASK = 0x33,
        /// An attribute has a value that is none.
        BAD_ATTRIBUTE = 0x34,
        /// The access rights contradict each other.
        BAD_ACCESS = 0x35,
        /// The type of object is none that a guest may have.
        BAD_TYPE = 0x36,
        /// The ring's geometry is not one of the queue format.
        BAD_GEOMETRY = 0x37,
        /// There is no such completion vector.
        BAD_VECTOR = 0x38,
        /// The number of bytes or elements asked for is more than the device reports.
        BEYOND_CAPABILITY = 0x39,
        /// The GID is none that this may be done with.
        BAD_GID = 0x3a,

        /// The guest has as many objects of the kind as it may.
        OBJECT_LIMIT = 0x40,
        /// The guest has as much memory registered as it may.
        BYTE_LIMIT = 0x41,
        /// The host can't map more memory for the HCA.
        MAPPING_LIMIT = 0x42,
        /// The doorbell area has no free slot.
        SLOT_LIMIT = 0x43,
        /// The HCA has none left.
        HCA_LIMIT = 0x44,

        /// A Q_Key with the top bit set.
        PRIVILEGED_QKEY = 0x50,
        /// A management class or method that is not for guests.
        PRIVILEGED_MAD = 0x51,
        /// Another guest has registered it, or is connected to it.
        TAKEN = 0x52,

        /// The HCA refused the command for its arguments.
        COMMAND_REFUSED = 0x60,
        /// The HCA failed at the command.
        COMMAND_FAILED = 0x61,
        /// The HCA did not answer the command in time.
        COMMAND_TIMEOUT = 0x62,
        /// The HCA is being brought up.
        STARTING = 0x63,
        /// The HCA is lost for good.
        HCA_LOST = 0x64,
    }
}

impl Reason {
    /// The status that a request ends with for this reason.
    pub const fn status(self) -> Status {
        match self {
            Self::NONE => Status::OK,
            Self::UNKNOWN_OPCODE | Self::NOT_OFFERED => Status::NOT_SUPPORTED,
            Self::NOT_IN_MEMORY | Self::READ_ONLY_MEMORY => Status::FAULT,
            Self::IN_USE => Status::BUSY,
            Self::OBJECT_LIMIT
            | Self::BYTE_LIMIT
            | Self::MAPPING_LIMIT
            | Self::SLOT_LIMIT
            | Self::HCA_LIMIT => Status::NO_MEMORY,
            Self::PRIVILEGED_QKEY | Self::PRIVILEGED_MAD => Status::NOT_PERMITTED,
            Self::TAKEN => Status::ADDRESS_IN_USE,
            Self::STALE_GENERATION | Self::COMMAND_FAILED | Self::HCA_LOST => Status::IO,
            Self::COMMAND_TIMEOUT => Status::TIMED_OUT,
            Self::STARTING => Status::AGAIN,
            _ => Status::INVALID,
        }
    }
}

impl core::error::Error for Reason {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_has_no_error_number() {
        for status in Status::KNOWN {
            assert_eq!(status.errno() == 0, *status == Status::OK, "{status}");
        }
        assert_eq!(Status(0xff).errno(), Status::IO.errno());
    }

    #[test]
    fn every_reason_but_none_is_a_failure() {
        for reason in Reason::KNOWN {
            assert_eq!(reason.status() == Status::OK, *reason == Reason::NONE, "{reason}");
        }
        assert_eq!(Reason(0xff).status(), Status::INVALID);
    }
}
