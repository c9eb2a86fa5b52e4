//! Why virt-v2v failed, in one sentence with what to do (virt-v2v-output.md 4). Pure.
//!
//! Every failure of virt-v2v is exit code 1, so the reason is in what it printed. The parsers in
//! [`crate::v2v::output`] collect that here as they go; [`crate::convert`] asks for the sentence at the end.
//! Not a log: of each kind of line only the last is kept, and of that a limited length.

mod advice;

use memchr::memmem;

use advice::advice;

/// How the tool ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// As the state file has it: the code, or the negative signal number (contract.md 3.1).
    pub fn return_code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => -signal,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(formatter, "it ended with exit code {code}"),
            Exit::Signal(signal) => write!(formatter, "signal {signal} killed it"),
        }
    }
}

/// What one failed run printed about its failure.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Whose run it is; `None`: virt-v2v's.
    program: Option<&'static str>,
    /// Last `error` record of the machine-readable log.
    record: Option<String>,
    /// Text after the last `virt-v2v: error: `, with its further paragraphs.
    error: Option<String>,
    /// How the log goes on from that text.
    paragraphs: Paragraphs,
    /// Last `virt-v2v: TEXT` line that is neither error nor warning.
    said: Option<String>,
    /// Last complaint of the copying program: nbdcopy, or qemu-img in 1.4x.
    copier: Option<String>,
    /// A disk server said that its disk is full.
    no_space: bool,
    /// virt-v2v wanted a key or a password from a terminal.
    asked: bool,
    /// Signal that virt-v2v caught (2.x), e.g. `SIGTERM`.
    caught: Option<String>,
    /// Text of the last message: what it was doing.
    stage: Option<String>,
    /// Disk being copied and how many there are.
    copying: Option<(usize, usize)>,
    /// Destination files by disk.
    targets: Vec<String>,
}

/// After an error text: an empty line and a further paragraph may follow, several times.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Paragraphs {
    #[default]
    Over,
    /// A text line was just read.
    AfterText,
    /// An empty line was just read.
    AfterGap,
}

/// Longest text kept of anything; real ones are below 500 bytes.
const MAX_TEXT: usize = 2048;
/// Longest part of a text that is shown.
const MAX_SHOWN: usize = 500;
/// Destination files remembered. More disks than that: the sentence goes without the name.
const MAX_TARGETS: usize = 64;

impl Evidence {
    /// Of a run of virt-v2v-in-place, which is named in the sentence.
    pub fn of_in_place() -> Self {
        Self { program: Some("virt-v2v-in-place"), ..Self::default() }
    }

    fn program(&self) -> &'static str {
        self.program.unwrap_or("virt-v2v")
    }

    /// What to do after a cancel.
    fn again(&self) -> &'static str {
        match self.program {
            // It had only overlays to write to.
            Some(_) => "the copied disks are as they were; resume the job to convert again",
            None => "start it again from the beginning",
        }
    }

    /// A line of the log: any line that holds `virt-v2v`, `nbdcopy`, `qemu-img: `, `: error: ` or `getline: `,
    /// and every line for as long as [`Self::wants_next_line`] says so.
    pub fn line(&mut self, line: &[u8]) {
        self.continue_error(line);
        if line.starts_with(b"nbdcopy: ") || line.starts_with(b"qemu-img: ") {
            self.copier = Some(text(line));
        } else if line.starts_with(b"nbdkit") {
            // `nbdkit: file.10: error: pwrite: No space left on device`: the only plain word about a full
            // destination from a server; qemu-nbd says nothing, but nbdcopy does.
            self.no_space |= contains(line, b": error: ") && contains(line, b"No space left on device");
        } else if line.starts_with(b"getline: ") {
            self.asked = true;
        } else if let Some(said) = said(line) {
            self.asked |= line.starts_with(b"Enter ");
            if let Some(error) = said.strip_prefix(b"error: ") {
                self.error = Some(text(error));
                self.paragraphs = Paragraphs::AfterText;
            } else if let Some(signal) = said.strip_prefix(b"Exiting on signal ") {
                self.caught = Some(text(signal.trim_ascii_end()));
            } else if !said.starts_with(b"warning: ") && !said.starts_with(b"virt-v2v ") {
                self.said = Some(text(said));
            }
        }
    }

    /// Found beside the log: no space is left where the converter wrote. qemu-nbd does not say so.
    pub fn no_space(&mut self) {
        self.no_space = true;
    }

    /// Does the next line matter whatever is in it?
    pub fn wants_next_line(&self) -> bool {
        self.paragraphs != Paragraphs::Over
    }

    /// An `error` record of the machine-readable log.
    pub fn error_record(&mut self, message: &str) {
        self.record = Some(text(message.as_bytes()));
    }

    /// virt-v2v printed this message: it is what it does from now on.
    pub fn stage(&mut self, message: &str) {
        self.stage = Some(text(message.as_bytes()));
    }

    /// The copy of a disk (from 0) began; 1.4x names the destination there.
    pub fn copying(&mut self, disk: usize, count: usize, target: Option<&str>) {
        self.copying = Some((disk, count));
        if let Some(target) = target {
            self.target(disk, target);
        }
    }

    /// The destination file of a disk (from 0).
    pub fn target(&mut self, disk: usize, path: &str) {
        if disk < MAX_TARGETS {
            self.targets.resize(self.targets.len().max(disk + 1), String::new());
            self.targets[disk] = text(path.as_bytes());
        }
    }

    /// What happened, to what, and what to do: for `last_message`. Begins with `virt-v2v error: ` when
    /// virt-v2v gave an error (contract.md 3.3), or with its sibling's name.
    pub fn sentence(&self, exit: Exit) -> String {
        let mut sentence = match (self.error_text(), exit) {
            (Some(error), _) => {
                let mut sentence = format!("{} error: {}", self.program(), first_line(error));
                let named = |said: &&str| said.split(':').next().is_some_and(|name| error.contains(name));
                if let Some(said) = self.copier.as_deref().filter(named) {
                    sentence.push_str(&format!(" ({})", first_line(said)));
                }
                sentence
            }
            // A caught signal is exit code 1, and comes before what the children say as they die.
            (None, _) if self.caught.is_some() => return self.stopped(exit),
            (None, Exit::Signal(signal)) => return self.killed(signal),
            (None, Exit::Code(code)) => match self.said.as_deref().filter(|said| advice(said).is_some()) {
                Some(said) => format!("{}: {}", self.program(), first_line(said)),
                None => return self.unknown(code),
            },
        };
        if !sentence.ends_with(['.', '!', '?']) {
            sentence.push('.');
        }
        if let Some(advice) = advice(&self.all()) {
            sentence.push(' ');
            sentence.push_str(&advice.replace("{target}", &self.copied_disk()));
        } else {
            sentence.push_str(&format!(" It happened{}; see virt-v2v.log.", self.during()));
        }
        match (exit, &self.caught) {
            (Exit::Signal(signal), _) => sentence.push_str(&format!(" Then signal {signal} killed it.")),
            (Exit::Code(_), Some(signal)) => {
                sentence.push_str(&format!(" It was also told to stop by {signal}."))
            }
            _ => (),
        }
        sentence
    }

    /// The last JSON record, else the last error line (virt-v2v-output.md 4).
    fn error_text(&self) -> Option<&str> {
        self.record.as_deref().or(self.error.as_deref())
    }

    /// Everything the advice is looked for in.
    fn all(&self) -> String {
        // A server without space before any copy holds the overlay that protects the source.
        let full =
            if self.copying.is_some() { "No space left on device" } else { "No space left for the overlay" };
        let parts = [
            self.error_text(),
            self.error.as_deref(),
            self.said.as_deref().filter(|_| self.error_text().is_none()),
            self.copier.as_deref(),
            self.no_space.then_some(full),
            self.asked.then_some("asked for a password"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }

    fn stopped(&self, exit: Exit) -> String {
        let signal = self.caught.as_deref().unwrap_or("a signal");
        let why = if signal == "SIGTERM" || signal == "SIGINT" {
            "the conversion was cancelled"
        } else {
            "it ended"
        };
        // It acts on a signal only when the running libguestfs call returns (virt-v2v-output.md 1, fact 7).
        let then = match exit {
            Exit::Code(_) => String::new(),
            Exit::Signal(signal) => format!(" and, as it did not end, killed by signal {signal}"),
        };
        format!("{} was stopped by {signal}{then}{}: {why}; {}.", self.program(), self.during(), self.again())
    }

    fn killed(&self, signal: i32) -> String {
        let (program, during) = (self.program(), self.during());
        match signal {
            libc::SIGTERM => format!(
                "{program} was killed by signal 15 (SIGTERM){during}: the conversion was cancelled; {}.",
                self.again()
            ),
            libc::SIGKILL => format!(
                "{program} was killed by signal 9 (SIGKILL){during}: somebody killed it, or the conversion host ran \
                 out of memory, which is the usual cause (see its kernel log; each conversion needs about 3 GB)."
            ),
            _ => format!("{program} was killed by signal {signal}{during}; see virt-v2v.log."),
        }
    }

    fn unknown(&self, code: i32) -> String {
        let mut sentence = format!("{} terminated with return code {code}{}", self.program(), self.during());
        if let Some(said) = &self.said {
            sentence.push_str(&format!("; its last words were “{}”", first_line(said)));
        }
        sentence.push_str("; see virt-v2v.log.");
        // Without the appliance's boot nothing follows this message (virt-v2v-output.md 6: a broken /dev/kvm).
        if self.stage.as_deref().is_some_and(|stage| stage.starts_with("Opening the ")) {
            sentence.push_str(
                " The libguestfs appliance may not have started: check /dev/kvm and the free memory.",
            );
        }
        sentence
    }

    fn during(&self) -> String {
        self.stage.as_ref().map_or_else(String::new, |stage| format!(" during “{}”", first_line(stage)))
    }

    /// ` of disk 1 of 2 (/path)`, as far as it is known.
    fn copied_disk(&self) -> String {
        let Some((disk, count)) = self.copying else { return String::new() };
        match self.targets.get(disk).filter(|path| !path.is_empty()) {
            Some(path) => format!(" of disk {} of {count} ({path})", disk + 1),
            None => format!(" of disk {} of {count}", disk + 1),
        }
    }

    fn continue_error(&mut self, line: &[u8]) {
        let blank = line.trim_ascii().is_empty();
        self.paragraphs = match self.paragraphs {
            Paragraphs::Over => return,
            _ if line.starts_with(b"If reporting bugs") => Paragraphs::Over,
            _ if blank => Paragraphs::AfterGap,
            Paragraphs::AfterText => Paragraphs::Over,
            Paragraphs::AfterGap => {
                let error = self.error.get_or_insert_default();
                error.push('\n');
                error.push_str(&text(line));
                truncate(error, MAX_TEXT);
                if error.len() < MAX_TEXT { Paragraphs::AfterText } else { Paragraphs::Over }
            }
        };
    }
}

/// What stands after `virt-v2v: ` or `virt-v2v-in-place: `, which begins the line or follows a prompt
/// (`Enter root's password for HOST: virt-v2v: error: ...`).
fn said(line: &[u8]) -> Option<&[u8]> {
    let line = match line.starts_with(b"Enter ") {
        true => &line[memmem::find(line, b": virt-v2v")? + 2..],
        false => line,
    };
    let rest = line.strip_prefix(b"virt-v2v")?;
    rest.strip_prefix(b"-in-place").unwrap_or(rest).strip_prefix(b": ")
}

fn contains(line: &[u8], needle: &[u8]) -> bool {
    memmem::find(line, needle).is_some()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT)]).into_owned()
}

fn first_line(text: &str) -> &str {
    let line = text.trim_start().lines().next().unwrap_or_default().trim_end();
    &line[..line.floor_char_boundary(MAX_SHOWN)]
}

fn truncate(text: &mut String, length: usize) {
    text.truncate(text.floor_char_boundary(length));
}

#[cfg(test)]
mod tests;
