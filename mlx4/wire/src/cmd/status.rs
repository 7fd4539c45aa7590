//! Status codes of commands.

open_enum! {
    /// Result of a command, in the top byte of the host command register and in the completion event
    /// (Linux `CMD_STAT_*`).
    pub enum Status: u8 {
        /// Done.
        OK = 0x00,
        /// Internal error of the device.
        INTERNAL_ERR = 0x01,
        /// Unknown opcode or opcode modifier.
        BAD_OP = 0x02,
        /// A parameter is not supported or out of range.
        BAD_PARAM = 0x03,
        /// The command isn't allowed in this phase of the device.
        BAD_SYS_STATE = 0x04,
        /// A resource is reserved or out of range.
        BAD_RESOURCE = 0x05,
        /// The resource is in use.
        RESOURCE_BUSY = 0x06,
        /// The request exceeds a limit of the device.
        EXCEED_LIM = 0x08,
        /// The resource is not in the state or ownership that the command needs.
        BAD_RES_STATE = 0x09,
        /// Index out of range.
        BAD_INDEX = 0x0a,
        /// The non-volatile memory is damaged.
        BAD_NVMEM = 0x0b,
        /// ICM that the command needs isn't mapped.
        ICM_ERROR = 0x0c,
        /// The QP isn't in the state that the transition starts from.
        BAD_QP_STATE = 0x10,
        /// Bad segment parameters.
        BAD_SEG_PARAM = 0x20,
        /// The memory region still has memory windows bound to it.
        REG_BOUND = 0x21,
        /// Locally attached memory isn't present.
        LAM_NOT_PRE = 0x22,
        /// Malformed management datagram.
        BAD_PKT = 0x30,
        /// The combination of sizes exceeds the buffers, as SET_PORT's VL and MTU may.
        BAD_SIZE = 0x40,
        /// Another function of the device owns what was asked for.
        MULTI_FUNC_REQ = 0x50,
    }
}
