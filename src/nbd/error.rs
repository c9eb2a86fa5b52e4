//! What can go wrong with an NBD server, and the questions that decide what to do about it.

use std::io;
use std::sync::Arc;

use super::Address;
use super::reply::{Command, Errno};
use super::wire::Fault;

/// Why a connection or a request failed. Every request that waits on a lost connection gets a clone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nobody listens, or the network says no.
    #[error("cannot connect to NBD server {address}")]
    Connect {
        /// The server.
        address: Address,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The server took too long.
    #[error("NBD server {address} did not finish {what} in time")]
    Timeout {
        /// The server.
        address: Address,
        /// What it should have done.
        what: &'static str,
    },
    /// The server does not let us in, or is of a kind that is not spoken here.
    #[error("NBD server {address} {reason}")]
    Refused {
        /// The server.
        address: Address,
        /// The rest of the sentence.
        reason: String,
    },
    /// The server sent what the protocol forbids. Nothing that it says can be trusted any more.
    #[error("NBD server {address} broke the protocol: {fault}")]
    Protocol {
        /// The server.
        address: Address,
        /// How.
        fault: Fault,
    },
    /// The connection died. What was in flight may or may not have been done.
    #[error("the connection to NBD server {address} was lost")]
    Lost {
        /// The server.
        address: Address,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The server could not do what was asked; the connection lives.
    #[error("NBD server {address}: {command} of {length} bytes at {offset} failed: {errno}{}", said(.message))]
    Server {
        /// The server.
        address: Address,
        /// What was asked.
        command: Command,
        /// First byte of the request.
        offset: u64,
        /// Bytes of the request.
        length: u64,
        /// The error.
        errno: Errno,
        /// The server's words, bounded, often empty.
        message: String,
    },
    /// The server does not offer this for the export; nothing was sent.
    #[error("NBD server {address} does not offer {what}")]
    NotOffered {
        /// The server.
        address: Address,
        /// What.
        what: &'static str,
    },
    /// The request ends beyond the end of the export; nothing was sent.
    #[error(
        "{length} bytes at {offset} lie beyond the end of the export of NBD server {address}, which has {size}"
    )]
    BeyondEnd {
        /// The server.
        address: Address,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes of the export.
        size: u64,
    },
    /// The request does not keep to the server's smallest block; nothing was sent.
    #[error(
        "{length} bytes at {offset} are not in blocks of {minimum}, which NBD server {address} insists on"
    )]
    Unaligned {
        /// The server.
        address: Address,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The block.
        minimum: u32,
    },
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

impl Error {
    pub(super) fn lost(address: &Address, source: io::Error) -> Self {
        Self::Lost { address: address.clone(), source: Arc::new(source) }
    }

    pub(super) fn protocol(address: &Address, fault: Fault) -> Self {
        Self::Protocol { address: address.clone(), fault }
    }

    /// The server's error number, when the server answered.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Server { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the connection is gone, so that only a new one helps.
    pub fn ends_connection(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Refused { .. } => true,
            Self::Protocol { .. } | Self::Lost { .. } => true,
            Self::Server { .. } | Self::NotOffered { .. } => false,
            Self::BeyondEnd { .. } | Self::Unaligned { .. } => false,
        }
    }

    /// Whether the disk behind the server is full.
    pub fn is_no_space(&self) -> bool {
        self.errno() == Some(Errno::NoSpace)
    }

    /// Whether a smaller request may succeed.
    pub fn is_too_large(&self) -> bool {
        matches!(self.errno(), Some(Errno::OutOfMemory | Errno::Overflow))
    }

    /// Whether the server cannot do this kind of request here: the answer to a fast zero that would be slow.
    pub fn is_not_supported(&self) -> bool {
        self.errno() == Some(Errno::NotSupported)
    }
}
