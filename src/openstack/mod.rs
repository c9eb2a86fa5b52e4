//! A client of OpenStack over REST, for the destination ([`crate::destination::openstack`]) and the source that is one.
//!
//! ```text
//! osp_environment ─► credentials ─► cloud ─► catalogue, version     one session in one project
//!                                     │
//!                                     ├ resolve                     a name or an id ─► an id
//!                                     └ volumes, transfers, snapshots, servers, attachments, ports, images, limits
//! ```
//!
//! Pure: [`credentials`], [`catalogue`], [`version`], and the readers of all others. [`cloud`] is the edge: tokens, pages,
//! microversions, over [`crate::http`]. What is made here in which order, and what is undone, is not: that is a
//! destination's or a source's. Answers are read leniently: what a cloud leaves out is missing, not wrong.

use std::time::Duration;

use crate::http::HttpError;

pub mod attachments;
pub mod catalogue;
pub mod cloud;
pub mod credentials;
pub mod images;
pub mod limits;
mod listing;
pub mod ports;
pub mod resolve;
pub mod servers;
pub mod snapshots;
pub mod transfers;
pub mod version;
pub mod volumes;
pub mod wait;

pub use catalogue::Service;
pub use cloud::{Access, Cloud};
pub use wait::once;

/// Key of the metadata by which a thing is known to be a job's: its value is the thing's mark ([`crate::things`]).
pub const MARK: &str = "virt_v2v_wrapper";

/// What went wrong at an OpenStack.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloudError {
    /// No answer, or a refusal.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A key of the environment that is missing or cannot be used.
    #[error("osp_environment: {sentence}")]
    Environment {
        /// What is wrong, and what to do.
        sentence: String,
    },
    /// The login was refused.
    #[error("cannot log in to OpenStack at {url}")]
    Login {
        /// Where.
        url: String,
        /// The server's words.
        source: HttpError,
    },
    /// An answer without a token.
    #[error(
        "{url} answered a login without a token (no X-Subject-Token): is os-auth-url that of a Keystone v3?"
    )]
    NoToken {
        /// Where.
        url: String,
    },
    /// Another project than that of an application credential.
    #[error(
        "an application credential is good for its own project only, {own}, and project {wanted} is needed: give user and \
         password in osp_environment, or a credential of that project where both are the same"
    )]
    OtherProject {
        /// The credential's.
        own: String,
        /// What was wanted.
        wanted: String,
    },
    /// The catalogue lacks it.
    #[error(
        "the OpenStack at {url} has no {interface} endpoint of the service {service}{region}; it has {known}"
    )]
    NoService {
        /// Keystone's URL.
        url: String,
        /// What is needed.
        service: &'static str,
        /// E.g. `public`.
        interface: String,
        /// ` in region R`, or nothing.
        region: String,
        /// What there is.
        known: String,
    },
    /// An answer that lacks what it must have.
    #[error("{asked} was answered without {what}")]
    Shape {
        /// `GET http://...`.
        asked: String,
        /// What is missing.
        what: String,
    },
    /// Two things of one name.
    #[error("there are {count} {what}s named {name:?}: give the id")]
    Ambiguous {
        /// E.g. `network`.
        what: &'static str,
        /// The name.
        name: String,
        /// How many.
        count: usize,
    },
    /// Neither the id nor the name of one.
    #[error("there is no {what} {name:?} in project {project}")]
    Unknown {
        /// E.g. `network`.
        what: &'static str,
        /// As given.
        name: String,
        /// Where it was looked for.
        project: String,
    },
    /// A state that does not pass.
    #[error("{what} {id} is in state {status}{words}")]
    State {
        /// E.g. `volume`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The state.
        status: String,
        /// `: ` and the server's words, where it has some.
        words: String,
    },
    /// A state that did not come.
    #[error("{what} {id} is still in state {status} after {} s, not {wanted}", waited.as_secs())]
    Slow {
        /// E.g. `volume`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The state.
        status: String,
        /// What was waited for.
        wanted: String,
        /// How long.
        waited: Duration,
    },
}

impl CloudError {
    /// It is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Http(error) if error.is_not_found())
    }

    /// It may have been done all the same: look before it is asked for again.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Http(error) => error.is_ambiguous(),
            Self::Shape { .. } => true,
            _ => false,
        }
    }

    /// The server does not know such a request, or does not let us ask: nothing is learned from it.
    pub fn tells_nothing(&self) -> bool {
        match self {
            Self::Http(HttpError::Refused { status, .. }) => {
                matches!(status.as_u16(), 400 | 403 | 404 | 405 | 406 | 410 | 501)
            }
            Self::Http(HttpError::NotJson { .. }) | Self::Shape { .. } | Self::NoService { .. } => true,
            _ => false,
        }
    }

    /// The status that was answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Http(error) => error.status().map(|status| status.as_u16()),
            _ => None,
        }
    }
}
