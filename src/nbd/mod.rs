//! NBD: a small asynchronous client of our own (the reasons are in crates.md 3.10).
//!
//! ```text
//! wire, reply     (pure) bytes of handshake and transmission, both ways
//! answer          (pure) what came for one request: every byte once, or the server broke the protocol
//! export          (pure) what the server offers: size, flags, block sizes, as questions
//! handshake       fixed newstyle over any stream, up to an open export
//! connection      two tasks, send and receive; replies find their request by cookie
//! client          the operations, on one connection
//! pool            the same on several connections
//! budget          memory: every buffer in flight is counted, wherever it is
//! ```
//!
//! It is no server, does no TLS (a server that insists is refused with a sentence) and does not reconnect: a lost
//! connection fails everything that waits, and who called decides what is done again. Called by the copy engine.
//!
//! Everything runs on one thread: the tasks are started with [`tokio::task::spawn_local`], so a
//! [`tokio::task::LocalSet`] or a [`tokio::runtime::LocalRuntime`] must be there.

pub mod answer;
pub mod budget;
pub mod client;
mod connection;
pub mod error;
pub mod export;
pub mod handshake;
pub mod pool;
mod receive;
pub mod reply;
mod send;
pub mod wire;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where a server listens. It never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// Host name or address, and port.
    Tcp(String, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "{}", path.display()),
            Self::Tcp(host, port) if host.contains(':') => write!(formatter, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(formatter, "{host}:{port}"),
        }
    }
}

/// How a connection is made and used.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest time for connecting with its handshake, and for a clean disconnect.
    pub timeout: Duration,
    /// Requests that may be in flight on one connection; further ones wait. Both nbdkit and qemu-nbd work at 16 at a
    /// time by default, and a queue keeps them busy.
    pub requests: usize,
    /// Whether structured replies are asked for; without them there is no block status.
    pub structured: bool,
    /// Whether block status is asked for.
    pub allocation: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), requests: 64, structured: true, allocation: true }
    }
}
