//! What happens when the HCA fails: guests are stopped, the HCA is reset and brought up again, guests are told.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use paraverbs_hca::Mlx4Hca;
use paraverbs_rdma::RdmaHost;

use crate::status::HcaState;

/// Pauses before the tries to bring the HCA up; after the last it has failed for good.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

#[derive(Debug)]
enum Message {
    Failed,
    Stop,
}

/// The thread that waits for a failure. Dropping it stops the thread.
#[derive(Debug)]
pub(crate) struct Recovery {
    sender: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    state: Arc<AtomicU8>,
}

impl Recovery {
    /// Starts the thread.
    pub(crate) fn start(hca: &Arc<Mlx4Hca>, rdma: &Arc<RdmaHost>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let state = Arc::new(AtomicU8::new(HcaState::Running as u8));
        let work = Work { hca: Arc::clone(hca), rdma: Arc::clone(rdma), state: Arc::clone(&state), receiver };
        let thread = thread::Builder::new().name("hca-recovery".into()).spawn(move || work.run())?;
        let failed = sender.clone();
        hca.on_fatal(Box::new(move || {
            // Nobody listens while the daemon stops.
            let _stopping = failed.send(Message::Failed);
        }));
        Ok(Self { sender, thread: Some(thread), state })
    }

    pub(crate) fn state(&self) -> HcaState {
        HcaState::of(self.state.load(Ordering::Acquire))
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        let _ended = self.sender.send(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that recovers the HCA has panicked");
        }
    }
}

struct Work {
    hca: Arc<Mlx4Hca>,
    rdma: Arc<RdmaHost>,
    state: Arc<AtomicU8>,
    receiver: Receiver<Message>,
}

impl Work {
    fn run(self) {
        while let Ok(Message::Failed) = self.receiver.recv() {
            if !self.recover() {
                return;
            }
        }
    }

    fn set(&self, state: HcaState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Brings the HCA and its guests back. False if there is no point in waiting for another failure.
    fn recover(&self) -> bool {
        log::error!("the HCA has failed; it is reset, and guests have to make their objects anew");
        self.set(HcaState::Recovering);
        self.rdma.stop_all();
        for pause in PAUSES {
            if !self.pause(pause) {
                return false;
            }
            match self.hca.restart() {
                Ok(()) => {
                    self.rdma.device_lost();
                    self.rdma.device_ready();
                    self.set(HcaState::Running);
                    log::warn!("the HCA works again");
                    return true;
                }
                Err(error) => log::error!("the HCA does not come up again: {error}"),
            }
        }
        self.rdma.device_failed();
        self.set(HcaState::Failed);
        log::error!("the HCA has failed for good; check the card, and start the daemon again");
        false
    }

    /// Waits; false if the daemon stops. More news of the same failure don't matter.
    fn pause(&self, pause: Duration) -> bool {
        loop {
            match self.receiver.recv_timeout(pause) {
                Ok(Message::Failed) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }
}
