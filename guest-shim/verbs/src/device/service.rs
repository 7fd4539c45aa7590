//! The thread that takes replies and asynchronous events, maps what the device wants mapped, and notices when it is
//! gone.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use virtio_rdma::queue::{CONTROL, EVENT};

use super::Device;
use crate::error::{Error, Result};
use crate::event_fd::Event;

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Service {
    stop: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub(super) fn start(device: Arc<Device>) -> Result<Self> {
        let stop = Arc::new(Event::new().map_err(Error::system("an event descriptor"))?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("pv-events".into())
            .spawn(move || run(&device, &stopped))
            .map_err(Error::system("a thread"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.raise();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of events has panicked");
        }
    }
}

fn run(device: &Device, stop: &Event) {
    let control = device.transport.interrupt(CONTROL);
    let event = device.transport.interrupt(EVENT);
    let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut polled = vec![
        readable(stop.as_fd()),
        readable(device.loss.as_fd()),
        // What the daemon sends is for whoever asked it; only the end counts here.
        PollFd::from_borrowed_fd(device.transport.hangup(), PollFlags::RDHUP),
        readable(control.as_fd()),
        readable(event.as_fd()),
    ];
    polled.extend(device.transport.wanted().map(readable));
    loop {
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("poll: {error}");
                device.loss.set("nobody can wait for its events");
            }
        }
        let has = |index: usize| polled.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let wanted = has(5);
        if has(3) {
            control.clear();
            device.control.collect();
        }
        if has(4) {
            event.clear();
            device.asynchronous.drain();
        }
        if has(2) {
            device.loss.set("the daemon has closed the connection");
        }
        if has(0) || device.loss.is_lost() {
            break;
        }
        if wanted && !device.transport.serve() {
            polled.truncate(5);
        }
    }
    // Whoever still waits for a reply finds that the device is lost.
    device.control.collect();
}
