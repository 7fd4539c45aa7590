//! The built-in subnet manager: brings the subnet's ports to ACTIVE, and answers as its administrator.
//!
//! It is a node of its own at port 0 of the switch and does all by MADs, from QP0 and QP1; it shares no
//! state with the switch or an HCA. Module `manager` is the whole of it as a state machine; here is the thread
//! that gives it a clock.
//!
//! What it doesn't do: more than one switch (a switch behind a port stays in INIT), LMC, M_Keys, QoS, and
//! handing over to another subnet manager.

mod bring_up;
mod config;
mod guids;
mod inbox;
mod lids;
pub(crate) mod manager;
mod notices;
mod requests;
pub(crate) mod subnet;
mod sweep;
mod tables;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

pub use config::SmConfig;
use inbox::{Inbox, Wake};
use manager::Manager;

use super::Endpoint;
use super::datagram::Datagram;

/// The thread of a subnet manager; stops when dropped.
pub(super) struct SubnetManager {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl SubnetManager {
    /// Starts a manager. `connect` is given its endpoint and answers with the way to send from it.
    pub(super) fn start<S>(config: SmConfig, connect: impl FnOnce(Arc<dyn Endpoint>) -> S) -> io::Result<Self>
    where
        S: Fn(&Datagram) + Send + 'static,
    {
        let inbox = Arc::new(Inbox::default());
        let send = connect(inbox.clone());
        let queue = inbox.clone();
        let thread = std::thread::Builder::new()
            .name("mlx4-sm".into())
            .spawn(move || run(Manager::new(config), &queue, send))?;
        Ok(Self { inbox, thread: Some(thread) })
    }
}

impl Drop for SubnetManager {
    fn drop(&mut self) {
        self.inbox.close();
        let Some(thread) = self.thread.take() else { return };
        // Dropped by an endpoint that it handed a packet to: it ends by itself.
        let is_own = thread.thread().id() == std::thread::current().id();
        if !is_own && thread.join().is_err() {
            log::error!("the subnet manager's thread panicked");
        }
    }
}

fn run(mut manager: Manager, inbox: &Inbox, send: impl Fn(&Datagram)) {
    let start = Instant::now();
    loop {
        manager.poll(start.elapsed());
        manager.take_out().iter().for_each(&send);
        let timeout = manager.deadline().map(|at| at.saturating_sub(start.elapsed()));
        match inbox.wait(timeout) {
            Wake::Mad(datagram) => {
                manager.receive(start.elapsed(), &datagram);
                manager.take_out().iter().for_each(&send);
            }
            Wake::Timeout => (),
            Wake::Closed => return,
        }
    }
}
