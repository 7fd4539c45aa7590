//! The data path: executes work requests and receives packets.
