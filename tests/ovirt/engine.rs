//! The engine's surface: HTTPS, one request per connection, logins, and faults where a test wants them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use regex::Regex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::world::World;
use crate::vsphere::certificates::{Certificate, self_signed, signed_by};

/// It needs escapes in a form.
pub const PASSWORD: &str = "rhv-Secret+7431&x=%";
/// `admin@internal` with it, as HTTP Basic has it.
const BASIC: &str = "Basic YWRtaW5AaW50ZXJuYWw6cmh2LVNlY3JldCs3NDMxJng9JQ==";
/// Longer than any client of the suite waits.
const SILENCE: Duration = Duration::from_secs(20);

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Decoded.
    pub query: Vec<(String, String)>,
    pub authorization: String,
    pub version: String,
    pub body: String,
}

impl Request {
    pub fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// `POST vms`, without what every path begins with.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path.trim_start_matches("/ovirt-engine/api/"))
    }
}

/// What happens instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// This status and these words; nothing is done.
    Refuse(u16, &'static str),
    /// This status and these bytes; nothing is done.
    Say(u16, &'static str),
    /// It is done, and these bytes are the answer.
    DoAndSay(&'static str),
    /// It is done a while later, whether somebody still waits for it or not.
    Late(Duration),
    /// All tokens are over.
    Expire,
    /// The connection ends; it is not done.
    DropBefore,
    /// It is done, and the connection ends.
    DropAfter,
    /// Nobody answers; it is not done.
    SilenceBefore,
    /// It is done, and nobody answers.
    SilenceAfter,
}

/// A fault that waits for its request.
#[derive(Debug)]
pub struct Fault {
    line: Regex,
    /// Not where the line has this in it.
    without: Option<String>,
    /// Matching requests that go well before.
    skip: usize,
    /// How often it strikes.
    times: usize,
    effect: Effect,
    struck: usize,
}

impl Fault {
    /// At the first request whose line (`POST vms`) matches.
    pub fn at(line: &str, effect: Effect) -> Self {
        Self { line: Regex::new(line).unwrap(), without: None, skip: 0, times: 1, effect, struck: 0 }
    }

    pub fn without(mut self, text: &str) -> Self {
        self.without = Some(text.to_owned());
        self
    }

    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }
}

/// A running engine.
pub struct Engine {
    pub url: String,
    /// The authority that signed its certificate.
    pub certificate: Certificate,
    world: Arc<Mutex<World>>,
    faults: Arc<Mutex<Vec<Fault>>>,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Disks lie in `directory`.
    pub fn start(directory: &Path) -> Self {
        let certificate = self_signed(directory, "authority");
        let (chain, key) = signed_by(directory, &certificate, "engine", "127.0.0.1").pem();
        let chain = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
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
        let world = Arc::new(Mutex::new(World::new(directory)));
        let (faults, requests) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let over = Arc::new(AtomicBool::new(false));
        let surface = Surface {
            world: world.clone(),
            faults: faults.clone(),
            requests: requests.clone(),
            over: over.clone(),
        };
        let stop = over.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (surface, tls) = (surface.clone(), tls.clone());
                std::thread::spawn(move || {
                    // A client that hangs up in the middle is part of the tests.
                    surface.serve(tls, stream.unwrap()).ok();
                });
            }
        });
        let url = format!("https://127.0.0.1:{port}/ovirt-engine/api");
        Self { url, certificate, world, faults, requests, over, port, thread: Some(thread) }
    }

    /// What it holds.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn fault(&self, fault: Fault) {
        self.faults.lock().unwrap().push(fault);
    }

    /// Faults that no request has met.
    pub fn unmet(&self) -> usize {
        self.faults.lock().unwrap().iter().filter(|fault| fault.struck <= fault.skip).count()
    }

    pub fn no_more_faults(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// Lines of the requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many requests had this line.
    pub fn count(&self, line: &str) -> usize {
        let line = Regex::new(line).unwrap();
        self.lines().iter().filter(|seen| line.is_match(seen)).count()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[derive(Clone)]
struct Surface {
    world: Arc<Mutex<World>>,
    faults: Arc<Mutex<Vec<Fault>>>,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
}

impl Surface {
    fn serve(&self, tls: Arc<ServerConfig>, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        let request = read(&mut stream)?;
        self.requests.lock().unwrap().push(request.clone());
        let effect = self.effect(&request.line());
        if let Some(Effect::Say(status, words)) = effect {
            return say(&mut stream, status, words);
        }
        let done = match effect {
            Some(Effect::Refuse(status, words)) => {
                (status, json!({"reason": "Operation Failed", "detail": words}))
            }
            Some(Effect::DropBefore) => return Ok(()),
            Some(Effect::SilenceBefore) => {
                self.silence();
                return Ok(());
            }
            Some(Effect::Expire) => {
                self.world.lock().unwrap().tokens.clear();
                self.answer(&request)
            }
            Some(Effect::Late(pause)) => self.late(&request, pause),
            Some(Effect::DropAfter | Effect::SilenceAfter | Effect::Say(..) | Effect::DoAndSay(_)) | None => {
                self.answer(&request)
            }
        };
        match effect {
            Some(Effect::DropAfter) => return Ok(()),
            Some(Effect::SilenceAfter) => {
                self.silence();
                return Ok(());
            }
            _ => {}
        }
        let (status, body) = done;
        let body = match effect {
            Some(Effect::DoAndSay(words)) => words.to_owned(),
            _ if body.is_null() => String::new(),
            _ => as_text(body).to_string(),
        };
        say(&mut stream, status, &body)
    }

    /// The fault that this request meets.
    fn effect(&self, line: &str) -> Option<Effect> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.iter_mut().find(|fault| {
            let is_meant = fault.without.as_ref().is_none_or(|text| !line.contains(text));
            is_meant && fault.line.is_match(line) && fault.struck < fault.skip + fault.times
        })?;
        fault.struck += 1;
        (fault.struck > fault.skip).then_some(fault.effect)
    }

    /// The disk that it is about is locked meanwhile; whose request it is was looked at when it came.
    fn late(&self, request: &Request, pause: Duration) -> (u16, Value) {
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let disk = body["disk"]["id"].as_str().unwrap_or_default();
        self.world.lock().unwrap().locked.insert(disk.to_owned(), None);
        std::thread::sleep(pause);
        let mut world = self.world.lock().unwrap();
        world.locked.remove(disk);
        world.answer(request)
    }

    fn silence(&self) {
        let begun = Instant::now();
        while begun.elapsed() < SILENCE && !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answer(&self, request: &Request) -> (u16, Value) {
        let mut world = self.world.lock().unwrap();
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/ovirt-engine/sso/oauth/token") if !world.sso => (404, Value::Null),
            ("POST", "/ovirt-engine/sso/oauth/token") => {
                let form: Vec<(String, String)> = pairs(&request.body);
                let value =
                    |key: &str| form.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
                let known = value("username") == Some("admin@internal")
                    && value("password") == Some(world.password.as_str());
                if !known
                    || value("grant_type") != Some("password")
                    || value("scope") != Some("ovirt-app-api")
                {
                    let words = "Cannot authenticate user: the user name or password is incorrect.";
                    return (400, json!({"error_code": "access_denied", "error": words}));
                }
                let token = format!("token-{}", world.next());
                world.tokens.insert(token.clone());
                (200, json!({"access_token": token, "scope": "ovirt-app-api", "token_type": "bearer"}))
            }
            ("POST", "/ovirt-engine/services/sso-logout") => {
                let form = pairs(&request.body);
                world.tokens.retain(|token| form.iter().all(|(_, value)| value != token));
                (200, json!({}))
            }
            _ => {
                let token = request.authorization.strip_prefix("Bearer ");
                let known = token.is_some_and(|token| world.tokens.contains(token));
                if !known && request.authorization != BASIC {
                    return (401, json!({"error": "invalid_token", "error_description": "not logged in"}));
                }
                assert_eq!(request.version, "4", "{request:?}");
                world.answer(request)
            }
        }
    }
}

fn say(
    stream: &mut StreamOwned<ServerConnection, TcpStream>,
    status: u16,
    body: &str,
) -> std::io::Result<()> {
    let challenge = if status == 401 { "WWW-Authenticate: Basic realm=\"engine\"\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{challenge}Connection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// As an engine writes its JSON: numbers and booleans are texts.
fn as_text(value: Value) -> Value {
    match value {
        Value::Bool(_) | Value::Number(_) => Value::String(value.to_string()),
        Value::Array(items) => items.into_iter().map(as_text).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, as_text(value))).collect(),
        other => other,
    }
}

fn pairs(text: &str) -> Vec<(String, String)> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

fn read(stream: &mut impl Read) -> std::io::Result<Request> {
    let mut bytes = Vec::new();
    let (head, length) = loop {
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
            bytes.drain(..end + 4);
            break (head, length);
        }
    };
    let mut words = head.lines().next().unwrap().split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Request {
        method,
        path: path.to_owned(),
        query: pairs(query),
        authorization: header(&head, "authorization").unwrap_or_default(),
        version: header(&head, "version").unwrap_or_default(),
        body: String::from_utf8(bytes[..length].to_vec()).unwrap(),
    })
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
