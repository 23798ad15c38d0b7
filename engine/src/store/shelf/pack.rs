//! Short values as what is different from a sample: answers to messages, tokens and instances of one host are
//! alike but for times and ids. Steps follow each other: `0nnnnnnn` and n + 1 bytes that stand as they are, or
//! `1nnnnnnn` and a place u16, for n + 4 bytes from there in the sample. Each value is read by itself.

/// What a copy costs more than it saves is left as it stands.
const LEAST: usize = 4;
/// The longest copy.
const MOST_COPIED: usize = LEAST + 0x7f;
/// The most bytes that stand as they are in one step.
const MOST_PLAIN: usize = 0x80;
/// No sample is longer.
pub(super) const SAMPLE: usize = 512;

/// Where in a sample four bytes are.
pub(super) struct Places<'a> {
    sample: &'a [u8],
    /// Behind the place of the last four bytes that fall here; 0 = none do.
    table: [u16; 256],
}

impl<'a> Places<'a> {
    pub(super) fn of(sample: &'a [u8]) -> Self {
        let mut table = [0; 256];
        for (place, four) in sample.windows(LEAST).take(SAMPLE).enumerate() {
            if let Some(slot) = table.get_mut(slot(four)) {
                *slot = place as u16 + 1;
            }
        }
        Places { sample, table }
    }

    /// Where the beginning of these bytes is, and how much of it.
    fn find(&self, bytes: &[u8]) -> Option<(u16, usize)> {
        let slot = self.table.get(slot(bytes.get(..LEAST)?))?;
        let place = slot.checked_sub(1)?;
        let there = self.sample.get(usize::from(place)..)?;
        let same = there.iter().zip(bytes).take(MOST_COPIED).take_while(|(one, other)| one == other).count();
        (same >= LEAST).then_some((place, same))
    }

    /// Adds a value to `out`.
    pub(super) fn pack(&self, value: &[u8], out: &mut Vec<u8>) {
        let (mut plain, mut at) = (0, 0);
        while at < value.len() {
            let Some((place, same)) = self.find(value.get(at..).unwrap_or_default()) else {
                at += 1;
                continue;
            };
            put_plain(value.get(plain..at).unwrap_or_default(), out);
            out.push(0x80 | (same - LEAST) as u8);
            out.extend_from_slice(&place.to_le_bytes());
            at += same;
            plain = at;
        }
        put_plain(value.get(plain..).unwrap_or_default(), out);
    }
}

fn slot(four: &[u8]) -> usize {
    let number = four.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    (number.wrapping_mul(0x9e37_79b1) >> 24) as usize
}

fn put_plain(bytes: &[u8], out: &mut Vec<u8>) {
    for bytes in bytes.chunks(MOST_PLAIN) {
        out.push((bytes.len() - 1) as u8);
        out.extend_from_slice(bytes);
    }
}

/// The value that was packed with this sample.
pub(super) fn unpack(sample: &[u8], mut packed: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(packed.len() + sample.len());
    while let Some((step, rest)) = packed.split_first() {
        let count = usize::from(step & 0x7f);
        if *step < 0x80 {
            let (plain, rest) = rest.split_at(rest.len().min(count + 1));
            value.extend_from_slice(plain);
            packed = rest;
        } else {
            let Some((place, rest)) = rest.split_first_chunk() else { break };
            let place = usize::from(u16::from_le_bytes(*place));
            value.extend_from_slice(sample.get(place..place + count + LEAST).unwrap_or_default());
            packed = rest;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(sample: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Places::of(sample).pack(value, &mut out);
        out
    }

    #[test]
    fn what_is_like_the_sample_takes_little() {
        let answer = |number: u32| {
            format!(
                "MSH|^~\\&|HUB|MARY|LIS|LAB|2026112214{:04}||ACK^R01|{:08x}|P|2.5\rMSA|AA|MSG{number:09}\r",
                number % 6000,
                number.wrapping_mul(0x9e37_79b1)
            )
        };
        let (sample, value) = (answer(17), answer(123_456));
        let packed = packed(sample.as_bytes(), value.as_bytes());
        assert!(packed.len() * 2 < value.len(), "{} of {}", packed.len(), value.len());
        assert_eq!(unpack(sample.as_bytes(), &packed), value.as_bytes());
    }

    proptest! {
        #[test]
        fn every_value_comes_back(
            sample in prop::collection::vec(0u8..6, 0..SAMPLE + 9),
            value in prop::collection::vec(0u8..6, 0..700),
        ) {
            let packed = packed(&sample, &value);
            prop_assert!(packed.len() <= value.len() + value.len() / MOST_PLAIN + 1);
            prop_assert_eq!(unpack(&sample, &packed), value);
        }
    }
}
