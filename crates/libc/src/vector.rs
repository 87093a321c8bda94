//! What is left of a scatter/gather array after part of it has been transferred.
//!
//! A blocking call transfers until it has all (or an end, or an error) in one go; ours does so in
//! several tries and must advance through the program's array. The array itself is the
//! program's, often `const` and used again: it is never written. The rest is copied instead, to
//! the stack if it is short, which it nearly always is.
//!
//! ```text
//!   program's   [ a a a a ][ b b b ][ c c c c c ]        6 bytes done
//!   rest                     [   b ][ c c c c c ]
//! ```
//!
//! Sources: readv(2), `IOV_MAX`.

use libc::iovec;

/// Entries kept on the stack.
const INLINE: usize = 16;

/// The rest of an array of buffers.
pub(crate) struct Rest {
    inline: [iovec; INLINE],
    /// Used instead of `inline` for a longer rest.
    heap: Vec<iovec>,
    /// First entry that is not done.
    start: usize,
    end: usize,
}

/// The bytes that `count` buffers hold together.
///
/// # Safety
/// `parts` must be an array of `count` entries. What they point to is not touched.
pub(crate) unsafe fn total(parts: *const iovec, count: usize) -> usize {
    if count == 0 {
        return 0;
    }
    // SAFETY: the caller's array.
    let parts = unsafe { std::slice::from_raw_parts(parts, count) };
    parts.iter().fold(0, |sum, part| sum.saturating_add(part.iov_len))
}

impl Rest {
    /// What is left of `count` buffers after the first `done` bytes.
    ///
    /// # Safety
    /// `parts` must be an array of `count` entries; the buffers must outlive the rest.
    pub(crate) unsafe fn after(parts: *const iovec, count: usize, done: usize) -> Rest {
        const EMPTY: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut rest = Rest { inline: [EMPTY; INLINE], heap: Vec::new(), start: 0, end: 0 };
        if count == 0 {
            return rest;
        }
        // SAFETY: the caller's array.
        let mut parts = unsafe { std::slice::from_raw_parts(parts, count) };
        let mut done = done;
        while let [first, others @ ..] = parts
            && first.iov_len <= done
        {
            done -= first.iov_len;
            parts = others;
        }
        rest.end = parts.len();
        if parts.len() <= INLINE {
            rest.inline[..parts.len()].copy_from_slice(parts);
        } else {
            rest.heap = parts.to_vec();
        }
        rest.advance(done);
        rest
    }

    fn entries(&mut self) -> &mut [iovec] {
        if self.heap.is_empty() { &mut self.inline[..self.end] } else { &mut self.heap }
    }

    /// `done` more bytes are transferred.
    pub(crate) fn advance(&mut self, mut done: usize) {
        let mut start = self.start;
        let entries = self.entries();
        while start < entries.len() {
            let part = &mut entries[start];
            if done < part.iov_len {
                part.iov_base = part.iov_base.wrapping_byte_add(done);
                part.iov_len -= done;
                break;
            }
            done -= part.iov_len;
            start += 1;
        }
        self.start = start;
    }

    /// The entries that are left.
    pub(crate) fn parts(&mut self) -> &mut [iovec] {
        let start = self.start;
        &mut self.entries()[start..]
    }

    /// Whether all is done.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lens` as buffers that lie one behind the other from address 1000 on.
    fn parts(lens: &[usize]) -> Vec<iovec> {
        let mut at = 1000usize;
        let part = |&iov_len: &usize| {
            let iov_base = std::ptr::without_provenance_mut(at);
            at += iov_len;
            iovec { iov_base, iov_len }
        };
        lens.iter().map(part).collect()
    }

    fn shape(rest: &mut Rest) -> Vec<(usize, usize)> {
        rest.parts().iter().map(|p| (p.iov_base.addr(), p.iov_len)).collect()
    }

    #[test]
    fn every_split_leaves_exactly_the_bytes_behind_it() {
        for lens in [vec![4, 3, 5], vec![0, 4, 0, 3, 0], vec![1; 40], vec![7]] {
            let array = parts(&lens);
            // SAFETY: an array of that many entries; its buffers are never touched.
            let all = unsafe { total(array.as_ptr(), array.len()) };
            assert_eq!(all, lens.iter().sum::<usize>());
            for first in 0..=all {
                for second in 0..=all - first {
                    // SAFETY: as above.
                    let mut rest = unsafe { Rest::after(array.as_ptr(), array.len(), first) };
                    rest.advance(second);
                    let mut at = 1000 + first + second;
                    for (base, len) in shape(&mut rest) {
                        assert!(base == at || len == 0, "a hole at {base}");
                        at += len;
                    }
                    assert_eq!(at, 1000 + all);
                    if first + second < all {
                        assert!(!rest.is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_left_at_the_end() {
        let array = parts(&[2, 2]);
        // SAFETY: an array of two entries.
        let rest = unsafe { Rest::after(array.as_ptr(), 2, 4) };
        assert!(rest.is_empty());
        // SAFETY: no entries are read.
        assert!(unsafe { Rest::after(std::ptr::null(), 0, 0) }.is_empty());
    }

    #[test]
    fn the_programs_array_is_not_written() {
        let array = parts(&[4, 4]);
        // SAFETY: an array of two entries.
        let mut rest = unsafe { Rest::after(array.as_ptr(), 2, 1) };
        rest.advance(5);
        assert_eq!(array[0].iov_len, 4);
        assert_eq!(array[1].iov_base.addr(), 1004);
        assert_eq!(shape(&mut rest), [(1006, 2)]);
    }
}
