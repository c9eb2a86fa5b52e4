//! A question to a tool: what it writes to its standard output, bounded in size and time.
//!
//! For short answers (an image's data, a file of another host). What a tool writes while it works goes into logs, not
//! through here.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;

use super::{Exit, Tool, children, signal_group};

/// Of what a tool complains, so much is kept.
const MOST_COMPLAINTS: usize = 16 << 10;

/// What a tool said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Its end.
    pub exit: Exit,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error, at most 16 KiB.
    pub stderr: Vec<u8>,
}

impl Captured {
    /// Its last line of complaint; how it ended, if it complained of nothing.
    pub fn complaint(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let last = text.split(['\n', '\r']).rev().map(str::trim).find(|line| !line.is_empty());
        last.map_or_else(|| self.exit.to_string(), |line| crate::json::one_line(line, 500))
    }
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It did not start, or its output could not be read.
    #[error("it cannot be run")]
    Run(#[from] std::io::Error),
    /// It would not end.
    #[error("it was not done within {} s", .0.as_secs())]
    Slow(Duration),
    /// It would not end, either.
    #[error("it wrote more than {0} bytes")]
    TooMuch(usize),
}

/// Runs a tool to its end and gives what it wrote, if that is at most `limit` bytes. It is killed when `patience` or
/// `limit` is exceeded, and when the future is dropped.
///
/// From the main thread only ([`Tool::spawn`]), in a runtime with I/O and time.
pub async fn capture(mut tool: Tool, limit: usize, patience: Duration) -> Result<Captured, CaptureError> {
    let (out, out_end) = std::io::pipe()?;
    let (err, err_end) = std::io::pipe()?;
    tool.command().stdout(out_end).stderr(err_end);
    // The tool's ends are closed with it here, so that the pipes end when it does.
    let running = Running(tool.spawn()?);
    let (out, err) = (pipe::Receiver::from_owned_fd(out.into())?, pipe::Receiver::from_owned_fd(err.into())?);
    let answer = async {
        let (stdout, stderr) = tokio::try_join!(read(out, limit, false), read(err, MOST_COMPLAINTS, true))?;
        let exit = children::ended(running.0).await;
        Ok(Captured { exit, stdout, stderr })
    };
    tokio::time::timeout(patience, answer).await.map_err(|_| CaptureError::Slow(patience))?
}

/// All that comes, if it is at most `limit`; with `cut` only the beginning is kept, and all is read.
async fn read(mut from: impl AsyncRead + Unpin, limit: usize, cut: bool) -> Result<Vec<u8>, CaptureError> {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let length = from.read(&mut piece).await?;
        let Some(read) = piece.get(..length).filter(|read| !read.is_empty()) else { return Ok(all) };
        let room = limit.saturating_sub(all.len());
        if read.len() > room && !cut {
            return Err(CaptureError::TooMuch(limit));
        }
        all.extend(read.iter().take(room));
    }
}

/// Killed when nobody waits for it any more.
struct Running(Pid);

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: a pid that was waited for may be somebody else's by now.
        if children::exit_of(self.0).is_none() {
            signal_group(self.0, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Tool {
        let mut tool = Tool::new(Path::new("/bin/sh"), "test");
        tool.command().arg("-c").arg(script);
        tool
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn an_answer_has_all_of_the_output_and_the_end() {
        let captured =
            capture(shell("printf 'a\\0b'; echo x >&2; echo 'no such' >&2; exit 3"), 3, LONG).await.unwrap();
        assert_eq!((captured.stdout.as_slice(), captured.exit), (&b"a\0b"[..], Exit::Code(3)));
        assert_eq!(captured.complaint(), "no such");
        // More complaints than are kept, and more than a pipe holds, do not stop it.
        let captured = capture(shell("yes | head -c 300000 >&2"), 0, LONG).await.unwrap();
        assert_eq!((captured.exit, captured.stderr.len()), (Exit::Code(0), MOST_COMPLAINTS));
        assert!(matches!(
            capture(Tool::new(Path::new("/nowhere"), "test"), 0, LONG).await,
            Err(CaptureError::Run(_))
        ));
    }

    /// Nothing that is asked can fill the memory or stop the job.
    #[tokio::test]
    async fn a_tool_that_does_not_end_is_killed() {
        let begun = Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        for script in ["exec yes", "trap '' PIPE; while :; do echo y; done 2>/dev/null", "exec sleep 1000"] {
            let script = format!("echo $$ > '{}'; {script}", pid_file.display());
            let error = capture(shell(&script), 100, Duration::from_millis(500)).await.unwrap_err();
            assert!(matches!(error, CaptureError::TooMuch(100) | CaptureError::Slow(_)), "{error}");
            let pid = Pid::from_raw(std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap());
            let exit = children::ended(pid).await;
            assert!(matches!(exit, Exit::Signal(libc::SIGKILL | libc::SIGPIPE)), "{exit:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
