//! Takes a fuzzer's bytes apart. Every input means something: what is missing at the end reads as zero.

/// The bytes not yet taken.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// One byte up to 247; behind a larger one come 1 to 8 bytes, so that extremes are as near as small numbers.
    pub fn number(&mut self) -> u64 {
        let first = self.byte();
        let Some(more @ 1..) = first.checked_sub(247) else { return first.into() };
        let mut value = [0; 8];
        value.iter_mut().take(more.into()).for_each(|place| *place = self.byte());
        u64::from_le_bytes(value)
    }

    /// A length byte and so many bytes, or what there is.
    pub fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Writes what [`Input`] reads, for seeds.
#[derive(Debug, Default)]
pub struct Output(pub Vec<u8>);

impl Output {
    #[must_use]
    pub fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    #[must_use]
    pub fn number(mut self, value: u64) -> Self {
        match u8::try_from(value) {
            Ok(small @ 0..=247) => self.0.push(small),
            _ => {
                self.0.push(255);
                self.0.extend_from_slice(&value.to_le_bytes());
            }
        }
        self
    }

    /// At most 255 bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        self.0.push(len);
        self.0.extend(bytes.iter().take(len.into()));
        self
    }

    #[must_use]
    pub fn rest(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_end_is_zero() {
        let written =
            Output::default().byte(7).number(247).number(248).number(u64::MAX).bytes(b"ab").rest(b"c");
        let mut input = Input(&written.0);
        assert_eq!((input.byte(), input.number(), input.number(), input.number()), (7, 247, 248, u64::MAX));
        assert_eq!((input.bytes(), input.rest()), (b"ab".as_slice(), b"c".as_slice()));
        assert_eq!(
            (input.byte(), input.number(), input.bytes(), input.is_empty()),
            (0, 0, [].as_slice(), true)
        );
    }
}
