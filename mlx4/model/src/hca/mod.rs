//! Registers, command interface, ICM, queues and the data path.

/// One ConnectX-3.
#[derive(Debug)]
pub struct Hca;
