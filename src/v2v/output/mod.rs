//! virt-v2v's log bytes -> [`Event`]s, both generations (virt-v2v-output.md 2-3, contract.md 5). Pure.
//!
//! Called by [`crate::convert`], which reads the files and owns the clock. This is not where progress is kept:
//! which disk a percentage belongs to, and that no value falls, is [`crate::state::State::apply`]'s business.
//!
//! The log of one conversion with `-v -x` reaches gigabytes and almost none of it matters, so a whole chunk is
//! searched at once for a score of literals, and only a line that holds one is read by the rules.
//!
//! A log is data, and a guest can write into it (its console is in there): no event says more than that such
//! a line was printed. A path or an id from here must be checked before anything is deleted by it.

mod command;
mod drivers;
mod lines;
mod machine;
mod path;
mod rules;

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, Span, packed};

pub use drivers::{BlockBus, Drivers, DriversParser, Machine, NetModel};
pub use lines::MAX_LINE;
pub use machine::MachineLogParser;
pub use path::datastore_path;

use crate::event::Event;
use crate::v2v::failure::Evidence;
use command::{Served, ServedDirectory};
use lines::{Lines, line_at};

/// More disks than any hypervisor attaches; greater numbers in a log are not disk numbers.
const MAX_DISKS: usize = 1024;

/// Lines a printed command may be wrapped over (a file name may hold line ends) before it is given up.
const MAX_COMMAND_LINES: usize = 8;

/// One of these stands in every line that any rule, or [`Evidence::line`], finds something in. At least four
/// bytes each (the vector search compares the first four), and rare ones, so that it seldom stops for nothing.
static NEEDLES: LazyLock<Needles> = LazyLock::new(|| {
    Needles::new(&[
        // The end of `[  12.3] `: rarer than its beginning, which the appliance's kernel log shares.
        ".0] ",
        ".1] ",
        ".2] ",
        ".3] ",
        ".4] ",
        ".5] ",
        ".6] ",
        ".7] ",
        ".8] ",
        ".9] ",
        "Copying disk ",
        "/100%)",
        "% [*",
        "% [-",
        "Opening file ",
        "overlay source qemu URI: json:",
        "qemu-img info JSON output:",
        "running nbdkit:",
        "running qemu-nbd:",
        "nbdcopy",
        "qemu-img: ",
        "displayName = ",
        "disk.id = ",
        "openstack ",
        "<VirtualSystem ",
        ": error: ",
        "virt-v2v",
        "getline: ",
    ])
});

/// Search for any of some literals.
struct Needles {
    vector: Option<packed::Searcher>,
    /// For processors without the vector instructions that `packed` needs.
    automaton: Option<AhoCorasick>,
}

impl Needles {
    fn new(needles: &[&str]) -> Self {
        let vector = packed::Searcher::new(needles);
        let automaton = match vector {
            Some(_) => None,
            None => Some(AhoCorasick::new(needles).expect("a score of short literals is within every limit")),
        };
        Self { vector, automaton }
    }

    /// Where the next one begins, from `from` on.
    fn find(&self, haystack: &[u8], from: usize) -> Option<usize> {
        if let Some(searcher) = &self.vector {
            let span = Span { start: from, end: haystack.len() };
            return searcher.find_in(haystack, span).map(|found| found.start());
        }
        self.automaton.as_ref()?.find(&haystack[from..]).map(|found| from + found.start())
    }
}

/// Parser of virt-v2v's stdout and stderr.
#[derive(Debug, Default)]
pub struct LogParser {
    lines: Lines,
    reader: Reader,
}

impl LogParser {
    /// A parser at the beginning of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same for a log of virt-v2v-in-place.
    pub fn of_in_place() -> Self {
        Self { reader: Reader { evidence: Evidence::of_in_place(), ..Reader::default() }, ..Self::default() }
    }

    /// The next bytes of the log, however they are cut.
    pub fn feed(&mut self, bytes: &[u8], emit: &mut dyn FnMut(Event)) {
        self.lines.feed(bytes, |block| self.reader.block(block, emit));
    }

    /// The log ended: what stands after the last line end is a line.
    pub fn finish(&mut self, emit: &mut dyn FnMut(Event)) {
        self.lines.finish(|block| self.reader.block(block, emit));
    }

    /// What the log said so far about a failure.
    pub fn evidence(&self) -> &Evidence {
        &self.reader.evidence
    }

    /// The same, for [`MachineLogParser`] to add its records to.
    pub fn evidence_mut(&mut self) -> &mut Evidence {
        &mut self.reader.evidence
    }

    /// Bytes of unfinished lines held, at most twice [`MAX_LINE`].
    pub fn buffered(&self) -> usize {
        self.lines.buffered() + self.reader.command.as_ref().map_or(0, |command| command.text.len())
    }
}

/// The part of a parser that reads lines.
#[derive(Debug, Default)]
struct Reader {
    /// A disk server's command line that is being printed.
    command: Option<PrintedCommand>,
    /// The last nbdkit that serves a whole directory of destination disks.
    directory: Option<ServedDirectory>,
    evidence: Evidence,
}

#[derive(Debug, Default)]
struct PrintedCommand {
    text: Vec<u8>,
    lines: usize,
}

impl Reader {
    /// One or more whole lines.
    fn block(&mut self, block: &[u8], emit: &mut dyn FnMut(Event)) {
        let mut from = 0;
        while from < block.len() {
            let at = if self.wants_next_line() { Some(from) } else { NEEDLES.find(block, from) };
            let Some(at) = at else { return };
            let (line, next) = line_at(block, from, at);
            self.line(line, emit);
            from = next;
        }
    }

    /// Does the next line matter whatever is in it?
    fn wants_next_line(&self) -> bool {
        self.command.is_some() || self.evidence.wants_next_line()
    }

    fn line(&mut self, line: &[u8], emit: &mut dyn FnMut(Event)) {
        self.evidence.line(line);
        if let Some(text) = rules::message(line) {
            self.command = None;
            self.message(text, emit);
        } else if self.command_line(line, emit) || line.starts_with(b"{") {
            // With `{` begins the JSON that virt-v2v writes to stdout when it is given no file for it; its
            // messages stand in the log in plain text too.
        } else {
            self.other(line, emit);
        }
    }

    fn message(&mut self, text: &[u8], emit: &mut dyn FnMut(Event)) {
        let copy = rules::copy_started(text, true);
        let text = rules::lossy(text);
        self.evidence.stage(&text);
        let copied = text == "Creating output metadata";
        emit(Event::Message { text });
        if let Some(event) = copy {
            self.copy_started(event, emit);
        }
        if copied {
            emit(Event::CopyEnded);
        }
    }

    fn copy_started(&mut self, event: Event, emit: &mut dyn FnMut(Event)) {
        if let Event::CopyStarted { disk, count, target } = &event {
            self.evidence.copying(*disk, *count, target.as_deref());
        }
        emit(event);
    }

    /// Is this a disk server's command line, or a part of it?
    fn command_line(&mut self, line: &[u8], emit: &mut dyn FnMut(Event)) -> bool {
        let announced = |line| -> Option<&[u8]> {
            [&b"running nbdkit:"[..], b"running qemu-nbd:"]
                .iter()
                .find_map(|says| <[u8]>::strip_prefix(line, *says))
        };
        let mut line = line;
        while let Some(same_line) = announced(line) {
            self.command = Some(PrintedCommand::default());
            line = same_line;
            if line.trim_ascii().is_empty() {
                return true;
            }
        }
        let Some(mut command) = self.command.take() else { return false };
        if command.lines == 0 && memchr::memmem::find(line, b"nbd").is_none() {
            return false; // another process's line in between: not what was announced
        }
        if command.lines > 0 {
            command.text.push(b'\n');
        }
        let room = MAX_LINE.saturating_sub(command.text.len());
        command.text.extend_from_slice(&line[..line.len().min(room)]);
        command.lines += 1;
        match command::words(&command.text) {
            Some(words) => self.served(&words, emit),
            None if command.lines < MAX_COMMAND_LINES && room > line.len() => self.command = Some(command),
            None => (),
        }
        true
    }

    fn served(&mut self, words: &[String], emit: &mut dyn FnMut(Event)) {
        match command::served(words) {
            Some(Served::Disk(event)) => self.target(event, emit),
            Some(Served::Directory(directory)) => self.directory = Some(directory),
            None => (),
        }
    }

    fn target(&mut self, event: Event, emit: &mut dyn FnMut(Event)) {
        if let Event::TargetServed { disk, path } = &event {
            self.evidence.target(*disk, path);
        }
        emit(event);
    }

    fn other(&mut self, line: &[u8], emit: &mut dyn FnMut(Event)) {
        if let Some(event) = rules::copy_started(line, false) {
            return self.copy_started(event, emit);
        }
        rules::nbdcopy_percents(line).for_each(&mut *emit);
        if line.starts_with(b"nbdcopy ") {
            let words = self.directory.as_ref().zip(command::words(line));
            if let Some(event) = words.and_then(|(served, words)| command::nbdcopy_target(&words, served)) {
                self.target(event, emit);
            }
        }
        let rules = [
            rules::qemu_img_percent,
            rules::vddk_opened,
            rules::overlay_opened,
            rules::backing_opened,
            rules::display_name,
            rules::ovirt_disk,
            rules::vm_id,
            command::cinder_volume,
        ];
        rules.iter().filter_map(|rule| rule(line)).for_each(emit);
    }
}

#[cfg(test)]
mod tests;
