//! An open device.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use crate::attr::{DeviceAttr, Gid, PortAttr};
use crate::channel::CompChannel;
use crate::cq::Cq;
use crate::error::Result;
use crate::event::AsyncEvent;
use crate::pd::Pd;

/// An open device (`ibv_context`). A clone is the same one; it is closed when all clones and all objects of it
/// are dropped.
#[derive(Clone, Debug)]
pub struct Context {}

impl Context {
    /// Opens the device behind a socket of the daemon, which it is connected to as a VMM would be. The socket
    /// is this context's alone until it is closed.
    ///
    /// # Errors
    /// The socket can't be connected to; another guest has it; what is there is no virtio-rdma device that this
    /// library knows.
    pub fn connect(_path: impl AsRef<Path>) -> Result<Self> {
        unimplemented!()
    }

    /// What the device is and can hold (`ibv_query_device`).
    ///
    /// # Errors
    /// The device is lost.
    pub fn query_device(&self) -> Result<DeviceAttr> {
        unimplemented!()
    }

    /// What a port, counted from 1, is like (`ibv_query_port`).
    ///
    /// # Errors
    /// There is no such port (`EINVAL`); the device is lost.
    pub fn query_port(&self, _port: u8) -> Result<PortAttr> {
        unimplemented!()
    }

    /// An entry of a port's GID table (`ibv_query_gid`).
    ///
    /// # Errors
    /// There is no such port or entry (`EINVAL`); the device is lost.
    pub fn query_gid(&self, _port: u8, _index: u32) -> Result<Gid> {
        unimplemented!()
    }

    /// An entry of a port's P_Key table, as a number (`ibv_query_pkey`); 0: not in use.
    ///
    /// # Errors
    /// There is no such port or entry (`EINVAL`); the device is lost.
    pub fn query_pkey(&self, _port: u8, _index: u32) -> Result<u16> {
        unimplemented!()
    }

    /// Number of completion vectors, at least 1.
    pub fn num_comp_vectors(&self) -> u32 {
        unimplemented!()
    }

    /// Makes a protection domain (`ibv_alloc_pd`).
    ///
    /// # Errors
    /// There are too many (`ENOMEM`); the device is lost.
    pub fn alloc_pd(&self) -> Result<Pd> {
        unimplemented!()
    }

    /// Makes a channel for completion events (`ibv_create_comp_channel`) on a completion vector, counted from 0
    /// (verbs takes it with the CQ).
    ///
    /// # Errors
    /// There is no such vector (`EINVAL`); no file descriptor is left.
    pub fn create_comp_channel(&self, _vector: u32) -> Result<CompChannel> {
        unimplemented!()
    }

    /// Makes a CQ for at least `cqe` completions (`ibv_create_cq`), with the channel for its events if it shall
    /// have any.
    ///
    /// # Errors
    /// It holds none, or more than a CQ can (`EINVAL`); the channel is of another context (`EINVAL`); there are
    /// too many (`ENOMEM`); the device is lost.
    pub fn create_cq(&self, _cqe: u32, _channel: Option<&CompChannel>) -> Result<Cq> {
        unimplemented!()
    }

    /// The next asynchronous event (`ibv_get_async_event`); `None` if there is none before `timeout` ends.
    /// Without a timeout it waits for ever.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn get_async_event(&self, _timeout: impl Into<Option<Duration>>) -> Result<Option<AsyncEvent>> {
        unimplemented!()
    }

    /// A descriptor that is readable while there is an asynchronous event.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }

    /// Whether the device is lost, so that every verb answers `EIO`.
    pub fn is_lost(&self) -> bool {
        unimplemented!()
    }
}
