//! The word that carries an object's number or a 24-bit counter.

bits! {
    /// A 24-bit number (QPN, CQN, SRQN, PD, PSN, queue index) in the low bits of a big-endian word.
    ///
    /// The top byte is reserved here: it is kept as it lies in memory and never read.
    pub struct Number24: u32 {
        #[bits(8)]
        __: u32,
        /// The number.
        #[bits(24)]
        pub number: u32,
    }
}

impl Number24 {
    /// The greatest number, and the mask of a free-running 24-bit counter.
    pub const MAX: u32 = 0x00ff_ffff;

    /// The word of the low 24 bits of `number`; the rest is cut off, as a counter wraps.
    pub const fn wrapping(number: u32) -> Self {
        Self::new().with_number(number & Self::MAX)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn wrapping_counter_beyond_24_bits_loses_the_top_byte() {
        assert_eq!(Number24::wrapping(0x0100_0002).as_bytes(), [0, 0, 0, 2]);
    }

    #[test]
    fn number_with_reserved_bits_set_reads_without_them() {
        assert_eq!(Number24::from_bits(crate::U32::new(0xff12_3456)).number(), 0x12_3456);
    }
}
