//! All special queue pairs, and the thread that serves them.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use mlx4_pci::EventFd;
use mlx4_queue::{Completed, Completion, Notify};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::mad::MAD_SIZE;

use super::agent::Agent;
use super::special::{BUFFER_BYTES, COMPLETIONS, Parts, Special};
use super::{MadAddress, MadQueue, MadSink};
use crate::cmd::Ends;
use crate::error::{Error, Result};
use crate::event::EventSink;
use crate::numbers::Numbers;
use crate::object::{Pd, Uar};
use crate::port::Ports;
use crate::queues::CompletionQueue;
use crate::region::{Access, RegisteredMemory};
use crate::shared::{Shared, special_base};

/// Name of the thread.
const THREAD: &str = "mlx4-mad";
/// Completions that are taken at once.
const BATCH: usize = 32;

/// What the thread works with, and who sends.
struct Core {
    shared: Arc<Shared>,
    ports: Arc<Ports>,
    memory: RegisteredMemory,
    cq: CompletionQueue,
    specials: Vec<Special>,
    agent: Agent,
}

/// Both special queue pairs of each port.
pub(crate) struct MadService {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
    wake: EventFd,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl MadService {
    /// Makes the special queue pairs, serves them, and starts the link of each port.
    ///
    /// # Errors
    /// What couldn't be made. The device must be reset then.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        ports: &Arc<Ports>,
        mads: Arc<dyn MadSink>,
        events: Arc<dyn EventSink>,
    ) -> Result<Self> {
        let host = |what| move |source| Error::Host { what, source };
        let wake = EventFd::new(0).map_err(host("an eventfd"))?;
        let base = special_base(&shared.caps);
        shared.commands.simple(Opcode::CONF_SPECIAL_QP, base)?;
        let core = Arc::new(Core::new(shared, ports, base, mads, events, &wake)?);
        for special in &core.specials {
            special.start(&core.memory)?;
        }
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let work = {
            let core = Arc::clone(&core);
            let wake = wake.try_clone().map_err(host("an eventfd"))?;
            let stop = Arc::clone(&stop);
            move || core.serve(&wake, &stop)
        };
        let thread = std::thread::Builder::new().name(THREAD.into()).spawn(work).map_err(host("a thread"))?;
        let service = Self { core, thread: Mutex::new(Some(thread)), wake, stop };
        for port in ports.iter() {
            ports.configure(&shared.commands, port.number)?;
            Ports::init(&shared.commands, port.number)?;
        }
        Ok(service)
    }

    /// Sends a datagram through a special queue pair of a port.
    ///
    /// # Errors
    /// The address isn't one, or too many datagrams are under way.
    pub(crate) fn send(
        &self,
        port: u8,
        queue: MadQueue,
        address: &MadAddress,
        mad: &[u8; MAD_SIZE],
    ) -> Result<()> {
        self.core.send(port, queue, address, mad)
    }

    /// Takes the ports down and the special queue pairs back.
    ///
    /// # Errors
    /// The first failure; all is tried.
    pub(crate) fn close(mut self) -> Result<()> {
        let mut ends = Ends::default();
        let commands = Arc::clone(&self.core.shared.commands);
        for port in self.core.ports.iter() {
            ends.note(Ports::close(&commands, port.number));
        }
        self.end();
        let core = Arc::clone(&self.core);
        drop(self);
        let Some(core) = Arc::into_inner(core) else { return Err(Error::InUse(1)) };
        for special in core.specials {
            ends.note(special.destroy());
        }
        ends.note(core.cq.destroy());
        ends.note(core.memory.destroy());
        ends.note(commands.simple(Opcode::CONF_SPECIAL_QP, 0));
        ends.result()
    }

    /// Ends the thread.
    fn end(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        if let Err(error) = self.wake.write(1) {
            log::error!("can't stop the thread for datagrams: {error}");
            return;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread for datagrams has panicked");
        }
    }
}

impl Drop for MadService {
    fn drop(&mut self) {
        self.end();
    }
}

impl Core {
    fn new(
        shared: &Arc<Shared>,
        ports: &Arc<Ports>,
        base: u32,
        mads: Arc<dyn MadSink>,
        events: Arc<dyn EventSink>,
        wake: &EventFd,
    ) -> Result<Self> {
        let (pd, uar) = (Pd::new(shared)?, Uar::new(shared)?);
        // Two ports at most, each with two queue pairs.
        let count = 2 * ports.iter().count();
        let completions = u32::try_from(count).unwrap_or(4) * COMPLETIONS;
        let wake = wake.try_clone().map_err(|source| Error::Host { what: "an eventfd", source })?;
        let notify = move || {
            if let Err(error) = wake.write(1) {
                log::error!("can't wake the thread for datagrams: {error}");
            }
        };
        let cq = CompletionQueue::new(shared, completions, &uar, 0, notify)?;
        let memory = RegisteredMemory::new(shared, &pd, count * BUFFER_BYTES, Access::LOCAL)?;
        let parts = Parts { shared, pd: &pd, uar: &uar, cq: &cq };
        let mut specials = Vec::new();
        for queue in [MadQueue::Smi, MadQueue::Gsi] {
            for port in ports.iter() {
                let qpn = base + 2 * queue.qpn() + u32::from(port.number - 1);
                let number = Arc::new(Numbers::new("special queue pair", qpn, qpn + 1)).take()?;
                let offset = specials.len() * BUFFER_BYTES;
                specials.push(Special::new(&parts, number, (port.number, queue), offset)?);
            }
        }
        let agent = Agent {
            commands: Arc::clone(&shared.commands),
            ports: Arc::clone(ports),
            mads,
            events,
            snoop: !shared.caps.port_management_events,
        };
        Ok(Self { shared: Arc::clone(shared), ports: Arc::clone(ports), memory, cq, specials, agent })
    }

    fn serve(&self, wake: &EventFd, stop: &std::sync::atomic::AtomicBool) {
        // However many completions the device writes, the thread ends when it shall.
        let stopped = || stop.load(std::sync::atomic::Ordering::Acquire);
        while !stopped() {
            while !stopped() && self.serve_batch() {}
            self.cq.arm(Notify::Next);
            while !stopped() && self.serve_batch() {}
            // Blocks until a completion event or the end, which may have been told already.
            if let Err(error) = wake.read() {
                log::error!("can't wait for datagrams: {error}");
                return;
            }
        }
    }

    /// Serves some completions; false if there was none.
    fn serve_batch(&self) -> bool {
        let mut batch = Vec::with_capacity(BATCH);
        let polled = self.cq.poll(BATCH, |completion| batch.push(completion));
        for completion in &batch {
            self.completed(completion);
        }
        if batch.iter().any(|completion| matches!(completion.outcome, Completed::Failed { .. })) {
            self.recover();
        }
        match polled {
            Ok(count) => count != 0,
            Err(error) => {
                self.agent.events.refused(&error);
                true
            }
        }
    }

    fn completed(&self, completion: &Completion) {
        let Some(special) = self.specials.iter().find(|special| special.number() == completion.qpn) else {
            return;
        };
        // Both kinds of slots are far fewer.
        let slot = usize::try_from(completion.wr_id).unwrap_or(usize::MAX);
        match &completion.outcome {
            Completed::Sent { .. } => special.sent(slot),
            Completed::Failed { send, syndrome, .. } => {
                log::debug!("{:?} of port {}: {syndrome}", special.queue, special.port);
                if *send {
                    special.sent(slot);
                }
            }
            Completed::Received(received) => {
                let port = self.ports.get(special.port);
                let mad = port.and_then(|port| special.received(&self.memory, port, slot, received));
                if let Err(error) = special.post_receive(&self.memory, slot) {
                    log::error!("receive request of a special queue pair: {error}");
                }
                match mad {
                    Ok(mad) => self.took(special, &mad),
                    Err(error) => self.agent.events.refused(&error),
                }
            }
        }
    }

    /// Starts those again that have failed.
    fn recover(&self) {
        for special in &self.specials {
            if let Err(error) = special.recover(&self.memory) {
                log::error!("{:?} of port {}: {error}", special.queue, special.port);
            }
        }
    }

    fn took(&self, special: &Special, mad: &super::ReceivedMad) {
        let sent = self.agent.take(mad).and_then(|answer| match answer {
            Some(answer) => self.send(special.port, special.queue, &answer.address, &answer.mad),
            None => Ok(()),
        });
        if let Err(error) = sent {
            // Whoever sent it may be to blame.
            log::debug!("datagram that came through port {}: {error}", special.port);
        }
    }

    fn send(&self, port: u8, queue: MadQueue, address: &MadAddress, mad: &[u8; MAD_SIZE]) -> Result<()> {
        let special = self.specials.iter().find(|special| special.port == port && special.queue == queue);
        let special = special.ok_or(Error::argument("port", port))?;
        special.send(&self.shared.commands, &self.memory, self.ports.get(port)?, address, mad)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use mlx4_wire::ctx::qp::QpState;
    use mlx4_wire::mad::QP1_QKEY;
    use mlx4_wire::mad::portinfo::PortState;

    use super::*;
    use crate::testing::Bench;
    use crate::{Config, Hca};

    fn eventually(what: &str, probe: impl Fn() -> bool) {
        let start = Instant::now();
        while !probe() {
            assert!(start.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn special(hca: &Hca, queue: MadQueue) -> &Special {
        let core = &hca.mads.as_ref().expect("ports are served").core;
        core.specials.iter().find(|special| special.queue == queue).expect("both are there")
    }

    #[test]
    fn special_queue_pair_that_fails_starts_again_with_all_its_buffers() {
        let bench = Bench::new(&Config::default());
        let hca = &bench.hca;
        eventually("the port is ACTIVE", || hca.port(1).unwrap().state == PortState::ACTIVE);
        for queue in [MadQueue::Smi, MadQueue::Gsi] {
            special(hca, queue).break_down();
            eventually("it starts again", || special(hca, queue).state() == QpState::RTS);
        }
        // More datagrams than there are buffers: each is given back.
        let lid = hca.port(1).unwrap().lid;
        let grh = None;
        let to = MadAddress { dlid: lid, sl: 0, path_bits: 0, qpn: 1, qkey: QP1_QKEY, pkey_index: 0, grh };
        for _ in 0..200 {
            eventually("a free buffer", || hca.send_mad(1, MadQueue::Gsi, &to, &[0; MAD_SIZE]).is_ok());
        }
        eventually("the port is still ACTIVE", || hca.port(1).unwrap().state == PortState::ACTIVE);
        bench.hca.close().unwrap();
    }
}
