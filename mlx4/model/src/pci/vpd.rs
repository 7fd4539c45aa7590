//! Vital product data: name, part number and serial number of the card (PCI 2.2, appendix I).

use super::config::ConfigParams;

/// Large resource tags: identifier string; read-only fields.
const TAG_NAME: u8 = 0x82;
const TAG_READ_ONLY: u8 = 0x90;
/// Small resource tag: end.
const TAG_END: u8 = 0x78;

/// The data, as the VPD capability reads them.
#[derive(Clone, Debug)]
pub(super) struct Vpd(Box<[u8]>);

impl Vpd {
    /// The data of a card. Its serial number is made from the GUID.
    pub(super) fn new(params: &ConfigParams) -> Self {
        let (name, part) = if params.ports == 2 {
            ("ConnectX-3 VPI, 2 ports, software model", "MCX354A-FCBT")
        } else {
            ("ConnectX-3 VPI, 1 port, software model", "MCX353A-FCBT")
        };
        let serial = format!("PV{:010X}", params.node_guid & 0xff_ffff_ffff);
        let texts = [(b"PN", part), (b"EC", "A1"), (b"SN", &serial), (b"V0", "PCIe Gen3 x8")];
        let mut fields: Vec<u8> = texts.iter().flat_map(|(keyword, text)| field(keyword, text)).collect();
        // The last field is one byte that brings the sum of all bytes up to it to zero.
        fields.extend(field(b"RV", "\0"));
        let mut data = resource(TAG_NAME, name.as_bytes());
        data.extend(resource(TAG_READ_ONLY, &fields));
        let sum = data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(last) = data.last_mut() {
            *last = sum.wrapping_neg();
        }
        data.push(TAG_END);
        Self(data.into())
    }

    /// Four bytes from an address on, rounded down; zero past the end.
    pub(super) fn read(&self, address: u16) -> [u8; 4] {
        let mut bytes = [0; 4];
        for (byte, value) in bytes.iter_mut().zip(self.0.iter().skip(usize::from(address & !3))) {
            *byte = *value;
        }
        bytes
    }
}

/// A field: keyword, length, text. Texts are shorter than 256 bytes.
fn field(keyword: &[u8; 2], text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&keyword[..], &[length], text.as_bytes()].concat()
}

/// A large resource: tag, length, content.
fn resource(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    [&[tag][..], &length.to_le_bytes(), content].concat()
}
