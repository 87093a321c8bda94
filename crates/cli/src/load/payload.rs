//! What a request carries, so that every reply can be checked and none is kept.
//!
//! The payload of request `r` on connection `c` is a stream of 64-bit words that anyone can compute again from
//! `(c, r)` alone, at any offset. The load generator therefore stores no copy of what it has sent: it
//! recomputes the words as the reply comes in, however the kernel has cut it, and compares.
//!
//! ```text
//!  stream of (c, r):   word 0   |   word 1   |   word 2   | …       word i = mix(start(c, r) + i·γ)
//!  reply, 11 bytes in: ========== ===^ the next byte to come is byte 3 of word 1
//! ```
//!
//! Two different pairs start at unrelated points, so a reply that belongs to another connection, to an earlier
//! request, or that is shifted by a byte cannot pass.
//!
//! Source: the mixing function is SplitMix64's finaliser (Steele, Lea, Flood: *Fast Splittable
//! Pseudorandom Number Generators*, OOPSLA 2014).

/// SplitMix64's increment: the odd integer nearest to 2⁶⁴ over the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser: a bijection in which each bit of the input moves half the bits of the output.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The content of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    start: u64,
}

impl Payload {
    /// The content of request number `request` on connection number `connection`.
    pub fn new(connection: u64, request: u64) -> Self {
        Self { start: mix(mix(connection.wrapping_add(GAMMA)) ^ request) }
    }

    fn word(self, index: u64) -> u64 {
        mix(self.start.wrapping_add(index.wrapping_mul(GAMMA)))
    }

    /// Writes the bytes from `offset` on into `out`.
    pub fn fill(self, offset: usize, out: &mut [u8]) {
        self.pieces(offset, out.len(), |range, bytes| {
            out[range].copy_from_slice(bytes);
            true
        });
    }

    /// Whether `bytes` is what stands at `offset`.
    pub fn matches(self, offset: usize, bytes: &[u8]) -> bool {
        self.pieces(offset, bytes.len(), |range, expected| bytes[range] == *expected)
    }

    /// Hands `each` the content from `offset` on, `length` bytes in pieces of at most a word, until it says no.
    fn pieces(
        self,
        offset: usize,
        length: usize,
        mut each: impl FnMut(std::ops::Range<usize>, &[u8]) -> bool,
    ) -> bool {
        let mut done = 0;
        while done < length {
            let (index, within) = ((offset + done) / 8, (offset + done) % 8);
            let word = self.word(index as u64).to_le_bytes();
            let piece = &word[within..(within + length - done).min(8)];
            if !each(done..done + piece.len(), piece) {
                return false;
            }
            done += piece.len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Payload;

    #[test]
    fn a_reply_in_any_cut_matches() {
        let payload = Payload::new(7, 3);
        let mut whole = [0; 61];
        payload.fill(0, &mut whole);
        for from in 0..whole.len() {
            for to in from..=whole.len() {
                assert!(payload.matches(from, &whole[from..to]));
                let mut part = vec![0; to - from];
                payload.fill(from, &mut part);
                assert_eq!(part, whole[from..to]);
            }
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let payload = Payload::new(7, 3);
        let mut whole = [0; 61];
        payload.fill(0, &mut whole);
        for position in 0..whole.len() {
            whole[position] ^= 1;
            assert!(!payload.matches(0, &whole));
            whole[position] ^= 1;
        }
    }

    #[test]
    fn another_connection_or_request_does_not_match() {
        let mut mine = [0; 16];
        Payload::new(7, 3).fill(0, &mut mine);
        for (connection, request) in [(7, 2), (7, 4), (6, 3), (8, 3), (3, 7)] {
            assert!(!Payload::new(connection, request).matches(0, &mine));
        }
        assert!(!Payload::new(7, 3).matches(1, &mine));
    }
}
