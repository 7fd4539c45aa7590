//! What is done with a datagram that comes through a special queue pair.

use std::sync::Arc;

use mlx4_wire::U16;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::portinfo::PortInfo;
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::mad::{LID_PERMISSIVE, MAD_SIZE, QP1_QKEY};
use zerocopy::FromBytes;

use super::directed::{self, Inbound};
use super::{MadAddress, MadQueue, MadSink, ReceivedMad, ifc};
use crate::cmd::Commands;
use crate::error::Result;
use crate::event::{Event, EventSink, PortEvent};
use crate::path::GlobalRoute;
use crate::port::Ports;

/// Mellanox's own classes, which its firmware answers.
const VENDOR_CLASSES: [MgmtClass; 2] = [MgmtClass::VENDOR_LOW_FIRST, MgmtClass(0x0a)];

/// What is to be sent because of a datagram that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) address: MadAddress,
    pub(super) mad: [u8; MAD_SIZE],
}

/// Decides what is done with datagrams.
pub(super) struct Agent {
    pub(super) commands: Arc<Commands>,
    pub(super) ports: Arc<Ports>,
    pub(super) mads: Arc<dyn MadSink>,
    pub(super) events: Arc<dyn EventSink>,
    /// The device doesn't tell of changes: what the subnet manager sets is watched.
    pub(super) snoop: bool,
}

impl Agent {
    /// Takes a datagram; returns what is to be sent, if anything.
    ///
    /// # Errors
    /// The firmware didn't process it.
    pub(super) fn take(&self, received: &ReceivedMad) -> Result<Option<Answer>> {
        let Ok((header, _)) = MadHeader::read_from_prefix(&received.mad) else { return Ok(None) };
        let queue = if received.arrival.qpn == 0 { MadQueue::Smi } else { MadQueue::Gsi };
        let subnet = header.mgmt_class.is_subnet_management();
        if header.base_version != MadHeader::BASE_VERSION || subnet != (queue == MadQueue::Smi) {
            return Ok(None);
        }
        match queue {
            MadQueue::Smi => self.subnet(received),
            MadQueue::Gsi => self.general(received, &header),
        }
    }

    /// A subnet management packet.
    fn subnet(&self, received: &ReceivedMad) -> Result<Option<Answer>> {
        let mut smp = Smp::from_mad(&received.mad);
        let directed = smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE;
        if directed {
            match directed::inbound(&mut smp, received.port) {
                Inbound::Discard => return Ok(None),
                Inbound::Back => {
                    self.mads.received(&ReceivedMad { mad: smp.to_mad(), ..*received });
                    return Ok(None);
                }
                Inbound::Here => {}
            }
        }
        let received = ReceivedMad { mad: smp.to_mad(), ..*received };
        match smp.header.method {
            Method::TRAP if received.arrival.slid == 0 => self.forward_trap(&received).map(Some),
            Method::GET | Method::SET | Method::TRAP_REPRESS
                if smp.attribute_id() != SmpAttribute::SM_INFO =>
            {
                self.ask_firmware(&received, &smp, directed)
            }
            Method::GET | Method::SET => {
                let refused = (!self.mads.received(&received)).then(|| refuse(&received));
                Ok(refused.map(|mad| self.address_back(&received, finish(&smp, mad, directed), directed)))
            }
            _ => {
                self.mads.received(&received);
                Ok(None)
            }
        }
    }

    /// The firmware's agent answers.
    fn ask_firmware(&self, received: &ReceivedMad, request: &Smp, directed: bool) -> Result<Option<Answer>> {
        let mad = ifc::process(&self.commands, received.port, &received.mad, &received.arrival)?;
        let answer = Smp::from_mad(&mad);
        if answer.header.method != Method::GET_RESP {
            return Ok(None);
        }
        if self.snoop && request.header.method == Method::SET && answer.status() == Status::GOOD {
            self.watch(received.port, request);
        }
        Ok(Some(self.address_back(received, finish(request, mad, directed), directed)))
    }

    fn address_back(&self, received: &ReceivedMad, mad: [u8; MAD_SIZE], directed: bool) -> Answer {
        let dlid = if directed { LID_PERMISSIVE } else { received.arrival.slid };
        let address = MadAddress {
            dlid,
            sl: 0,
            path_bits: received.arrival.path_bits,
            qpn: 0,
            qkey: 0,
            pkey_index: 0,
            grh: None,
        };
        Answer { address, mad }
    }

    /// A trap of the firmware's own: the driver is to send it to the subnet manager.
    fn forward_trap(&self, received: &ReceivedMad) -> Result<Answer> {
        let info: PortInfo = self.ports.get(received.port)?.info(&self.commands)?;
        let address = MadAddress {
            dlid: info.master_sm_lid.get(),
            sl: info.lanes.master_sm_sl(),
            path_bits: 0,
            qpn: 0,
            qkey: 0,
            pkey_index: 0,
            grh: None,
        };
        Ok(Answer { address, mad: received.mad })
    }

    /// Tells of what the subnet manager has set, where the device doesn't.
    fn watch(&self, port: u8, request: &Smp) {
        for event in changes(request) {
            self.ports.changed(port, *event);
            self.events.event(&Event::Port { port, event: *event });
        }
    }

    /// A datagram of any other class.
    fn general(&self, received: &ReceivedMad, header: &MadHeader) -> Result<Option<Answer>> {
        let firmwares = [MgmtClass::PERF_MGT, MgmtClass::CONG_MGT].contains(&header.mgmt_class)
            || VENDOR_CLASSES.contains(&header.mgmt_class);
        let request = [Method::GET, Method::SET].contains(&header.method);
        let mad = if firmwares && request {
            let mad = ifc::process(&self.commands, received.port, &received.mad, &received.arrival)?;
            if mad[3] != Method::GET_RESP.0 {
                return Ok(None);
            }
            mad
        } else if self.mads.received(received) || !request {
            return Ok(None);
        } else {
            refuse(received)
        };
        self.reply_to(received).map(|address| Some(Answer { address, mad }))
    }

    /// Where the answer to a datagram on QP1 goes.
    fn reply_to(&self, received: &ReceivedMad) -> Result<MadAddress> {
        let arrival = &received.arrival;
        let grh = match &arrival.grh {
            Some(grh) => Some(self.route_back(received.port, grh)?),
            None => None,
        };
        Ok(MadAddress {
            dlid: arrival.slid,
            sl: arrival.sl,
            path_bits: arrival.path_bits,
            qpn: arrival.source_qpn,
            qkey: QP1_QKEY,
            pkey_index: arrival.pkey_index,
            grh,
        })
    }

    /// The global route back along the one that a datagram came.
    fn route_back(&self, port: u8, grh: &[u8; super::GRH_BYTES]) -> Result<GlobalRoute> {
        let (mut sgid, mut dgid) = ([0; 16], [0; 16]);
        sgid.copy_from_slice(&grh[8..24]);
        dgid.copy_from_slice(&grh[24..40]);
        let gids = self.ports.get(port)?.gids(&self.commands)?;
        let index = gids.iter().position(|gid| *gid == dgid).unwrap_or(0);
        let word = u32::from_be_bytes([grh[0], grh[1], grh[2], grh[3]]);
        Ok(GlobalRoute {
            dgid: sgid,
            // A table has at most 128 entries.
            sgid_index: u8::try_from(index).unwrap_or(0),
            hop_limit: 0xff,
            traffic_class: (word >> 20 & 0xff) as u8,
            flow_label: word & 0xf_ffff,
        })
    }
}

/// What may have changed by what a subnet manager has set.
fn changes(request: &Smp) -> &'static [PortEvent] {
    match request.attribute_id() {
        SmpAttribute::PORT_INFO => {
            let info: PortInfo = request.attribute();
            if info.timeout.client_reregister() {
                &[PortEvent::Sm, PortEvent::Lid, PortEvent::Gids, PortEvent::Reregister]
            } else {
                &[PortEvent::Sm, PortEvent::Lid, PortEvent::Gids]
            }
        }
        SmpAttribute::P_KEY_TABLE => &[PortEvent::Pkeys],
        SmpAttribute::GUID_INFO => &[PortEvent::Gids],
        SmpAttribute::SL_TO_VL_MAPPING_TABLE => &[PortEvent::VirtualLanes],
        _ => &[],
    }
}

/// An answer, turned round if its request came by a directed route.
fn finish(request: &Smp, mad: [u8; MAD_SIZE], directed: bool) -> [u8; MAD_SIZE] {
    if !directed {
        return mad;
    }
    let mut answer = Smp::from_mad(&mad);
    directed::answer(request, &mut answer);
    answer.to_mad()
}

/// The answer to a request that nobody takes.
fn refuse(received: &ReceivedMad) -> [u8; MAD_SIZE] {
    let mut mad = received.mad;
    if let Ok((header, _)) = MadHeader::mut_from_prefix(&mut mad) {
        header.method = Method::GET_RESP;
        header.status = U16::new(Status::UNSUPPORTED_METHOD_ATTRIBUTE.0);
    }
    mad
}

#[cfg(test)]
mod tests {
    use mlx4_wire::mad::portinfo::SubnetTimeout;
    use zerocopy::FromZeros;

    use super::*;

    fn set(attribute: SmpAttribute) -> Smp {
        let mut smp = Smp::new_zeroed();
        smp.header.method = Method::SET;
        smp.header.attribute_id = U16::new(attribute.0);
        smp
    }

    #[test]
    fn what_a_subnet_manager_sets_is_told_where_the_device_does_not() {
        assert_eq!(changes(&set(SmpAttribute::P_KEY_TABLE)), [PortEvent::Pkeys]);
        assert_eq!(changes(&set(SmpAttribute::GUID_INFO)), [PortEvent::Gids]);
        assert_eq!(changes(&set(SmpAttribute::LED_INFO)), []);
        let mut port = set(SmpAttribute::PORT_INFO);
        assert!(!changes(&port).contains(&PortEvent::Reregister));
        let mut info = PortInfo::new_zeroed();
        info.timeout = SubnetTimeout::new().with_client_reregister(true);
        port.set_attribute(&info);
        assert!(changes(&port).contains(&PortEvent::Reregister));
    }

    #[test]
    fn refusal_keeps_transaction_and_attribute() {
        let mut mad = [0; MAD_SIZE];
        mad[3] = Method::GET.0;
        mad[8..18].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 0, 0x10]);
        let arrival = crate::mad::Arrival {
            qpn: 1,
            source_qpn: 1,
            slid: 1,
            sl: 0,
            path_bits: 0,
            pkey_index: 0,
            grh: None,
        };
        let answer = refuse(&ReceivedMad { port: 1, mad, arrival });
        assert_eq!((answer[3], &answer[4..6]), (Method::GET_RESP.0, &[0, 0x0c][..]));
        assert_eq!(answer[8..18], mad[8..18]);
    }
}
