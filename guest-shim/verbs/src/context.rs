//! An open device.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use virtio_rdma::U32;
use virtio_rdma::request::query::{QueryGid, QueryPkey, QueryPort};
use zerocopy::FromZeros;

use crate::attr::{DeviceAttr, Gid, PortAttr};
use crate::channel::CompChannel;
use crate::cq::Cq;
use crate::device::{Doorbells, Open};
use crate::error::Result;
use crate::event::AsyncEvent;
use crate::pd::Pd;
use crate::signal::Deadline;
use crate::transport::VhostUser;
use crate::xrc::Xrcd;

/// An open device (`ibv_context`). A clone is the same one; it is closed when all clones and all objects of it
/// are dropped.
#[derive(Clone, Debug)]
pub struct Context {
    open: Arc<Open>,
}

impl Context {
    /// Opens the device behind a socket of the daemon, which it is connected to as a VMM would be. The socket
    /// is this context's alone until it is closed.
    ///
    /// # Errors
    /// The socket can't be connected to; another guest has it; what is there is no virtio-rdma device that this
    /// library knows.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let transport = VhostUser::connect(path.as_ref())?;
        Ok(Self { open: Open::new(Arc::new(transport))? })
    }

    /// What the device is and can hold (`ibv_query_device`).
    ///
    /// # Errors
    /// The device is lost.
    pub fn query_device(&self) -> Result<DeviceAttr> {
        self.open.loss().check()?;
        Ok(DeviceAttr::new(self.open.attributes(), &self.open.config().format))
    }

    /// What a port, counted from 1, is like (`ibv_query_port`).
    ///
    /// # Errors
    /// There is no such port (`EINVAL`); the device is lost.
    pub fn query_port(&self, port: u8) -> Result<PortAttr> {
        let attributes = self.open.call(&QueryPort { port, ..QueryPort::new_zeroed() })?;
        PortAttr::new(&attributes)
    }

    /// An entry of a port's GID table (`ibv_query_gid`).
    ///
    /// # Errors
    /// There is no such port or entry (`EINVAL`); the device is lost.
    pub fn query_gid(&self, port: u8, index: u32) -> Result<Gid> {
        let query = QueryGid { port, index: U32::new(index), ..QueryGid::new_zeroed() };
        self.open.call(&query).map(|entry| Gid(entry.gid))
    }

    /// An entry of a port's P_Key table, as a number (`ibv_query_pkey`); 0: not in use.
    ///
    /// # Errors
    /// There is no such port or entry (`EINVAL`); the device is lost.
    pub fn query_pkey(&self, port: u8, index: u32) -> Result<u16> {
        let query = QueryPkey { port, index: U32::new(index), ..QueryPkey::new_zeroed() };
        self.open.call(&query).map(|entry| entry.pkey.get())
    }

    /// Number of completion vectors, at least 1.
    pub fn num_comp_vectors(&self) -> u32 {
        self.open.config().completion_vectors.into()
    }

    /// How the queue pairs and CQs that are made now ring. The daemon's configuration decides.
    ///
    /// # Errors
    /// There are too many UARs (`ENOMEM`); the device is lost.
    pub fn doorbells(&self) -> Result<Doorbells> {
        self.open.doorbells()
    }

    /// Makes a protection domain (`ibv_alloc_pd`).
    ///
    /// # Errors
    /// There are too many (`ENOMEM`); the device is lost.
    pub fn alloc_pd(&self) -> Result<Pd> {
        Pd::new(&self.open)
    }

    /// Makes a channel for completion events (`ibv_create_comp_channel`) on a completion vector, counted from 0
    /// (verbs takes it with the CQ).
    ///
    /// # Errors
    /// There is no such vector (`EINVAL`); no file descriptor is left.
    pub fn create_comp_channel(&self, vector: u32) -> Result<CompChannel> {
        CompChannel::new(&self.open, vector)
    }

    /// Makes a CQ for at least `cqe` completions (`ibv_create_cq`), with the channel for its events if it shall
    /// have any.
    ///
    /// # Errors
    /// It holds none, or more than a CQ can (`EINVAL`); the channel is of another context (`EINVAL`); there are
    /// too many (`ENOMEM`); the device is lost.
    pub fn create_cq(&self, cqe: u32, channel: Option<&CompChannel>) -> Result<Cq> {
        Cq::new(&self.open, cqe, channel)
    }

    /// Makes an XRC domain (`ibv_open_xrcd`, without a file: who shares it shares this value).
    ///
    /// # Errors
    /// There are too many (`ENOMEM`); the device has no XRC (`EOPNOTSUPP`); the device is lost.
    pub fn open_xrcd(&self) -> Result<Xrcd> {
        Xrcd::new(&self.open)
    }

    /// The next asynchronous event (`ibv_get_async_event`); `None` if there is none before `timeout` ends.
    /// Without a timeout it waits for ever.
    ///
    /// # Errors
    /// The device is lost, and the event that says so was taken; the kernel refuses to wait.
    pub fn get_async_event(&self, timeout: impl Into<Option<Duration>>) -> Result<Option<AsyncEvent>> {
        self.open.get_async_event(Deadline::after(timeout.into()))
    }

    /// A descriptor that is readable while there is an asynchronous event.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        self.open.async_fd()
    }

    /// Whether the device is lost, so that every verb answers `EIO`.
    pub fn is_lost(&self) -> bool {
        self.open.loss().is_lost()
    }
}
