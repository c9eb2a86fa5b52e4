//! JSON over HTTP: one request, one bounded answer, and errors as sentences. An edge.
//!
//! Not here: what is asked, logins and tokens (`destination::ovirt`, `openstack`), vSphere's SOAP, which has a client of its own
//! ([`crate::source::vsphere::client`]). A request that changes nothing is repeated when it fails on the way; any other is
//! repeated only if the server cannot have seen it. Whoever creates something asks [`HttpError::is_ambiguous`] and looks for
//! it before creating another.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use crate::json::one_line;
use crate::tls::{self, Seen, TlsError, Trust};

mod said;

pub use said::NOTHING_SAID;
use said::said;

/// Most bytes of one answer: listings of a big cloud are pages of a thousand.
const MOST_ANSWER: usize = 16 << 20;
/// Between two tries, at first and at most.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How rustls begins what is wrong with a certificate.
const BAD_CERTIFICATE: &str = "invalid peer certificate";

/// How long a server may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until it is connected, TLS included.
    pub connect: Duration,
    /// Until an answer is complete.
    pub answer: Duration,
    /// How long what fails on the way is tried again.
    pub again: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            answer: Duration::from_secs(120),
            again: Duration::from_secs(60),
        }
    }
}

/// A request. URLs hold no secret: they stand in errors.
#[derive(Clone)]
pub struct Request {
    /// `GET`, ...
    pub method: Method,
    /// Absolute.
    pub url: String,
    /// Tokens among them are marked sensitive.
    pub headers: HeaderMap,
    /// What is sent, and its type; `None`: nothing.
    pub body: Option<(HeaderValue, Vec<u8>)>,
}

/// Without headers and body: a login's body is a password.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.url)
    }
}

impl Request {
    /// Without headers and body.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: HeaderMap::new(), body: None }
    }

    /// `GET`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }

    /// With a JSON body.
    pub fn json(mut self, body: &Value) -> Self {
        self.body = Some((HeaderValue::from_static("application/json"), body.to_string().into_bytes()));
        self
    }

    /// With a body of another type.
    pub fn body(mut self, kind: &'static str, body: Vec<u8>) -> Self {
        self.body = Some((HeaderValue::from_static(kind), body));
        self
    }

    /// With a header.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With a header whose value no text shows. A value that no header can hold is left out, and the server says what is
    /// missing.
    pub fn secret_header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(mut value) = HeaderValue::try_from(value) {
            value.set_sensitive(true);
            self.headers.insert(name, value);
        }
        self
    }
}

/// An answer, whatever its status.
#[derive(Clone)]
pub struct Answer {
    /// E.g. 201.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// What was asked, `POST http://...`, for errors.
    asked: String,
}

/// Without headers and body: a login's answer is a token.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.asked, self.status)
    }
}

impl Answer {
    /// The body as JSON; `Null` for an empty one.
    pub fn json(&self) -> Result<Value, HttpError> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).map_err(|error| HttpError::NotJson {
            asked: self.asked.clone(),
            reason: one_line(&error.to_string(), 200),
        })
    }

    /// The answer if it is a success, else what the server said about it.
    pub fn success(self) -> Result<Self, HttpError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let said = said(&self.body);
        Err(HttpError::Refused { asked: self.asked, status: self.status, said })
    }
}

/// No answer, or not the one that was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    /// TLS or the library cannot be set up.
    #[error("cannot set up a connection: {reason}")]
    SetUp {
        /// Why.
        reason: String,
    },
    /// A certificate that no authority vouches for.
    #[error(
        "the certificate of {url} is not trusted: {reason}; add its authority to {bundle} (ca_bundle of the site \
         configuration), or set insecure_connection"
    )]
    Untrusted {
        /// The URL.
        url: String,
        /// The authorities.
        bundle: PathBuf,
        /// Why.
        reason: String,
    },
    /// No connection, or it broke.
    #[error("{asked}: {reason}")]
    Unreachable {
        /// `POST http://...`.
        asked: String,
        /// Why.
        reason: String,
        /// The server cannot have seen it.
        unseen: bool,
    },
    /// Too slow.
    #[error("{asked}: no answer within {} s", patience.as_secs_f32())]
    Slow {
        /// `POST http://...`.
        asked: String,
        /// How long it was waited for.
        patience: Duration,
        /// The server cannot have seen it.
        unseen: bool,
    },
    /// A status that is no success.
    #[error("{asked} was answered {status}: {said}")]
    Refused {
        /// `POST http://...`.
        asked: String,
        /// The status.
        status: StatusCode,
        /// The server's words.
        said: String,
    },
    /// More than is read.
    #[error("{asked} was answered with more than {} MiB", MOST_ANSWER >> 20)]
    TooLong {
        /// `GET http://...`.
        asked: String,
    },
    /// Something else than JSON.
    #[error("{asked} was answered with something else than JSON: {reason}")]
    NotJson {
        /// `GET http://...`.
        asked: String,
        /// What is wrong.
        reason: String,
    },
}

impl From<TlsError> for HttpError {
    fn from(error: TlsError) -> Self {
        Self::SetUp { reason: crate::log::chain(&error) }
    }
}

impl HttpError {
    /// The status that was answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// It is not there.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// The server may have done all the same what it was asked for: look for it before asking again.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Unreachable { unseen, .. } | Self::Slow { unseen, .. } => !unseen,
            Self::Refused { status, .. } => {
                status.is_server_error() && *status != StatusCode::SERVICE_UNAVAILABLE
            }
            Self::TooLong { .. } | Self::NotJson { .. } => true,
            Self::SetUp { .. } | Self::Untrusted { .. } => false,
        }
    }
}

/// A connection pool with its trust.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    trust: Trust,
    patience: Patience,
}

impl Client {
    /// Connects nowhere yet.
    pub fn new(trust: Trust, patience: Patience) -> Result<Self, HttpError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config(&trust, Arc::new(Seen::default()))?)
            // Neither the environment's proxies nor another server may see a password.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("virt-v2v-wrapper/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(patience.connect)
            .timeout(patience.answer)
            .tcp_keepalive(Duration::from_secs(60))
            // Servers close idle connections whenever they like, and a request on such a one is lost.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| HttpError::SetUp { reason: reason(error) })?;
        Ok(Self { http, trust, patience })
    }

    /// Sends a request; gives any answer. What fails on the way is tried again where that is safe.
    pub async fn send(&self, request: Request) -> Result<Answer, HttpError> {
        let until = Instant::now() + self.patience.again;
        let safe = request.method.is_idempotent();
        let mut pause = PAUSE;
        loop {
            let (again, wait) = match self.once(&request).await {
                Ok(answer) => match retry(&answer, safe) {
                    None => return Ok(answer),
                    Some(wait) => (Ok(answer), wait),
                },
                Err(error) => match &error {
                    HttpError::Unreachable { unseen, .. } | HttpError::Slow { unseen, .. }
                        if safe || *unseen =>
                    {
                        (Err(error), None)
                    }
                    _ => return Err(error),
                },
            };
            let wait = wait.unwrap_or(pause);
            if Instant::now() + wait > until {
                return again;
            }
            match &again {
                Ok(answer) => tracing::debug!("{} {}: trying again", answer.asked, answer.status),
                Err(error) => tracing::debug!("{error}: trying again"),
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn once(&self, request: &Request) -> Result<Answer, HttpError> {
        let asked = format!("{} {}", request.method, request.url);
        let failed = |error: reqwest::Error| self.failed(request, asked.clone(), error);
        let mut sending = self
            .http
            .request(request.method.clone(), &request.url)
            .headers(request.headers.clone())
            .header(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some((kind, body)) = &request.body {
            sending = sending.header(CONTENT_TYPE, kind).body(body.clone());
        }
        let mut response = sending.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MOST_ANSWER {
                return Err(HttpError::TooLong { asked });
            }
            body.extend_from_slice(&chunk);
        }
        tracing::debug!("{asked} {status}");
        Ok(Answer { status, headers, body, asked })
    }

    fn failed(&self, request: &Request, asked: String, error: reqwest::Error) -> HttpError {
        let unseen = error.is_connect() || error.is_builder();
        if error.is_timeout() {
            let patience = if unseen { self.patience.connect } else { self.patience.answer };
            return HttpError::Slow { asked, patience, unseen };
        }
        let reason = reason(error);
        match &self.trust {
            Trust::Authorities(bundle) if reason.contains(BAD_CERTIFICATE) => {
                HttpError::Untrusted { url: request.url.clone(), bundle: bundle.clone(), reason }
            }
            _ => HttpError::Unreachable { asked, reason, unseen },
        }
    }
}

/// Whether an answer only says that the server is busy; then how long it wants to be left alone, if it says so.
fn retry(answer: &Answer, safe: bool) -> Option<Option<Duration>> {
    let busy = match answer.status {
        // Not looked at: who refuses before the work says so by these.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => true,
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => safe,
        _ => false,
    };
    let after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    busy.then(|| after.map(|seconds: u64| Duration::from_secs(seconds.clamp(1, 60))))
}

/// The innermost cause, without the URL.
pub fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &(dyn std::error::Error + 'static) = &error;
    loop {
        // An I/O error gives its content's source as its own, so the content itself would be left out.
        let content = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match content.map(|content| content as &(dyn std::error::Error + 'static)).or(cause.source()) {
            Some(inner) => cause = inner,
            None => return one_line(&cause.to_string(), 300),
        }
    }
}

/// A path segment or query value as a URL takes it.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests;
