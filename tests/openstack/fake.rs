//! An OpenStack in memory: keystone, cinder, nova and neutron as far as a destination asks them, on one port, with faults.
//!
//! It keeps what it is told and refuses what the real services refuse, with their statuses and shapes (`honest.rs` compares
//! them). Not in it: images of which no server was, policies, what nobody asks for. A [`Fault`] meets one request: it is answered wrongly, cut before
//! or after the work, or never answered.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use regex::Regex;
use serde_json::{Value, json};

use super::http::{self, Answer, Request};

/// Nova.
mod compute;
/// Keystone.
mod identity;
/// Glance.
mod image;
/// Neutron.
mod network;
/// Cinder's snapshots.
mod snapshot;
/// What there is.
pub mod state;
/// Cinder.
mod volume;

pub use state::{USER, World};

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Harm {
    /// Not done; this status with these words.
    Refuse(u16, &'static str),
    /// Not done; the connection ends.
    CutBefore,
    /// Done; the connection ends without an answer.
    CutAfter,
    /// Done; there is never an answer.
    Silence,
    /// Done; answered with status 500.
    DoneAndRefused,
    /// The token is not good any more.
    Expired,
}

/// The `nth` request (from 1) of this method whose path is like this is harmed, and `times - 1` more after it.
#[derive(Debug, Clone)]
pub struct Fault {
    pub method: &'static str,
    pub path: Regex,
    pub nth: usize,
    pub times: usize,
    pub harm: Harm,
}

impl Fault {
    pub fn once(method: &'static str, path: &str, harm: Harm) -> Self {
        Self { method, path: Regex::new(path).unwrap(), nth: 1, times: 1, harm }
    }

    /// Each of them.
    pub fn always(method: &'static str, path: &str, harm: Harm) -> Self {
        Self { times: usize::MAX, ..Self::once(method, path, harm) }
    }

    /// Not the first, but this one.
    pub fn nth(self, nth: usize) -> Self {
        Self { nth, ..self }
    }
}

/// A request that came, and how it was answered (0: not at all).
#[derive(Debug, Clone)]
pub struct Seen {
    pub request: Request,
    pub project: String,
    pub status: u16,
}

#[derive(Default)]
struct Shared {
    world: World,
    faults: Vec<(Fault, usize)>,
    seen: Vec<Seen>,
    /// Connections that are kept waiting.
    silent: Vec<TcpStream>,
    /// How many faults have struck.
    struck: usize,
}

/// A running one.
pub struct Fake {
    pub port: u16,
    shared: Arc<Mutex<Shared>>,
    over: Arc<AtomicBool>,
}

impl Fake {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Mutex::new(Shared { world: World::new(port), ..Shared::default() }));
        let over = Arc::new(AtomicBool::new(false));
        let fake = Self { port, shared: Arc::clone(&shared), over: Arc::clone(&over) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that hangs up in the middle is part of the tests.
                std::thread::spawn(move || serve(stream, &shared).ok());
            }
        });
        fake
    }

    /// The root of all services; keystone's v3 is below it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// For a thread of its own.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// Looks at what there is, or changes it.
    pub fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.shared().world)
    }

    pub fn fail(&self, fault: Fault) {
        self.shared().faults.push((fault, 0));
    }

    /// No faults any more, and those who wait are let go.
    pub fn heal(&self) {
        let mut shared = self.shared();
        shared.faults.clear();
        shared.silent.clear();
    }

    /// How many faults have struck.
    pub fn struck(&self) -> usize {
        self.shared().struck
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared().seen.clone()
    }

    /// Requests of this method whose path is like this that were done.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let path = Regex::new(path).unwrap();
        let is = |seen: &&Seen| seen.request.method == method && path.is_match(seen.request.plain());
        self.seen().iter().filter(is).count()
    }

    /// `METHOD path -> status`, a line for each, for the message of a test that fails.
    pub fn story(&self) -> String {
        let line = |seen: &Seen| {
            let Seen { request, status, project } = seen;
            format!("  {} {} [{project}] -> {status}", request.method, request.path)
        };
        self.seen().iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A look at a fake from elsewhere.
pub struct Handle(Arc<Mutex<Shared>>);

impl Handle {
    pub fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.0.lock().unwrap().world)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let request = http::request(&mut stream)?;
    let mut all = shared.lock().unwrap();
    let harm = all.harm(&request);
    all.struck += usize::from(harm.is_some());
    let project = all.world.project_of(&request).unwrap_or_default();
    if matches!(harm, Some(Harm::Expired)) {
        all.world.tokens.retain(|token| Some(token.id.as_str()) != request.header("x-auth-token"));
    }
    let answer = match &harm {
        Some(Harm::Refuse(status, words)) => Answer::new(*status, refusal(&request, *status, words)),
        Some(Harm::CutBefore) => Answer::empty(0),
        _ => answer(&mut all.world, &request),
    };
    let answer = all.world.sparing(&request, answer);
    let status = if matches!(harm, Some(Harm::CutAfter | Harm::Silence)) { 0 } else { answer.status };
    all.seen.push(Seen { request: request.clone(), project, status });
    match harm {
        Some(Harm::CutBefore | Harm::CutAfter) => Ok(()),
        Some(Harm::Silence) => {
            all.silent.push(stream);
            Ok(())
        }
        Some(Harm::DoneAndRefused) => {
            drop(all);
            stream.write_all(&Answer::new(500, refusal(&request, 500, "it broke")).bytes())
        }
        _ => {
            drop(all);
            stream.write_all(&answer.bytes())
        }
    }
}

impl World {
    /// The answer without what this cloud does not show.
    fn sparing(&self, request: &Request, mut answer: Answer) -> Answer {
        let hidden = self.hidden.iter().filter(|(path, _)| request.plain().contains(path));
        hidden.for_each(|(_, key)| hide(&mut answer.body, key));
        answer
    }
}

fn hide(value: &mut Value, key: &str) {
    match value {
        Value::Object(object) => {
            object.remove(key);
            object.values_mut().for_each(|inner| hide(inner, key));
        }
        Value::Array(all) => all.iter_mut().for_each(|inner| hide(inner, key)),
        _ => {}
    }
}

impl Shared {
    fn harm(&mut self, request: &Request) -> Option<Harm> {
        let mut found = None;
        for (fault, met) in &mut self.faults {
            if fault.method == request.method && fault.path.is_match(request.plain()) {
                *met += 1;
                let strikes = *met >= fault.nth && *met - fault.nth < fault.times;
                found = found.or(strikes.then(|| fault.harm.clone()));
            }
        }
        found
    }
}

/// As the service of this path words it.
fn refusal(request: &Request, status: u16, words: &str) -> Value {
    let path = request.plain();
    if path.starts_with("/network") {
        network::error("Injected", words)
    } else if path.starts_with("/v3") {
        identity::error(status, words)
    } else {
        fault(status, words)
    }
}

/// An error of nova or cinder.
pub(super) fn fault(status: u16, words: &str) -> Value {
    let kind = match status {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        409 => "conflictingRequest",
        413 => "overLimit",
        _ => "computeFault",
    };
    json!({ kind: { "code": status, "message": words } })
}

pub(super) fn refuse(status: u16, words: &str) -> Answer {
    Answer::new(status, fault(status, words))
}

fn answer(world: &mut World, request: &Request) -> Answer {
    let path = request.plain().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let parts: Vec<String> = parts.into_iter().map(http::decoded).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let method = request.method.as_str();
    if parts.first() == Some(&"v3") {
        return identity::answer(world, request, method, &parts[1..]);
    }
    // Documents of versions are everybody's.
    match (parts.as_slice(), method) {
        (["compute", "v2.1"], "GET") => return compute::version(),
        (["volume", "v3"] | ["volume"], "GET") => return volume::version(),
        (["network"], "GET") => return network::version(),
        _ => {}
    }
    let Some(token) = world.token(request) else {
        return Answer::new(401, identity::error(401, "The request you have made requires authentication."));
    };
    match parts.as_slice() {
        ["volume", "v3", project, rest @ ..] => {
            if *project != token.project {
                return refuse(400, "Malformed request url");
            }
            volume::answer(world, &token, request, method, rest)
        }
        ["compute", "v2.1", rest @ ..] => compute::answer(world, &token, request, method, rest),
        ["image", "v2", rest @ ..] => image::answer(world, &token, request, method, rest),
        ["network", "v2.0", rest @ ..] => network::answer(world, &token, request, method, rest),
        _ => refuse(404, "no such path"),
    }
}
