//! The wrapper's own log: one file, the old program's line format, no secret.
//!
//! Written synchronously: a few lines a minute need no thread, and a thread would have to start after every fork
//! (crates.md 3.8). Not the place of virt-v2v's output, which goes to its own file untouched.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::{Event, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use crate::secret::Scrubber;

/// The log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log {path}")]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// From here on `tracing` events go to `path` (appended, mode 0644: clients fetch it, contract.md 9.5).
pub fn start(path: &Path, scrubber: Scrubber) -> Result<(), LogError> {
    open(path, scrubber, false)
}

/// The same, and each line also goes to stderr if it warns of something, else to stdout: for a container, whose owner reads
/// these (contract.md 7.4).
pub fn start_aloud(path: &Path, scrubber: Scrubber) -> Result<(), LogError> {
    open(path, scrubber, true)
}

fn open(path: &Path, scrubber: Scrubber, aloud: bool) -> Result<(), LogError> {
    let error = |source| LogError { path: path.to_owned(), source };
    let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path).map_err(error)?;
    file.set_permissions(Permissions::from_mode(0o644)).map_err(error)?;
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .event_format(Lines)
        .with_writer(LogFile { file: Mutex::new(file), scrubber, aloud })
        .finish()
        .with(filter_fn(|meta| is_worth_it(meta.target(), *meta.level())));
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("a log is already open, {} stays unused", path.display());
    }
    Ok(())
}

/// The HTTP library tells of each request twice; of others only what they warn of is news.
fn is_worth_it(target: &str, level: tracing::Level) -> bool {
    target.starts_with(env!("CARGO_CRATE_NAME")) || level <= tracing::Level::WARN
}

struct LogFile {
    file: Mutex<File>,
    scrubber: Scrubber,
    aloud: bool,
}

struct Line<'a> {
    log: &'a LogFile,
    warns: bool,
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, warns: false }
    }
    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Line<'a> {
        Line { log: self, warns: *meta.level() <= tracing::Level::WARN }
    }
}

impl Write for Line<'_> {
    /// `tracing_subscriber` hands over one whole line a call, so a secret cannot straddle two.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let Self { log, warns } = self;
        let scrubbed = log.scrubber.scrub(&String::from_utf8_lossy(line));
        if log.aloud {
            // Nobody may listen; the file has it.
            let _ = match *warns {
                true => std::io::stderr().write_all(scrubbed.as_bytes()),
                false => std::io::stdout().write_all(scrubbed.as_bytes()),
            };
        }
        let mut file = log.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A full disk loses a line of the log, never the job: the error would only be dropped by the caller.
        file.write_all(scrubbed.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `2026-11-20 13:45:01,123:INFO: message (module:12)` (contract.md 2.4).
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        let level = match *meta.level() {
            tracing::Level::WARN => "WARNING",
            tracing::Level::TRACE => "DEBUG",
            ref level => level.as_str(),
        };
        let now = jiff::Zoned::now();
        write!(writer, "{},{:03}:{level}: ", now.strftime("%Y-%m-%d %H:%M:%S"), now.millisecond())?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        let module = meta.target().rsplit("::").next().unwrap_or_default();
        writeln!(writer, " ({module}:{})", meta.line().unwrap_or_default())
    }
}

/// An error with all its causes on one line, for the log and for sentences.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_only_warn() {
        use tracing::Level;
        for (target, level, kept) in [
            (module_path!(), Level::DEBUG, true),
            ("hyper_util::client::legacy::pool", Level::DEBUG, false),
            ("hyper_util::client::legacy::pool", Level::WARN, true),
        ] {
            assert_eq!(is_worth_it(target, level), kept, "{target} {level}");
        }
    }
}
