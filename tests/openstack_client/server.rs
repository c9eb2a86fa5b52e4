//! Keystone and whatever else a test says, over HTTP on loopback: one request a connection, one thread.
//!
//! Without a script it logs everybody in, as token-1, token-2, ..., into the project of the scope (or `own`), and answers all
//! else with an empty listing of what was asked for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    pub token: Option<String>,
    pub microversion: Option<String>,
    pub body: Value,
    /// Which one of this server, from 1.
    pub number: usize,
}

/// What a script answers.
pub struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    pub fn json(status: u16, body: Value) -> Self {
        Self { status, body }
    }
}

type Script = Box<dyn FnMut(&Asked) -> Option<Answer> + Send>;

/// A running server.
pub struct Server {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    over: AtomicBool,
    /// Of a token, in seconds.
    life: AtomicU64,
    /// Paths of the endpoints of volumes and networks.
    endpoints: Mutex<Option<(String, String)>>,
}

impl Server {
    pub fn start(script: impl FnMut(&Asked) -> Option<Answer> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let shared = Arc::new(Shared { life: AtomicU64::new(3600), ..Shared::default() });
        let (own, mut script): (_, Script) = (Arc::clone(&shared), Box::new(script));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own.over.load(Ordering::Relaxed) {
                    return;
                }
                own.serve(stream.expect("a connection"), port, &mut script).ok();
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn token_ends_after(&self, seconds: u64) {
        self.shared.life.store(seconds, Ordering::Relaxed);
    }

    /// Where volumes and networks are, below this server.
    pub fn endpoints(&self, volume: &str, network: &str) {
        *self.shared.endpoints.lock().expect("no test has panicked with it") =
            Some((volume.to_owned(), network.to_owned()));
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("no test has panicked with it").clone()
    }

    pub fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path == path).count()
    }

    pub fn logins(&self) -> usize {
        self.count("/v3/auth/tokens")
    }

    /// Tokens of the requests to paths that end so.
    pub fn tokens(&self, path: &str) -> Vec<String> {
        let of_path = self.asked().into_iter().filter(|asked| asked.path.ends_with(path));
        of_path.filter_map(|asked| asked.token).collect()
    }

    /// Body of the last request to a path that ends so.
    pub fn body(&self, path: &str) -> Value {
        let last = self.asked().into_iter().rfind(|asked| asked.path.ends_with(path));
        last.map(|asked| asked.body).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream, port: u16, script: &mut Script) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (mut token, mut microversion, mut length) = (None, None, 0);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(':') else { break };
            let value = value.trim().to_owned();
            match name.to_ascii_lowercase().as_str() {
                "x-auth-token" => token = Some(value),
                "openstack-api-version" => microversion = Some(value),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let mut all = self.asked.lock().expect("no test has panicked with it");
        let asked = Asked { method, path, token, microversion, body, number: all.len() + 1 };
        all.push(asked.clone());
        let logins = all.iter().filter(|asked| asked.path == "/v3/auth/tokens").count();
        drop(all);
        let scripted = script(&asked);
        let issued = asked.path == "/v3/auth/tokens" && scripted.is_none();
        let Answer { status, body } = scripted.unwrap_or_else(|| self.usual(&asked, port));
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let subject = if issued { format!("X-Subject-Token: token-{logins}\r\n") } else { String::new() };
        let mut stream = reader.into_inner();
        write!(
            stream,
            "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{subject}Content-Length: {}\r\n\
             Connection: close\r\n\r\n{text}",
            text.len()
        )?;
        stream.flush()
    }

    fn usual(&self, asked: &Asked, port: u16) -> Answer {
        if asked.path == "/v3/auth/tokens" {
            return Answer::json(201, self.token(asked, port));
        }
        let plain = asked.path.split('?').next().unwrap_or_default().trim_end_matches("/detail");
        let last = plain.rsplit('/').next().unwrap_or_default().replace('-', "_");
        let mut listing = json!({});
        listing[last] = json!([]);
        Answer::json(200, listing)
    }

    /// Of a cloud whose clock is years behind.
    fn token(&self, asked: &Asked, port: u16) -> Value {
        let project = asked.body["auth"]["scope"]["project"]["id"].as_str().unwrap_or("own");
        let given = self.endpoints.lock().expect("no test has panicked with it").clone();
        let (volume, network) =
            given.unwrap_or_else(|| (format!("/volume/v3/{project}"), "/network/v2.0".to_owned()));
        let entry = |kind: &str, path: &str| {
            json!({"type": kind, "endpoints": [{"interface": "public", "region": "one",
                "url": format!("http://127.0.0.1:{port}{path}")}]})
        };
        let life = self.life.load(Ordering::Relaxed);
        json!({"token": {
            "project": {"id": project},
            "issued_at": "2001-01-01T00:00:00.000000Z",
            "expires_at": format!("2001-01-01T{:02}:{:02}:{:02}.000000Z", life / 3600, life / 60 % 60, life % 60),
            "catalog": [
                entry("volumev3", &volume), entry("compute", "/compute/v2.1"), entry("network", &network),
                entry("image", "/image/v2"),
            ],
        }})
    }
}
