//! Bytes of a log, however they arrive, as blocks of whole lines. Pure; used by both log parsers.
//!
//! A line ends at CR or LF: the progress bars of virt-v2v end in CR, and debug text follows straight after it
//! (virt-v2v-output.md 1, facts 2 and 5). The line itself is not looked at here.

use memchr::{memchr2, memrchr2};

/// Bytes of a line that count; the rest, up to the line end, is dropped. The longest real lines are shell
/// commands and JSON of a few KiB; 200 jobs may run at once, so an endless line must not cost memory.
pub const MAX_LINE: usize = 64 * 1024;

/// What the buffer keeps between lines, so that one long line does not cost its size for ever.
const KEPT: usize = 4 * 1024;

/// Holds the beginning of the line that has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    tail: Vec<u8>,
}

impl Lines {
    /// Gives `block` one or more whole lines at a time, each with its line end.
    ///
    /// Lines inside a block may be longer than [`MAX_LINE`]: [`line_at`] cuts them.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut block: impl FnMut(&[u8])) {
        if !self.tail.is_empty() {
            let Some(end) = memchr2(b'\r', b'\n', bytes) else {
                self.keep(bytes);
                return;
            };
            self.keep(&bytes[..end]);
            self.tail.push(b'\n');
            block(&self.tail);
            self.tail.clear();
            self.tail.shrink_to(KEPT);
            bytes = &bytes[end + 1..];
        }
        let whole = memrchr2(b'\r', b'\n', bytes).map_or(0, |last| last + 1);
        if whole > 0 {
            block(&bytes[..whole]);
        }
        self.keep(&bytes[whole..]);
    }

    /// What stands after the last line end is a line too.
    pub(super) fn finish(&mut self, block: impl FnOnce(&[u8])) {
        if !self.tail.is_empty() {
            self.tail.push(b'\n');
            block(&self.tail);
        }
        self.tail = Vec::new();
    }

    /// Bytes held; never more than [`MAX_LINE`].
    pub(super) fn buffered(&self) -> usize {
        self.tail.len()
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.tail.len());
        self.tail.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// The line that holds position `at` of a block, not reaching back before `from`: its text, cut to
/// [`MAX_LINE`], and where the next one begins.
pub(super) fn line_at(block: &[u8], from: usize, at: usize) -> (&[u8], usize) {
    let start = memrchr2(b'\r', b'\n', &block[from..at]).map_or(from, |end| from + end + 1);
    let end = memchr2(b'\r', b'\n', &block[at..]).map_or(block.len(), |end| at + end);
    let cut = end.min(start + MAX_LINE);
    (&block[start..cut], (end + 1).min(block.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Lines::default();
        let mut found = Vec::new();
        let mut collect = |block: &[u8]| {
            let mut at = 0;
            while at < block.len() {
                let (line, next) = line_at(block, at, at);
                found.push(line.to_vec());
                at = next;
            }
        };
        for piece in pieces {
            splitter.feed(piece, &mut collect);
            assert!(splitter.buffered() <= MAX_LINE);
        }
        splitter.finish(&mut collect);
        found
    }

    #[test]
    fn cr_and_lf_both_end_a_line() {
        assert_eq!(lines(&[b"a\rb\nc\r\nd"]), [&b"a"[..], b"b", b"c", b"", b"d"]);
    }

    #[test]
    fn a_cut_line_is_put_together_again() {
        assert_eq!(lines(&[b"a", b"b", b"", b"c\nd", b"\r"]), [&b"abc"[..], b"d"]);
    }

    #[test]
    fn of_an_endless_line_only_the_beginning_counts() {
        let long = vec![b'x'; 3 * MAX_LINE];
        let expected: [Vec<u8>; 2] = [long[..MAX_LINE].to_vec(), b"next".to_vec()];
        assert_eq!(lines(&[&long, b"y\nnext\n"]), expected);
        assert_eq!(lines(&[&long[..1], &long[1..], b"\nnext"]), expected);
        let mut together = long.clone();
        together.extend_from_slice(b"\nnext\n");
        assert_eq!(lines(&[&together]), expected);
    }

    #[test]
    fn a_long_line_does_not_keep_its_memory() {
        let mut splitter = Lines::default();
        splitter.feed(&vec![b'x'; 2 * MAX_LINE], |_| ());
        splitter.feed(b"\nshort", |_| ());
        assert!(splitter.tail.capacity() <= KEPT);
    }
}
