//! HTTPS in front of the fake: whose certificate is believed, and that nothing is said to a server that is not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use super::http;
use super::site::{Mode, Site};
use crate::vsphere::certificates::{Certificate, self_signed, signed_by};

/// Ends TLS for all services of a fake.
struct Front {
    port: u16,
    /// Of whoever signed its certificate.
    authority: Certificate,
    /// Requests that came through.
    requests: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Front {
    fn start(directory: &Path, behind: u16) -> Self {
        let authority = self_signed(directory, "authority");
        let (chain, key) = signed_by(directory, &authority, "cloud", "127.0.0.1").pem();
        let chain = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(&key).unwrap())
            .unwrap();
        let tls = Arc::new(tls);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (over, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stop, count) = (Arc::clone(&over), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (tls, count) = (Arc::clone(&tls), Arc::clone(&count));
                // Who does not believe the certificate hangs up.
                std::thread::spawn(move || pass(tls, stream, behind, &count).ok());
            }
        });
        Self { port, authority, requests, over }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

/// One request, and its answer.
fn pass(tls: Arc<ServerConfig>, stream: TcpStream, behind: u16, count: &AtomicUsize) -> std::io::Result<()> {
    let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut outside = StreamOwned::new(connection, stream);
    let request = http::request(&mut outside)?;
    count.fetch_add(1, Ordering::Relaxed);
    let body = if request.body.is_null() { Vec::new() } else { request.body.to_string().into_bytes() };
    let mut inside = TcpStream::connect(("127.0.0.1", behind))?;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    for (name, value) in request.headers.iter().filter(|(name, _)| name != "content-length") {
        head += &format!("{name}: {value}\r\n");
    }
    inside.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes())?;
    inside.write_all(&body)?;
    let mut answer = Vec::new();
    inside.read_to_end(&mut answer)?;
    outside.write_all(&answer)?;
    outside.conn.send_close_notify();
    outside.flush()
}

/// The authority is named by the site or by the document, or nobody asks for one.
#[test]
fn a_cloud_is_believed_by_its_authority_or_not_at_all() {
    for (trusted, more) in [
        (false, json!({})),
        (true, json!({})),
        (true, json!({"insecure_connection": true})),
        (true, json!({"os-cacert": "<authority>"})),
        (true, json!({"os-insecure": "true"})),
    ] {
        let Some(mut site) = Site::new(Mode::OnePhase) else { return };
        let front = Front::start(&site.sandbox.dir, site.fake.port);
        site.fake.world(|world| world.base = front.url());
        let mut document: serde_json::Value = serde_json::from_slice(&site.document(&json!({}))).unwrap();
        let mut environment = document["osp_environment"].take();
        environment["os-auth_url"] = json!(format!("{}/v3", front.url()));
        let mut own = json!({});
        for (key, value) in more.as_object().unwrap() {
            match key.starts_with("os-") {
                true if value == "<authority>" => environment[key] = json!(front.authority.file),
                true => environment[key] = value.clone(),
                false => own[key] = value.clone(),
            }
        }
        own["osp_environment"] = environment;
        if trusted && more == json!({}) {
            site.set(json!({"ca_bundle": front.authority.file}));
        }
        let last = site.run(&own);
        if trusted {
            site.arrived(&last).unwrap_or_else(|why| panic!("{more}: {why}"));
            continue;
        }
        let message = last["last_message"]["message"].as_str().unwrap_or_default();
        assert!(last["failed"] == true && message.contains("certificate"), "{last:#}");
        assert_eq!(front.requests.load(Ordering::Relaxed), 0, "the password went to a stranger: {last:#}");
    }
}
