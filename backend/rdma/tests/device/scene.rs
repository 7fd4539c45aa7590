//! An HCA's devices: a host, and guests' sockets in a directory of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use paraverbs_rdma::{Doorbells, Engine, GuestSocket, GuestSocketConfig, RdmaHost, RelayConfig};
use paraverbs_tenant::{GuestConfig, Host};
use tempfile::TempDir;

use crate::fake::FakeHca;

pub(crate) struct Scene {
    pub(crate) hca: Arc<FakeHca>,
    pub(crate) host: Arc<RdmaHost>,
    folder: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(None, Duration::ZERO)
    }

    pub(crate) fn with(engine: Option<Arc<dyn Engine>>, spin: Duration) -> Self {
        let hca = FakeHca::new();
        let host = RdmaHost::start(Host::new(hca.clone()), engine, RelayConfig { spin }).unwrap();
        Self { hca, host, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn config(&self, name: &str) -> GuestSocketConfig {
        GuestSocketConfig {
            name: name.to_owned(),
            path: self.path(name),
            guest: GuestConfig::default(),
            require_seals: true,
            doorbells: Doorbells::default(),
        }
    }

    /// The socket of a guest.
    pub(crate) fn socket(&self, name: &str) -> GuestSocket {
        GuestSocket::listen(&self.host, self.config(name)).unwrap()
    }
}
