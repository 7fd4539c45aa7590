//! Multicast groups: chains of entries in a hashed table, which the device reads and the driver keeps.

use std::collections::BTreeSet;
use std::ops::Range;

use mlx4_wire::U32;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::misc::MgidHash;
use mlx4_wire::ctx::mcg::{McgHeader, McgMember, McgMembers, McgNext, McgProtocol, mcg_capacity};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::cmd::{Command, Input};
use crate::error::{Error, Fields, Result};
use crate::port::Gid;
use crate::shared::Shared;

const HEADER: usize = size_of::<McgHeader>();
const MEMBER: usize = size_of::<McgMember>();

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    header: McgHeader,
    members: Vec<McgMember>,
}

impl Entry {
    fn empty() -> Self {
        Self { header: McgHeader::new_zeroed(), members: Vec::new() }
    }

    /// Reads an entry as the device tells it; `qps` and `chained` are the queue pairs that there can be, and the
    /// entries that can be behind another one.
    fn read(bytes: &[u8], qps: u32, chained: &Range<u32>) -> Result<Self> {
        let (header, rest) = McgHeader::read_from_prefix(bytes)
            .map_err(|_| Error::argument("bytes of a multicast entry", bytes.len() as u64))?;
        let (members, _) = rest.as_chunks::<MEMBER>();
        let fields = Fields("READ_MCG");
        let count = fields.at_most("count", header.members.count(), members.len() as u64)?;
        let members: Vec<McgMember> =
            members[..count as usize].iter().map(|member| zerocopy::transmute!(*member)).collect();
        for member in &members {
            fields.at_most("qpn", member.qpn(), u64::from(qps).saturating_sub(1))?;
        }
        if !members.is_empty() {
            fields.is("protocol", header.members.protocol().0, McgProtocol::IB.0.into())?;
        }
        let next = header.next.index();
        fields.holds("index", next, next == 0 || chained.contains(&next), "that of a chained entry, or 0")?;
        Ok(Self { header, members })
    }

    fn is_of(&self, group: &Gid) -> bool {
        self.header.gid == *group
    }
}

/// A place in a chain: an entry, and the one before it.
struct Found {
    index: u32,
    entry: Entry,
    before: Option<(u32, Entry)>,
}

/// The table of groups.
pub(crate) struct Groups<'a>(pub(crate) &'a Shared);

impl Groups<'_> {
    /// Adds a queue pair to a group. `block_loopback`: what it sends itself isn't delivered to it.
    pub(crate) fn attach(&self, group: &Gid, qpn: u32, block_loopback: bool) -> Result<()> {
        let _changing = self.0.groups.lock();
        let head = self.hash(group)?;
        let member = McgMember::new().with_qpn(qpn).with_block_loopback(block_loopback);
        match self.find(head, group)? {
            Ok(mut found) => {
                if found.entry.members.iter().any(|member| member.qpn() == qpn) {
                    return Ok(());
                }
                if found.entry.members.len() >= self.capacity() {
                    return Err(Error::Exhausted("place in the multicast group"));
                }
                found.entry.members.push(member);
                self.write(found.index, &mut found.entry)
            }
            Err((last, mut last_entry)) => {
                let mut entry = Entry::empty();
                entry.header.gid = *group;
                entry.members.push(member);
                if last_entry.members.is_empty() {
                    entry.header.next = last_entry.header.next;
                    return self.write(last, &mut entry);
                }
                let mut index = self.0.numbers.groups.take()?;
                self.write(index.get(), &mut entry)?;
                last_entry.header.next = McgNext::new().with_index(index.get());
                let linked = self.write(last, &mut last_entry);
                // It is in the table's own chain from here on, or may be.
                if linked.as_ref().err().is_none_or(Error::leaves_open) {
                    index.lose();
                }
                linked
            }
        }
    }

    /// Takes a queue pair out of a group.
    pub(crate) fn detach(&self, group: &Gid, qpn: u32) -> Result<()> {
        let _changing = self.0.groups.lock();
        let head = self.hash(group)?;
        let Ok(mut found) = self.find(head, group)? else {
            return Err(Error::argument("queue pair of the multicast group", qpn));
        };
        let at = found.entry.members.iter().position(|member| member.qpn() == qpn);
        let at = at.ok_or(Error::argument("queue pair of the multicast group", qpn))?;
        found.entry.members.swap_remove(at);
        if !found.entry.members.is_empty() {
            return self.write(found.index, &mut found.entry);
        }
        let next = found.entry.header.next;
        match found.before {
            // A chained entry leaves its chain.
            Some((before, mut entry)) => {
                entry.header.next = next;
                self.write(before, &mut entry)?;
                self.write(found.index, &mut Entry::empty())?;
                self.0.numbers.groups.give_back(found.index);
                Ok(())
            }
            // A head takes the place of the next one, or is empty.
            None if next.index() != 0 => {
                let mut entry = self.read(next.index())?;
                self.write(found.index, &mut entry)?;
                self.write(next.index(), &mut Entry::empty())?;
                self.0.numbers.groups.give_back(next.index());
                Ok(())
            }
            None => self.write(found.index, &mut Entry::empty()),
        }
    }

    fn hash(&self, group: &Gid) -> Result<u32> {
        let input = Input::Mailbox(group);
        let result = self.0.commands.run(&Command { input, ..Command::new(Opcode::MGID_HASH, 0) })?;
        // The hash is in the low bits.
        let low = u32::try_from(result & 0xffff_ffff).unwrap_or(0);
        let hash = u32::from(MgidHash::from_bits(U32::new(low)).hash());
        let heads = 1u64 << self.0.layout.log2_mc_hash();
        Ok(Fields("MGID_HASH").at_most("hash", hash, heads - 1)?)
    }

    /// The entry of a group; or the last entry of the chain that it would be in.
    fn find(&self, head: u32, group: &Gid) -> Result<Result<Found, (u32, Entry)>> {
        let (mut index, mut before) = (head, None);
        let mut entry = self.read(index)?;
        let mut seen = BTreeSet::new();
        loop {
            if !entry.members.is_empty() && entry.is_of(group) {
                return Ok(Ok(Found { index, entry, before }));
            }
            let next = entry.header.next.index();
            if next == 0 {
                return Ok(Err((index, entry)));
            }
            let new = seen.insert(next);
            Fields("READ_MCG").holds("index", next, new, "an entry that the chain doesn't have already")?;
            let following = self.read(next)?;
            before = Some((index, std::mem::replace(&mut entry, following)));
            index = next;
        }
    }

    fn read(&self, index: u32) -> Result<Entry> {
        let mut bytes = vec![0; self.bytes()];
        self.0.commands.execute(&Command::new(Opcode::READ_MCG, index), &mut bytes)?;
        let layout = &self.0.layout;
        let chained = 1 << layout.log2_mc_hash()..1 << layout.profile.log2_mcgs;
        Entry::read(&bytes, 1 << layout.profile.log2_qps, &chained)
    }

    fn write(&self, index: u32, entry: &mut Entry) -> Result<()> {
        // At most the capacity.
        let count = u32::try_from(entry.members.len()).unwrap_or(0);
        entry.header.members = McgMembers::new().with_protocol(McgProtocol::IB).with_count(count);
        let mut bytes = vec![0; self.bytes()];
        bytes[..HEADER].copy_from_slice(entry.header.as_bytes());
        for (to, member) in bytes[HEADER..].chunks_exact_mut(MEMBER).zip(&entry.members) {
            to.copy_from_slice(member.as_bytes());
        }
        let input = Input::Mailbox(&bytes);
        self.0.commands.run(&Command { input, ..Command::new(Opcode::WRITE_MCG, index) })?;
        Ok(())
    }

    fn bytes(&self) -> usize {
        1 << self.0.layout.profile.log2_mcg_bytes
    }

    fn capacity(&self) -> usize {
        mcg_capacity(1 << self.0.layout.profile.log2_mcg_bytes) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_entry_is_refused_or_has_as_many_members_as_it_says(
            mut bytes in prop::collection::vec(any::<u8>(), 512),
            count in 0u8..=255,
            next in 0u32..16,
        ) {
            bytes[..4].copy_from_slice(McgNext::new().with_index(next).as_bytes());
            bytes[4..7].fill(0);
            bytes[7] = count;
            let chained = 8..16;
            match Entry::read(&bytes, 1 << 24, &chained) {
                Ok(entry) => {
                    prop_assert_eq!(entry.members.len(), usize::from(count));
                    prop_assert!(next == 0 || chained.contains(&next));
                }
                Err(error) => {
                    let field = if count > 120 { "count of READ_MCG" } else { "index of READ_MCG" };
                    prop_assert!(error.to_string().starts_with(field), "{}", error);
                }
            }
        }
    }
}
