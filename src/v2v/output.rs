//! virt-v2v's log bytes -> [`Event`]s, both generations (virt-v2v-output.md 2-3, contract.md 5). Pure.

use crate::event::Event;

/// Parser of virt-v2v's stdout and stderr.
#[derive(Debug, Default)]
pub struct LogParser {}

impl LogParser {
    /// A parser at the beginning of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of the log, however they are cut.
    pub fn feed(&mut self, _bytes: &[u8], _emit: &mut dyn FnMut(Event)) {}

    /// The log ended: what stands after the last line end is a line.
    pub fn finish(&mut self, _emit: &mut dyn FnMut(Event)) {}
}
