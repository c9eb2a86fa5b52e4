//! Progress as `qemu-img -p` prints it: `    (12.34/100%)\r`, to the end on one line. Pure.

/// Longest record kept; qemu-img's have 19 bytes.
const MOST: usize = 64;

/// Reads percentages however the bytes are cut.
#[derive(Debug, Default)]
pub(super) struct Percents {
    record: Vec<u8>,
    furthest: f64,
}

impl Percents {
    /// The next bytes; `progress` is told what is further than before.
    pub(super) fn feed(&mut self, bytes: &[u8], progress: &mut impl FnMut(f64)) {
        for byte in bytes {
            match byte {
                b'\r' | b'\n' => {
                    if let Some(percent) = percent(&self.record)
                        && percent > self.furthest
                    {
                        self.furthest = percent;
                        progress(percent);
                    }
                    self.record.clear();
                }
                byte if self.record.len() < MOST => self.record.push(*byte),
                _ => {}
            }
        }
    }
}

fn percent(record: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(record).ok()?.trim();
    let number = text.strip_prefix('(')?.strip_suffix("/100%)")?;
    number.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percents(bytes: &[u8], chunk: usize) -> Vec<f64> {
        let (mut percents, mut told) = (Percents::default(), Vec::new());
        bytes.chunks(chunk).for_each(|bytes| percents.feed(bytes, &mut |percent| told.push(percent)));
        told
    }

    #[test]
    fn progress_is_read_however_it_is_cut_and_never_falls() {
        let said =
            b"    (0.00/100%)\r    (1.03/100%)\r    (1.03/100%)\r    (0.50/100%)\r    (99.88/100%)\r    \
                     (100.00/100%)\r    (100.00/100%)\r\nImage committed.\n";
        for chunk in [1, 5, said.len()] {
            assert_eq!(percents(said, chunk), [1.03, 99.88, 100.0]);
        }
    }

    #[test]
    fn anything_else_is_no_progress_and_costs_no_memory() {
        let mut percents = Percents::default();
        let mut told = Vec::new();
        for bytes in [&b"(NaN/100%)\r(inf/100%)\r(101/100%)\r(-1/100%)\r\xff\r(5/100%"[..], &[b'x'; 100_000]]
        {
            percents.feed(bytes, &mut |percent| told.push(percent));
            assert!(percents.record.capacity() <= 2 * MOST);
        }
        assert_eq!(told, Vec::<f64>::new());
    }
}
