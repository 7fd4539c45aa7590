//! Where the fields of a request are in its bytes, by the names that the ABI gives them.

use anyhow::{Context as _, Result, ensure};
use virtio_rdma::memory::SEGMENT_BYTES;
use virtio_rdma::request::HEADER_BYTES;
use virtio_rdma::request::queue_pair::{AhAttributes, QpAttributes, QpCap};
use virtio_rdma::{Field, Layout, Opcode, Verb};

use crate::verbs::{self, every_verb};

/// Words of flags: a bit without a name is refused.
const FLAGS: [&str; 5] = ["flags", "access", "change", "attr_mask", "qp_access_flags"];

/// A field that has no others in it.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// Its name, behind those of the structures that it is in.
    pub(crate) path: String,
    /// Offset in the request in bytes, and its size.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

impl Leaf {
    fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    pub(crate) fn is_reserved(&self) -> bool {
        self.name().starts_with("reserved")
    }

    pub(crate) fn is_flags(&self) -> bool {
        FLAGS.contains(&self.name())
    }

    /// Writes a little-endian number: as much of it as the field takes.
    pub(crate) fn set(&self, request: &mut [u8], value: u64) -> Result<()> {
        let bytes = self.bytes.min(8);
        ensure!(bytes == 8 || value >> (8 * bytes) == 0, "{value:#x} is too long for {self:?}");
        let to = request.get_mut(self.offset..self.offset + bytes).context("the request ends before")?;
        to.copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }
}

/// The structure that a field is, if it is one.
fn inner(field: &Field) -> Option<&'static [Field]> {
    match field.name {
        "attributes" if field.bytes == size_of::<QpAttributes>() => Some(QpAttributes::FIELDS),
        "attributes" | "ah_attr" | "alt_ah_attr" => Some(AhAttributes::FIELDS),
        "cap" => Some(QpCap::FIELDS),
        _ => None,
    }
}

fn flatten(prefix: &str, start: usize, fields: &[Field], leaves: &mut Vec<Leaf>) {
    for field in fields {
        let (path, offset) = (format!("{prefix}{}", field.name), start + field.offset);
        match inner(field) {
            Some(fields) => flatten(&format!("{path}."), offset, fields, leaves),
            None => leaves.push(Leaf { path, offset, bytes: field.bytes }),
        }
    }
}

/// The fields of an opcode's body.
pub(crate) fn of_body(opcode: Opcode) -> Result<Vec<Leaf>> {
    macro_rules! fields {
        ($($verb:ident)*) => {
            match opcode {
                $( verbs::$verb::OPCODE => Some(verbs::$verb::FIELDS), )*
                _ => None,
            }
        };
    }
    let fields = every_verb!(fields);
    let mut leaves = Vec::new();
    flatten("", HEADER_BYTES, fields.with_context(|| format!("fields of {opcode}"))?, &mut leaves);
    Ok(leaves)
}

/// The fields of an opcode's body, and of the first segment, if it can have some.
pub(crate) fn of(opcode: Opcode) -> Result<Vec<Leaf>> {
    let mut leaves = of_body(opcode)?;
    if opcode.has_segments() {
        let behind = HEADER_BYTES + opcode.body_bytes().context("the opcode is known")?;
        for (name, offset) in [("segment.address", behind), ("segment.length", behind + SEGMENT_BYTES / 2)] {
            leaves.push(Leaf { path: name.to_owned(), offset, bytes: SEGMENT_BYTES / 2 });
        }
    }
    Ok(leaves)
}
