//! Multicast groups (MGM entries) in ICM: a hash table of chains that the driver builds with READ_MCG and
//! WRITE_MCG; the device walks it for each multicast packet.

use mlx4_wire::cmd::Status;
use mlx4_wire::ctx::mcg::{
    LOG2_MCG_ENTRY_MAX, MCG_HEADER_BYTES, MCG_MEMBER_BYTES, McgHeader, McgMember, McgProtocol, mcg_capacity,
};
use zerocopy::{FromZeros, IntoBytes};

use super::burst::{Burst, IcmFault};

/// Chains longer than this are a loop of a confused driver.
const MAX_CHAIN: usize = 1 << 10;

/// The value of MGID_HASH: a hash of the GID, below the number of hash heads.
pub(crate) fn hash(gid: &[u8; 16], log2_heads: u8) -> u16 {
    let folded =
        gid.chunks_exact(2).fold(0u16, |h, pair| h.rotate_left(3) ^ u16::from_be_bytes([pair[0], pair[1]]));
    let mask = (1u32 << log2_heads.min(16)) - 1;
    u16::try_from(u32::from(folded) & mask).unwrap_or(0)
}

/// The ICM address of an entry.
///
/// # Errors
/// BAD_INDEX for an index beyond the table.
pub(crate) fn entry_addr(burst: &Burst, index: u32) -> Result<u64, Status> {
    if u64::from(index) >= 1 << burst.tables.log2_mc_entries {
        return Err(Status::BAD_INDEX);
    }
    Ok(burst.tables.mc_base.wrapping_add(u64::from(index) << burst.tables.log2_mc_entry_bytes))
}

/// Size of an entry in bytes.
pub(crate) fn entry_bytes(burst: &Burst) -> usize {
    1 << burst.tables.log2_mc_entry_bytes.min(LOG2_MCG_ENTRY_MAX)
}

/// Hands every member queue pair of a group to `each`. A group that nobody joined has none.
///
/// # Errors
/// The fault, where a chain leads out of mapped ICM.
pub(crate) fn for_each_member(
    burst: &Burst,
    gid: &[u8; 16],
    mut each: impl FnMut(McgMember),
) -> Result<(), IcmFault> {
    let mut index = u32::from(hash(gid, burst.tables.log2_mc_hash));
    for _ in 0..MAX_CHAIN {
        let Ok(addr) = entry_addr(burst, index) else { return Ok(()) };
        let mut header = McgHeader::new_zeroed();
        burst.icm_read(addr, header.as_mut_bytes())?;
        if header.members.count() != 0 && header.gid == *gid && header.members.protocol() == McgProtocol::IB {
            return members(burst, addr, header.members.count(), &mut each);
        }
        index = header.next.index();
        if index == 0 {
            return Ok(());
        }
    }
    log::debug!("multicast chain of {gid:02x?} doesn't end");
    Ok(())
}

fn members(burst: &Burst, addr: u64, count: u32, each: &mut impl FnMut(McgMember)) -> Result<(), IcmFault> {
    let room = mcg_capacity(u32::try_from(entry_bytes(burst)).unwrap_or(0));
    for i in 0..room.min(count) {
        let mut member = McgMember::new_zeroed();
        let at = addr + u64::from(MCG_HEADER_BYTES + MCG_MEMBER_BYTES * i);
        burst.icm_read(at, member.as_mut_bytes())?;
        each(member);
    }
    Ok(())
}
