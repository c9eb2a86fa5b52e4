//! What can go wrong with a call to vSphere, as sentences with the URL and the server's own words in them. Pure.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;

use super::client::MOST_ANSWER;
use super::soap::{Fault, SoapError};
use crate::tls::{Fingerprint, TlsError};

/// A call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP library.
    #[error("cannot set up the connection to {url}: {reason}")]
    SetUp {
        /// URL of the SDK.
        url: String,
        /// Why.
        reason: String,
    },
    /// Another certificate than the pinned one.
    #[error(
        "the certificate of {url} has the fingerprint {shown}, not {pinned} (vmware_fingerprint): if it was renewed, \
         give the new fingerprint; if not, somebody else answers there"
    )]
    Certificate {
        /// URL of the SDK.
        url: String,
        /// Of the certificate that was shown.
        shown: Fingerprint,
        /// What was expected.
        pinned: Fingerprint,
    },
    /// A certificate that no authority vouches for.
    #[error(
        "the certificate of {url} is not trusted: {reason}; give its fingerprint as vmware_fingerprint, or add its \
         authority to {bundle}"
    )]
    Untrusted {
        /// URL of the SDK.
        url: String,
        /// The authorities.
        bundle: PathBuf,
        /// Why.
        reason: String,
    },
    /// No connection, or it broke.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// URL of the SDK.
        url: String,
        /// Why.
        reason: String,
    },
    /// Too slow.
    #[error("{url} did not answer {method} within {} s; is it overloaded?", patience.as_secs_f32())]
    Slow {
        /// URL of the SDK.
        url: String,
        /// The method.
        method: &'static str,
        /// How long it was waited for.
        patience: Duration,
    },
    /// No SDK there, or not now.
    #[error(
        "{url} answered {method} with HTTP status {status}; is it a vCenter or an ESXi host, and is it up?"
    )]
    Status {
        /// URL of the SDK.
        url: String,
        /// The method.
        method: &'static str,
        /// The status.
        status: StatusCode,
    },
    /// More than is read.
    #[error("{url} answered {method} with more than {} MiB", MOST_ANSWER >> 20)]
    TooLong {
        /// URL of the SDK.
        url: String,
        /// The method.
        method: &'static str,
    },
    /// No answer that can be understood.
    #[error("{url} answered {method} with something else than SOAP: {problem}")]
    Garbage {
        /// URL of the SDK.
        url: String,
        /// The method.
        method: &'static str,
        /// What it is.
        problem: SoapError,
    },
    /// SOAP, but without what the method returns.
    #[error("{url} answered {method} without {lacking}")]
    Incomplete {
        /// URL of the SDK.
        url: String,
        /// The method.
        method: &'static str,
        /// What is not there.
        lacking: &'static str,
    },
    /// The login was refused.
    #[error(
        "{url} refuses the login of {user}: {fault}; check vmware_password and the user in vmware_uri, and that the \
         account is not locked"
    )]
    Login {
        /// URL of the SDK.
        url: String,
        /// Who.
        user: String,
        /// The server's words.
        fault: Fault,
    },
    /// The server refused.
    #[error("{url} refuses {method}: {fault}")]
    Fault {
        /// URL of the SDK.
        url: String,
        /// The method.
        method: &'static str,
        /// The server's words.
        fault: Fault,
    },
}

impl ClientError {
    /// The server's refusal, if it is one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault { fault, .. } | Self::Login { fault, .. } => Some(fault),
            _ => None,
        }
    }

    /// The network or a server that starts: the same question may be answered later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Slow { .. } | Self::Status { .. })
    }
}
