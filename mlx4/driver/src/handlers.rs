//! What the threads of the event queues do.

use std::sync::Arc;
use std::time::Duration;

use mlx4_wire::eqe::{CommandEvent, Eqe, EventType};

use crate::cmd::Commands;
use crate::eq::EventHandler;
use crate::error::{Error, FieldError, Fields};
use crate::event::{Bounds, Event, EventSink};
use crate::health::Health;
use crate::port::Ports;
use crate::registry::Registry;
use crate::shared::CompletionSink;

/// Tells of an entry that can't be.
fn refused(sink: &dyn EventSink, result: Result<(), FieldError>) {
    if let Err(error) = result {
        sink.refused(&Error::from(error));
    }
}

/// Completes commands.
pub(crate) struct CommandHandler {
    pub(crate) commands: Arc<Commands>,
    pub(crate) sink: Arc<dyn EventSink>,
}

impl CommandHandler {
    fn take(&self, eqe: &Eqe) -> Result<(), FieldError> {
        let kind = eqe.event_type().0;
        Fields("EQE of a command").is("event_type", kind, EventType::COMMAND.0.into())?;
        self.commands.completed(&CommandEvent::from(eqe.data))
    }
}

impl EventHandler for CommandHandler {
    fn event(&mut self, eqe: &Eqe) {
        refused(&*self.sink, self.take(eqe));
    }
}

/// Hands completion events to whom they are for.
pub(crate) struct CompletionHandler {
    pub(crate) queues: Arc<Registry<CompletionSink>>,
    pub(crate) bounds: Bounds,
    pub(crate) sink: Arc<dyn EventSink>,
}

impl CompletionHandler {
    /// Takes an event.
    pub(crate) fn take(&self, eqe: &Eqe) {
        refused(
            &*self.sink,
            self.bounds.completion(eqe).map(|cqn| match self.queues.get(cqn) {
                Some(queue) => (queue.notify)(),
                // Its last event may come after it was destroyed.
                None => log::debug!("completion event of CQ {cqn:#x}, which isn't there"),
            }),
        );
    }
}

impl EventHandler for CompletionHandler {
    fn event(&mut self, eqe: &Eqe) {
        self.take(eqe);
    }
}

/// Hands asynchronous events on, and watches for a failure of the device.
pub(crate) struct AsyncHandler {
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) bounds: Bounds,
    pub(crate) commands: Arc<Commands>,
    pub(crate) health: Health,
    pub(crate) interval: Duration,
    /// The failure of the device was told.
    pub(crate) failed: bool,
}

impl AsyncHandler {
    fn tell(&self, event: &Event) {
        match *event {
            Event::Port { port, event } => self.ports.changed(port, event),
            Event::Lost => {
                log::warn!("an event queue was full: events may be lost");
                self.ports.forget();
            }
            _ => {}
        }
        self.sink.event(event);
    }
}

impl EventHandler for AsyncHandler {
    fn event(&mut self, eqe: &Eqe) {
        refused(
            &*self.sink,
            Event::read(eqe, &self.bounds).map(|events| {
                events.iter().for_each(|event| self.tell(event));
            }),
        );
    }

    fn overran(&mut self) {
        self.tell(&Event::Lost);
    }

    fn idle(&mut self) {
        if self.failed {
            return;
        }
        let wrong = self.health.check();
        if let Some(wrong) = &wrong {
            log::error!("{wrong}");
        }
        // Commands end for good too when the device doesn't take one.
        if wrong.is_some() || self.commands.is_dead() {
            self.failed = true;
            self.commands.kill();
            self.sink.event(&Event::Fatal);
        }
    }

    fn interval(&self) -> Option<Duration> {
        Some(self.interval)
    }
}
