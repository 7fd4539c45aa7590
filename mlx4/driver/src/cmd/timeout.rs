//! How long a command may take, by class.

use std::time::Duration;

use mlx4_wire::cmd::Opcode;

/// How long commands may take. No document tells; these are far above what was ever seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the command register is free, and a place for the command.
    pub post: Duration,
    /// Queries, and changes of one object.
    pub short: Duration,
    /// What stops an object or moves memory, and management datagrams.
    pub medium: Duration,
    /// What starts or stops the device or a port.
    pub long: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            post: Duration::from_secs(10),
            short: Duration::from_secs(10),
            medium: Duration::from_secs(30),
            long: Duration::from_secs(60),
        }
    }
}

impl Timeouts {
    /// How long a command may take.
    pub(crate) fn of(&self, opcode: Opcode) -> Duration {
        match opcode {
            Opcode::RUN_FW
            | Opcode::INIT_HCA
            | Opcode::CLOSE_HCA
            | Opcode::INIT_PORT
            | Opcode::CLOSE_PORT
            | Opcode::SET_PORT
            | Opcode::SENSE_PORT => self.long,
            Opcode::MAP_FA
            | Opcode::UNMAP_FA
            | Opcode::MAP_ICM
            | Opcode::UNMAP_ICM
            | Opcode::MAP_ICM_AUX
            | Opcode::UNMAP_ICM_AUX
            | Opcode::HW2SW_MPT
            | Opcode::HW2SW_EQ
            | Opcode::HW2SW_CQ
            | Opcode::HW2SW_SRQ
            | Opcode::TO_RST_QP
            | Opcode::TO_ERR_QP
            | Opcode::SYNC_TPT
            | Opcode::MAD_IFC => self.medium,
            _ => self.short,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_apart() {
        let t = Timeouts::default();
        assert_eq!(t.of(Opcode::QUERY_QP), t.short);
        assert_eq!(t.of(Opcode::HW2SW_MPT), t.medium);
        assert_eq!(t.of(Opcode::RUN_FW), t.long);
    }
}
