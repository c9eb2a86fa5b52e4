//! The pod that this program runs in, as the API server sees it: annotations are written there, nothing is read.
//!
//! What Kubernetes puts into every pod is what is used: the server's address in the environment, and a service account's
//! token, authority and namespace as files. All are read for each request, since tokens and authorities are replaced while a
//! pod runs. What the annotations say is [`super`]'s.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::AUTHORIZATION;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::http::{Client, HttpError, Patience, Request, encoded};
use crate::tls::Trust;

/// Where Kubernetes mounts it, in every pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A server that is away is asked again with newer values; no request is worth more time.
const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(5), answer: Duration::from_secs(10), again: Duration::ZERO };

/// Why the pod could not be told something. None of these fails a conversion.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// A file of the service account.
    #[error("the service account: cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its certificate is nobody's whom the pod trusts.
    #[error("the certificate of {url} is not signed by {authority}: {reason}")]
    Untrusted {
        /// What was asked.
        url: String,
        /// The service account's authority.
        authority: PathBuf,
        /// What rustls says.
        reason: String,
    },
    /// It may not.
    #[error("{refused}; the pod's service account needs the verb patch on pods of its namespace")]
    Forbidden {
        /// The server's words.
        refused: HttpError,
    },
    /// Anything else.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// The pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `host:port` of the API server.
    server: String,
    name: String,
    account: PathBuf,
}

impl Pod {
    /// From the environment of a pod; else the variable that says that this is none.
    pub fn of(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, &'static str> {
        let text = |name: &'static str| {
            let value = env(name).and_then(|value| value.into_string().ok());
            value.filter(|value| !value.is_empty()).ok_or(name)
        };
        let host = text("KUBERNETES_SERVICE_HOST")?;
        let port = text("KUBERNETES_SERVICE_PORT")?;
        let server = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self { server, name: text("HOSTNAME")?, account: SERVICE_ACCOUNT.into() })
    }

    /// Sets annotations; others stay. A merge patch makes the map where the pod has none; the old program's JSON patch only
    /// worked where it was missing (contract.md 8.3).
    pub async fn annotate(&self, annotations: &Map<String, Value>) -> Result<(), PodError> {
        let (token, namespace) = (self.read("token")?, self.read("namespace")?);
        let authority = self.account.join("ca.crt");
        let client = Client::new(Trust::Authorities(authority.clone()), PATIENCE)?;
        let Self { server, name, .. } = self;
        let (namespace, name) = (encoded(namespace.trim()), encoded(name));
        let mut bearer = Zeroizing::new(String::with_capacity(token.len() + 7));
        // Writing to a string cannot fail.
        let _ = write!(bearer, "Bearer {}", token.trim());
        let patch = json!({"metadata": {"annotations": annotations}});
        let url = format!("https://{server}/api/v1/namespaces/{namespace}/pods/{name}");
        let request = Request::new(Method::PATCH, url)
            .secret_header(AUTHORIZATION, &bearer)
            .body("application/merge-patch+json", patch.to_string().into_bytes());
        match client.send(request).await.and_then(|answer| answer.success()) {
            Ok(_) => Ok(()),
            Err(HttpError::Untrusted { url, reason, .. }) => {
                Err(PodError::Untrusted { url, authority, reason })
            }
            Err(refused) if refused.status() == Some(reqwest::StatusCode::FORBIDDEN) => {
                Err(PodError::Forbidden { refused })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, name: &str) -> Result<Zeroizing<String>, PodError> {
        let path: PathBuf = Path::join(&self.account, name);
        std::fs::read_to_string(&path).map(Zeroizing::new).map_err(|source| PodError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_environment() {
        let pod = |variables: &[(&str, &str)]| {
            Pod::of(&|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            })
            .map(|pod| (pod.server, pod.name))
        };
        let (host, port, name) = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HOSTNAME");
        for (variables, expected) in [
            (vec![(host, "10.0.0.1"), (port, "443"), (name, "v2v-x")], Ok(("10.0.0.1:443", "v2v-x"))),
            (vec![(host, "fd00::1"), (port, "443"), (name, "v2v-x")], Ok(("[fd00::1]:443", "v2v-x"))),
            (vec![(port, "443"), (name, "v2v-x")], Err(host)),
            (vec![(host, ""), (port, "443"), (name, "v2v-x")], Err(host)),
            (vec![(host, "10.0.0.1"), (name, "v2v-x")], Err(port)),
            (vec![(host, "10.0.0.1"), (port, "443")], Err(name)),
        ] {
            let expected = expected.map(|(server, name): (&str, &str)| (server.to_owned(), name.to_owned()));
            assert_eq!(pod(&variables), expected, "{variables:?}");
        }
    }
}
