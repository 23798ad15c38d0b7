//! The one encoding of everything in the journal: fields, each `key ‖ length ‖ value`.
//!
//! - key: varint of `tag × 2 + required`. A reader that does not know a tag skips the field, unless it is
//!   marked required: then it refuses, because it would misunderstand the rest.
//! - length: varint. Nested fields have theirs patched in afterwards, in five bytes.
//! - numbers: little endian, without leading zeros; times: microseconds since 1970 as a two's complement
//!   64-bit number; text: UTF-8.
//! - tag 15 (`sealed`) is reserved in every list of fields: its value is `key id (4) ‖ nonce (12) ‖
//!   ciphertext and tag` (AES-256-GCM), and its clear text is a list of fields that stand in its place.

use bytes::Bytes;
use jiff::Timestamp;

/// The tag of sealed fields, everywhere.
pub(super) const SEALED: u64 = 15;

/// From this size on a value is not copied into the buffer but written from where it lies.
const SPLICE: usize = 8 * 1024;

/// Bytes of a nested length.
const NESTED: usize = 5;

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    /// Not this encoding.
    #[error("malformed fields")]
    Malformed,
    /// Written by a newer version that said it must not be ignored.
    #[error("field {0} is required and unknown: a newer version wrote it")]
    Unknown(u64),
}

// === Writing ===

/// Fields on their way to the disk: a buffer, and large values that stay where they are.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    pub(super) buffer: Vec<u8>,
    /// Values that belong in front of these positions of the buffer.
    pub(super) splices: Vec<(usize, Bytes)>,
    spliced: usize,
}

/// The start of nested fields.
#[must_use]
pub(super) struct Nested {
    /// Where in the buffer the length is.
    patch: usize,
    /// Where the fields begin, spliced bytes counted.
    start: usize,
}

impl Encoder {
    /// Forgets everything but the memory.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.splices.clear();
        self.spliced = 0;
    }

    /// How many bytes there are.
    pub(super) fn length(&self) -> usize {
        self.buffer.len() + self.spliced
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buffer.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.push((value & 0x7f) as u8);
    }

    fn key(&mut self, tag: u64, required: bool) {
        self.varint(tag << 1 | u64::from(required));
    }

    pub(super) fn number(&mut self, tag: u64, value: u64) {
        let bytes = value.to_le_bytes();
        let length = 8 - value.leading_zeros() as usize / 8;
        self.bytes(tag, bytes.get(..length).unwrap_or(&bytes));
    }

    pub(super) fn time(&mut self, tag: u64, time: Timestamp) {
        self.number(tag, time.as_microsecond().cast_unsigned());
    }

    pub(super) fn flag(&mut self, tag: u64, set: bool) {
        if set {
            self.bytes(tag, &[]);
        }
    }

    pub(super) fn text(&mut self, tag: u64, text: &str) {
        self.bytes(tag, text.as_bytes());
    }

    pub(super) fn bytes(&mut self, tag: u64, value: &[u8]) {
        self.key(tag, false);
        self.varint(value.len() as u64);
        self.buffer.extend_from_slice(value);
    }

    /// A value that may be large; gives the position of its first byte.
    pub(super) fn shared(&mut self, tag: u64, value: &Bytes) -> usize {
        self.key(tag, false);
        self.varint(value.len() as u64);
        let position = self.length();
        if value.len() < SPLICE {
            self.buffer.extend_from_slice(value);
        } else {
            self.splices.push((self.buffer.len(), value.clone()));
            self.spliced += value.len();
        }
        position
    }

    /// Begins nested fields.
    pub(super) fn begin(&mut self, tag: u64, required: bool) -> Nested {
        self.key(tag, required);
        let patch = self.buffer.len();
        self.buffer.extend_from_slice(&[0; NESTED]);
        Nested { patch, start: self.length() }
    }

    /// Ends them.
    pub(super) fn end(&mut self, nested: Nested) {
        let mut length = self.length() - nested.start;
        let Some(patch) = self.buffer.get_mut(nested.patch..nested.patch + NESTED) else { return };
        for (index, byte) in patch.iter_mut().enumerate() {
            let more = if index + 1 < NESTED { 0x80 } else { 0 };
            *byte = (length & 0x7f) as u8 | more;
            length >>= 7;
        }
    }

    /// Everything in order.
    pub(super) fn slices(&self) -> Vec<&[u8]> {
        let mut slices = Vec::with_capacity(self.splices.len() * 2 + 1);
        let mut from = 0;
        for (position, value) in &self.splices {
            slices.push(self.buffer.get(from..*position).unwrap_or_default());
            slices.push(value);
            from = *position;
        }
        slices.push(self.buffer.get(from..).unwrap_or_default());
        slices
    }
}

// === Reading ===

/// One field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    /// Its tag.
    pub(super) tag: u64,
    /// Whoever does not know it must refuse.
    required: bool,
    /// Its value.
    pub(super) value: &'a [u8],
    /// Where the value begins, counted from where the outermost fields begin.
    pub(super) offset: usize,
}

/// Reads fields one after the other.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Fields<'a> {
    /// Fields that fill `bytes`, which begin at `offset`.
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Fields { rest: bytes, offset }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(DecodeError::Malformed)?;
            self.rest = rest;
            self.offset += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed)
    }

    fn field(&mut self) -> Result<Field<'a>, DecodeError> {
        let key = self.varint()?;
        let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::Malformed)?;
        let (value, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Malformed)?;
        let field = Field { tag: key >> 1, required: key & 1 == 1, value, offset: self.offset };
        self.rest = rest;
        self.offset += length;
        Ok(field)
    }
}

/// How many bytes the first field takes; they need not all be there.
pub(super) fn extent(bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut fields = Fields::new(bytes, 0);
    fields.varint()?;
    let length = usize::try_from(fields.varint()?).map_err(|_| DecodeError::Malformed)?;
    fields.offset.checked_add(length).ok_or(DecodeError::Malformed)
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.is_empty()).then(|| self.field())
    }
}

impl<'a> Field<'a> {
    pub(super) fn number(&self) -> Result<u64, DecodeError> {
        let mut bytes = [0u8; 8];
        bytes.get_mut(..self.value.len()).ok_or(DecodeError::Malformed)?.copy_from_slice(self.value);
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn small(&self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Malformed)
    }

    pub(super) fn time(&self) -> Result<Timestamp, DecodeError> {
        Timestamp::from_microsecond(self.number()?.cast_signed()).map_err(|_| DecodeError::Malformed)
    }

    pub(super) fn text(&self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.value).map_err(|_| DecodeError::Malformed)
    }

    pub(super) fn string(&self) -> Result<String, DecodeError> {
        self.text().map(str::to_owned)
    }

    /// The fields nested in it.
    pub(super) fn fields(&self) -> Fields<'a> {
        Fields::new(self.value, self.offset)
    }

    /// This field is not known: skips it, or refuses.
    pub(super) fn skip(&self) -> Result<(), DecodeError> {
        if self.required { Err(DecodeError::Unknown(self.tag)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(encoder: &Encoder) -> Vec<u8> {
        encoder.slices().concat()
    }

    #[test]
    fn numbers_texts_and_large_values_read_back_at_their_offsets() {
        let large = Bytes::from(vec![7u8; SPLICE + 3]);
        let mut encoder = Encoder::default();
        encoder.number(1, 0);
        encoder.number(2, u64::MAX);
        let nested = encoder.begin(40, true);
        encoder.text(3, "Müller");
        let position = encoder.shared(4, &large);
        encoder.text(5, "after");
        encoder.end(nested);
        let bytes = joined(&encoder);
        assert_eq!(bytes.len(), encoder.length());
        assert_eq!(&bytes[position..position + large.len()], &large[..]);

        let fields: Vec<_> = Fields::new(&bytes, 0).map(Result::unwrap).collect();
        assert_eq!((fields[0].number(), fields[1].number()), (Ok(0), Ok(u64::MAX)));
        let inner: Vec<_> = fields[2].fields().map(Result::unwrap).collect();
        assert_eq!(inner[0].text(), Ok("Müller"));
        assert_eq!((inner[1].offset, inner[1].value), (position, &large[..]));
        assert_eq!(inner[2].text(), Ok("after"));
    }

    #[test]
    fn an_unknown_field_is_skipped_unless_it_is_required() {
        let mut encoder = Encoder::default();
        encoder.text(60, "new and optional");
        let nested = encoder.begin(61, true);
        encoder.end(nested);
        let bytes = joined(&encoder);
        let fields: Vec<_> = Fields::new(&bytes, 0).map(Result::unwrap).collect();
        assert_eq!(fields[0].skip(), Ok(()));
        assert_eq!(fields[1].skip(), Err(DecodeError::Unknown(61)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for field in Fields::new(&bytes, 0).take_while(Result::is_ok).flatten() {
                let _ = (field.number(), field.small(), field.time(), field.text(), field.fields().count());
            }
        }

        #[test]
        fn every_number_reads_back(value: u64) {
            let mut encoder = Encoder::default();
            encoder.number(9, value);
            let bytes = joined(&encoder);
            prop_assert_eq!(Fields::new(&bytes, 0).next().unwrap().unwrap().number(), Ok(value));
        }
    }
}
