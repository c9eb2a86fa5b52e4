//! The part of a Kubernetes API server that knows one pod: GET and PATCH of it over TLS, with a bearer token.
//!
//! Not a stub of what is asked: it knows merge patches (RFC 7386), and refuses a wrong token, a wrong path, another content
//! type, a patch that is none, as a real one does.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::vsphere::certificates::{Certificate, signed_by};

pub const PATH: &str = "/api/v1/namespaces/v2v-jobs/pods/v2v-guest-x7";

/// What the next requests come to instead of what they ask.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// A status with Kubernetes' words for it.
    Status(u16),
    /// The connection ends without an answer.
    Cut,
    /// The answer comes late.
    Slow(Duration),
}

/// What is there.
#[derive(Debug, Default)]
pub struct Cluster {
    pub pod: Value,
    pub token: String,
    pub troubles: VecDeque<Trouble>,
    /// Statuses that were answered, in turn; 0 for none.
    pub answered: Vec<u16>,
    /// Patches that were taken, in turn.
    pub patches: Vec<Value>,
}

/// A running server.
pub struct Server {
    pub port: u16,
    pub cluster: Arc<Mutex<Cluster>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Its certificate is signed by `authority`.
    pub fn start(directory: &Path, authority: &Certificate, pod: Value) -> Self {
        let (certificate, key) = signed_by(directory, authority, "kubernetes", "127.0.0.1").pem();
        let chain = CertificateDer::pem_slice_iter(&certificate).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let tls = Arc::new(tls);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cluster = Arc::new(Mutex::new(Cluster { pod, ..Cluster::default() }));
        let over = Arc::new(AtomicBool::new(false));
        let (stop, shared) = (over.clone(), cluster.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (tls, shared) = (tls.clone(), shared.clone());
                // A client that hangs up in the middle is part of the tests.
                std::thread::spawn(move || serve(tls, stream.unwrap(), &shared).ok());
            }
        });
        Self { port, cluster, over, thread: Some(thread) }
    }

    /// An annotation as it is now.
    pub fn annotation(&self, name: &str) -> Option<String> {
        let cluster = self.cluster.lock().unwrap();
        cluster.pod["metadata"]["annotations"][name].as_str().map(str::to_owned)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(tls: Arc<ServerConfig>, stream: TcpStream, cluster: &Mutex<Cluster>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let (head, body) = read(&mut stream)?;
    let trouble = cluster.lock().unwrap().troubles.pop_front();
    if let Some(Trouble::Cut) = trouble {
        cluster.lock().unwrap().answered.push(0);
        return Ok(());
    }
    if let Some(Trouble::Slow(time)) = trouble {
        std::thread::sleep(time);
    }
    let mut cluster = cluster.lock().unwrap();
    let (status, answer) = match trouble {
        Some(Trouble::Status(status)) => refusal(status),
        _ => cluster.answer(&head, &body),
    };
    cluster.answered.push(status);
    drop(cluster);
    let answer = answer.to_string();
    let length = answer.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{answer}").as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// `Status` of the API, the answer to everything that fails.
fn refusal(status: u16) -> (u16, Value) {
    let reason = match status {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        415 => "UnsupportedMediaType",
        _ => "InternalError",
    };
    let message = format!("pods \"v2v-guest-x7\": {reason}");
    (
        status,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason,
               "code": status}),
    )
}

impl Cluster {
    fn answer(&mut self, head: &str, body: &[u8]) -> (u16, Value) {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        if header(head, "authorization") != Some(format!("Bearer {}", self.token)) {
            return refusal(401);
        }
        match (method, path) {
            ("GET", PATH) => (200, self.pod.clone()),
            ("PATCH", PATH)
                if header(head, "content-type").as_deref() != Some("application/merge-patch+json") =>
            {
                refusal(415)
            }
            ("PATCH", PATH) => {
                let Ok(patch @ Value::Object(_)) = serde_json::from_slice(body) else { return refusal(400) };
                let mut pod = self.pod.clone();
                merge(&mut pod, &patch);
                let texts =
                    |value: &Value| value.as_object().is_none_or(|map| map.values().all(Value::is_string));
                if !texts(&pod["metadata"]["annotations"]) {
                    return refusal(400);
                }
                self.pod = pod;
                self.patches.push(patch);
                (200, self.pod.clone())
            }
            _ => refusal(404),
        }
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(key)),
            value => merge(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn read(stream: &mut impl Read) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&piece[..count]);
        let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length: usize = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        if bytes.len() >= end + 4 + length {
            return Ok((head, bytes[end + 4..].to_vec()));
        }
    }
}
