//! The seam on the model, as a driver sees it.

use std::thread;
use std::time::{Duration, Instant};

use mlx4_pci::{DmaBuffer, DmaError};
use mlx4_wire::cmd::fw::QueryFw;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::doorbell::{CQ_DOORBELL, SEND_DOORBELL, UAR_PAGE_BYTES};
use mlx4_wire::regs::{
    DeviceId, HCR_OFFSET, HcrControl, OWNER_OFFSET, RESET_OFFSET, VENDOR_ID, eq_doorbell_offset,
};
use zerocopy::IntoBytes;

use super::*;
use crate::fabric::FabricConfig;

/// Offset of the word of the HCR that posts.
const CONTROL: u64 = HCR_OFFSET + 0x18;

/// The device, behind the trait that a driver sees.
fn device() -> Arc<ModelDevice> {
    let fabric = Fabric::new(FabricConfig { subnet_manager: None, ..FabricConfig::default() }).unwrap();
    let config = HcaConfig { node_guid: 0x0002_c903_0000_0010, ports: 1, trace: None };
    Arc::new(ModelDevice::new(config, &fabric).unwrap())
}

/// Posts a command whose output goes to a mailbox, and polls for its end.
fn command(device: &dyn PciDevice, opcode: Opcode, toggle: bool, output: u64) -> Status {
    let [high, low] = [output >> 32, output & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
    for (offset, word) in [(0x00, 0), (0x04, 0), (0x08, 0), (0x0c, high), (0x10, low), (0x14, 0xffff_0000)] {
        device.set_register(HCR_OFFSET + offset, word).unwrap();
    }
    let control = HcrControl::new().with_opcode(opcode).with_go(true).with_toggle(toggle);
    let mut word = [0; 4];
    word.copy_from_slice(control.as_bytes());
    device.set_register(CONTROL, u32::from_be_bytes(word)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let word = device.register(CONTROL).unwrap();
        if word & 1 << 23 == 0 {
            return Status(u8::try_from(word >> 24).unwrap());
        }
        assert!(Instant::now() < deadline, "{opcode:?} does not end");
        thread::yield_now();
    }
}

fn query_fw(device: &dyn PciDevice, toggle: bool, mailbox: &DmaBuffer) -> Status {
    command(device, Opcode::QUERY_FW, toggle, mailbox.iova())
}

#[test]
fn query_fw_answers_in_a_mailbox_of_the_seam() {
    let device = device();
    assert_eq!(device.reset().unwrap(), ResetKind::Function);
    assert_eq!(device.register(OWNER_OFFSET).unwrap(), 0);
    let mailbox = device.dma().allocate(4096, 4096).unwrap();
    assert_eq!(query_fw(&*device, true, &mailbox), Status::OK);
    let firmware = mailbox.read_obj::<QueryFw>(0).unwrap();
    assert_eq!(firmware.cmd_interface_rev.get(), 3);
    assert_eq!(mailbox.load_be32(0).unwrap() >> 16, u32::from(firmware.fw_pages.get()));
    mailbox.release().unwrap();
    assert_eq!(device.refused(), 0);
}

#[test]
fn device_reaches_no_memory_before_the_first_reset() {
    let device = device();
    let mailbox = device.dma().allocate(4096, 4096).unwrap();
    assert_ne!(query_fw(&*device, true, &mailbox), Status::OK);
    assert_eq!(mailbox.load_be64(0).unwrap(), 0);
    assert_eq!(device.refused(), 1);
    device.reset().unwrap();
    assert_eq!(query_fw(&*device, true, &mailbox), Status::OK);
    assert_ne!(mailbox.load_be64(0).unwrap(), 0);
}

#[test]
fn access_to_released_memory_is_refused() {
    let device = device();
    device.reset().unwrap();
    let mailbox = device.dma().allocate(4096, 4096).unwrap();
    let stale = mailbox.iova();
    mailbox.release().unwrap();
    assert_ne!(command(&*device, Opcode::QUERY_FW, true, stale), Status::OK);
    assert_eq!(device.refused(), 1);
}

#[test]
fn access_past_a_mapping_is_refused() {
    let device = device();
    device.reset().unwrap();
    let (first, second) = (device.dma().allocate(1, 1).unwrap(), device.dma().allocate(1, 1).unwrap());
    assert!(second.iova() > first.iova() + 4096, "{first:?} and {second:?} touch");
    assert_ne!(command(&*device, Opcode::QUERY_FW, true, first.iova() + 4096), Status::OK);
    assert_eq!(device.refused(), 1);
}

#[test]
fn dropped_buffer_stays_mapped_until_the_reset() {
    let device = device();
    device.reset().unwrap();
    let before = device.dma().limits().unwrap();
    let mailbox = device.dma().allocate(4096, 4096).unwrap();
    let kept = mailbox.memory().clone();
    let iova = mailbox.iova();
    drop(mailbox);
    assert_eq!(device.dma().quarantined(), 4096);
    assert_eq!(command(&*device, Opcode::QUERY_FW, true, iova), Status::OK);
    assert_ne!(kept.load_be64(0).unwrap(), 0);

    device.reset().unwrap();
    assert_eq!(device.dma().quarantined(), 0);
    assert_eq!(device.dma().limits().unwrap(), before);
    assert_ne!(command(&*device, Opcode::QUERY_FW, true, iova), Status::OK);
}

#[test]
fn read_only_memory_is_not_written() {
    let device = device();
    device.reset().unwrap();
    let memory = mlx4_pci::HostMemory::allocate(4096).unwrap();
    let mailbox = device.dma().map(memory, 4096, mlx4_pci::DmaAccess::Read).unwrap();
    assert_ne!(query_fw(&*device, true, &mailbox), Status::OK);
    assert_eq!(mailbox.load_be64(0).unwrap(), 0);
}

#[test]
fn address_that_a_process_could_have_is_refused() {
    let device = device();
    let memory = mlx4_pci::HostMemory::allocate(4096).unwrap();
    let own = memory.address().addr().get() as u64;
    for iova in [0, 4096, own, 0x0004_0010_0000_0000] {
        let result = device.dma().map_at(iova, memory.clone(), mlx4_pci::DmaAccess::ReadWrite);
        assert!(matches!(result, Err(DmaError::Reserved { .. })), "{iova:#x}");
    }
}

#[test]
fn reset_frees_the_owner_word_and_the_command_register() {
    let device = device();
    device.reset().unwrap();
    let mailbox = device.dma().allocate(4096, 4096).unwrap();
    assert_eq!(device.register(OWNER_OFFSET).unwrap(), 0);
    assert_ne!(device.register(OWNER_OFFSET).unwrap(), 0);
    assert_eq!(query_fw(&*device, true, &mailbox), Status::OK);
    assert_ne!(device.register(CONTROL).unwrap() & 1 << 21, 0);
    device.reset().unwrap();
    assert_eq!(device.register(OWNER_OFFSET).unwrap(), 0);
    assert_eq!(device.register(CONTROL).unwrap(), 0);
}

#[test]
fn software_reset_of_a_foreign_hand_ends_bus_mastering() {
    let device = device();
    device.reset().unwrap();
    device.set_register(RESET_OFFSET, 1).unwrap();
    let mailbox = device.dma().allocate(4096, 4096).unwrap();
    assert_ne!(query_fw(&*device, true, &mailbox), Status::OK);
}

#[test]
fn register_outside_or_unaligned_is_refused() {
    let device = device();
    let size = device.identity().bar_bytes[0];
    assert!(device.register(size - 4).is_ok());
    for offset in [size, u64::MAX - 3] {
        assert!(matches!(device.register(offset), Err(RegisterError::Outside { .. })));
        assert!(matches!(device.set_register(offset, 0), Err(RegisterError::Outside { .. })));
    }
    assert!(matches!(device.register(HCR_OFFSET + 2), Err(RegisterError::Unaligned { .. })));
    let mut beyond = [0; 8];
    assert!(matches!(device.config_read(4092, &mut beyond), Err(RegisterError::Outside { .. })));
}

#[test]
fn interrupts_arrive_while_they_are_enabled() {
    let device = device();
    let vector = device.interrupt(3).unwrap();
    device.interrupts.signal(3);
    assert!(vector.read().is_err(), "counted while disabled");
    device.enable_interrupts(4).unwrap();
    device.reset().unwrap();
    device.interrupts.signal(3);
    assert_eq!(vector.read().unwrap(), 1);
    device.disable_interrupts().unwrap();
    device.interrupts.signal(3);
    assert!(vector.read().is_err(), "counted after disabling");
    assert!(matches!(device.enable_interrupts(129), Err(InterruptError::NoVector { .. })));
}

#[test]
fn identity_is_that_of_a_connectx_3() {
    let device = device();
    let identity = device.identity();
    assert_eq!((identity.vendor, identity.device), (VENDOR_ID, DeviceId::MT27500.0));
    assert_eq!(identity.bar_bytes, [1 << 20, 0, 8 << 20, 0, 0, 0]);
    assert_eq!(identity.name, "model:0002c90300000010");
    let mut ids = [0; 4];
    device.config_read(0, &mut ids).unwrap();
    assert_eq!(ids, [0xb3, 0x15, 0x03, 0x10]);
}

/// The seam doesn't depend on the wire crate, so it has a copy of these offsets.
#[test]
fn doorbells_are_where_the_wire_crate_has_them() {
    let page = u64::from(UAR_PAGE_BYTES);
    let place = |kind: DoorbellKind, uar| kind.place(uar, 8 << 20).unwrap().offset;
    assert_eq!(place(DoorbellKind::Send(1), 0x80), 0x80 * page + u64::from(SEND_DOORBELL));
    assert_eq!(place(DoorbellKind::Arm(1), 0x80), 0x80 * page + u64::from(CQ_DOORBELL));
    for eqn in 0..512 {
        assert_eq!(place(DoorbellKind::Eq(eqn), eqn / 4), eq_doorbell_offset(eqn));
    }
}

#[test]
fn doorbell_of_nothing_is_counted_by_the_model() {
    let device = device();
    device.reset().unwrap();
    device.doorbell(1, DoorbellKind::Eq(5)).unwrap().ring(0x8000_0000);
    assert_eq!(device.hca().counters().bad_doorbells.get(), 1);
    assert!(matches!(device.doorbell(0x800, DoorbellKind::Send(1)), Err(RegisterError::Outside { .. })));
}
