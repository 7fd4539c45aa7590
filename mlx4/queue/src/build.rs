//! Send requests as segments of a WQE.

use mlx4_wire::wqe::{
    AtomicSeg, BYTE_COUNT_BYTES, BindKind, BindSeg, ByteCount, Completion, CtrlFlags, CtrlOpcode, CtrlSeg,
    CtrlSize, DataSeg, DatagramSeg, FastRegisterSeg, LocalInvalidateSeg, LsoHeader, MaskedAtomicSeg, Opcode,
    RemoteAddressSeg, WQE_CHUNK_BYTES, WQE_UNIT_BYTES,
};
use mlx4_wire::{Number24, U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::RingMemory;
use crate::request::{Bind, Data, Destination, Operation, Register, Remote, SendRequest, Sge};
use crate::wqe::WqeWriter;

/// Writes a request that was checked. `remote_srqn` is that of XRC, 0 otherwise.
pub(crate) fn build<M: RingMemory>(wqe: &mut WqeWriter<'_, M>, request: &SendRequest<'_>, remote_srqn: u32) {
    wqe.segment(&control(request, remote_srqn));
    if let Some(to) = request.destination {
        wqe.segment(&datagram(to));
    }
    operands(wqe, &request.operation);
    match request.data {
        _ if !request.operation.takes_data() => {}
        Data::Pieces(list) => pieces(wqe, list),
        Data::Inline(pieces) => wqe.inline(pieces),
        Data::Segmented { header, segment, pieces: list } => {
            wqe.header(lso(header, segment), header);
            pieces(wqe, list);
        }
    }
}

fn control(request: &SendRequest<'_>, remote_srqn: u32) -> CtrlSeg {
    let (opcode, immediate) = opcode(&request.operation);
    let segmented = matches!(request.data, Data::Segmented { .. });
    let (opcode, large_header) = match request.data {
        Data::Segmented { header, .. } => (Opcode::LSO, lso_bytes(header) > WQE_CHUNK_BYTES as usize),
        Data::Pieces(_) | Data::Inline(_) => (opcode, false),
    };
    // Requests that change keys start when all before them are done, as those may use the old keys.
    let strong_order = matches!(
        request.operation,
        Operation::Bind(_) | Operation::LocalInvalidate(_) | Operation::FastRegister(_)
    );
    let completion = if request.flags.signalled { Completion::ALWAYS } else { Completion::ON_ERROR };
    CtrlSeg {
        opcode: CtrlOpcode::new().with_opcode(opcode).with_large_header(large_header),
        size: CtrlSize::new().with_fence(request.flags.fence),
        flags: CtrlFlags::new()
            .with_remote_srqn(remote_srqn)
            .with_strong_order(strong_order)
            // Only the HCA can tell the checksums of packets that it makes.
            .with_ip_checksum(segmented)
            .with_l4_checksum(segmented)
            .with_completion(completion)
            .with_solicited(request.flags.solicited),
        immediate: U32::from_bytes(immediate),
    }
}

/// The opcode, and the last word of the control segment.
fn opcode(operation: &Operation) -> (Opcode, [u8; 4]) {
    match *operation {
        Operation::Send => (Opcode::SEND, [0; 4]),
        Operation::SendImm(immediate) => (Opcode::SEND_IMM, immediate),
        Operation::SendInvalidate(rkey) => (Opcode::SEND_INVALIDATE, rkey.to_be_bytes()),
        Operation::Write(_) => (Opcode::RDMA_WRITE, [0; 4]),
        Operation::WriteImm(_, immediate) => (Opcode::RDMA_WRITE_IMM, immediate),
        Operation::Read(_) => (Opcode::RDMA_READ, [0; 4]),
        Operation::CompareSwap { .. } => (Opcode::ATOMIC_CS, [0; 4]),
        Operation::FetchAdd { .. } => (Opcode::ATOMIC_FA, [0; 4]),
        Operation::MaskedCompareSwap { .. } => (Opcode::MASKED_ATOMIC_CS, [0; 4]),
        Operation::MaskedFetchAdd { .. } => (Opcode::MASKED_ATOMIC_FA, [0; 4]),
        Operation::Bind(_) => (Opcode::BIND_MW, [0; 4]),
        Operation::LocalInvalidate(_) => (Opcode::LOCAL_INVALIDATE, [0; 4]),
        Operation::FastRegister(_) => (Opcode::FAST_REGISTER, [0; 4]),
        Operation::Nop => (Opcode::NOP, [0; 4]),
    }
}

fn datagram(to: &Destination) -> DatagramSeg {
    let mut segment = DatagramSeg::new_zeroed();
    segment.av = to.av;
    segment.remote_qpn = Number24::wrapping(to.qpn);
    segment.qkey = U32::new(to.qkey);
    segment.vlan = U16::new(0);
    segment
}

/// The segments between control and data that the operation has.
fn operands<M: RingMemory>(wqe: &mut WqeWriter<'_, M>, operation: &Operation) {
    if let Some(remote) = operation.remote() {
        wqe.segment(&remote_address(remote));
    }
    let atomic = |swap_add, compare| AtomicSeg { swap_add: U64::new(swap_add), compare: U64::new(compare) };
    match *operation {
        Operation::CompareSwap { compare, swap, .. } => wqe.segment(&atomic(swap, compare)),
        Operation::FetchAdd { add, .. } => wqe.segment(&atomic(add, 0)),
        Operation::MaskedFetchAdd { add, boundary, .. } => wqe.segment(&atomic(add, boundary)),
        Operation::MaskedCompareSwap { compare, swap, compare_mask, swap_mask, .. } => {
            wqe.segment(&MaskedAtomicSeg {
                swap: U64::new(swap),
                compare: U64::new(compare),
                swap_mask: U64::new(swap_mask),
                compare_mask: U64::new(compare_mask),
            });
        }
        Operation::Bind(ref window) => wqe.segment(&bind(window)),
        Operation::LocalInvalidate(key) => {
            let mut segment = LocalInvalidateSeg::new_zeroed();
            segment.key = U32::new(key);
            wqe.segment(&segment);
        }
        Operation::FastRegister(ref region) => wqe.segment(&register(region)),
        _ => {}
    }
}

fn remote_address(to: &Remote) -> RemoteAddressSeg {
    let mut segment = RemoteAddressSeg::new_zeroed();
    segment.address = U64::new(to.address);
    segment.rkey = U32::new(to.rkey);
    segment
}

fn bind(window: &Bind) -> BindSeg {
    BindSeg {
        access: window.access,
        kind: BindKind::new().with_type_2(window.type_2).with_zero_based(window.zero_based),
        new_rkey: U32::new(window.rkey),
        lkey: U32::new(window.lkey),
        start: U64::new(window.address),
        length: U64::new(window.length),
    }
}

fn register(region: &Register) -> FastRegisterSeg {
    let mut segment = FastRegisterSeg::new_zeroed();
    segment.access = region.access;
    segment.key = U32::new(region.key);
    segment.page_list = U64::new(region.page_list);
    segment.start = U64::new(region.address);
    segment.length = U64::new(region.length);
    segment.log2_page = U32::new(region.log2_page.into());
    segment
}

/// Pieces without bytes are left out: a count of 0 stands for 2 GiB.
fn pieces<M: RingMemory>(wqe: &mut WqeWriter<'_, M>, list: &[Sge]) {
    for piece in list.iter().filter(|piece| piece.length != 0) {
        wqe.segment(&DataSeg {
            byte_count: ByteCount::new().with_count(piece.length),
            lkey: U32::new(piece.lkey),
            address: U64::new(piece.address),
        });
    }
}

/// Bytes of an LSO segment.
fn lso_bytes(header: &[u8]) -> usize {
    (BYTE_COUNT_BYTES as usize + header.len()).next_multiple_of(WQE_UNIT_BYTES as usize)
}

fn lso(header: &[u8], segment: u16) -> [u8; BYTE_COUNT_BYTES as usize] {
    // The poster checked that the count fits.
    let bytes = u16::try_from(header.len()).unwrap_or(u16::MAX);
    let mut word = [0; BYTE_COUNT_BYTES as usize];
    word.copy_from_slice(LsoHeader::new().with_segment_size(segment).with_header_bytes(bytes).as_bytes());
    word
}
