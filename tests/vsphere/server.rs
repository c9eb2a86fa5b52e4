//! A vCenter that does what the test says: HTTPS with SOAP, one thread, no library but rustls.
//!
//! Without a script it has one session at a time, three machines in pages of two, and answers as a real one would.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::certificates::Certificate;

pub const PASSWORD: &str = "Zx81-!pass <w>ord'\"&-7431";
pub const MACHINE: &str = include_str!("../../fixtures/vsphere/vcenter-8-machine.xml");

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Name of the method.
    pub method: String,
    /// The header `SOAPAction`.
    pub action: Option<String>,
    /// Value of the session cookie.
    pub session: Option<String>,
    /// The envelope.
    pub body: String,
    /// Which one of this server, from 0.
    pub number: usize,
}

/// What a script answers.
pub enum Reply {
    /// As a vCenter would.
    Usual,
    /// The inside of the response element.
    Inside(String),
    /// A fault of this kind with these words.
    Fault(&'static str, &'static str),
    /// The same, about the argument `invalidProperty`.
    Argument(&'static str, &'static str, &'static str),
    /// The session is over, for this request and for later ones.
    Expired,
    /// HTTP, as it is.
    Raw(Vec<u8>),
    /// Nothing, for this long; then the connection ends.
    Silence(Duration),
    /// A response of this many bytes.
    Endless(usize),
}

type Script = Box<dyn FnMut(&Request) -> Reply + Send>;

/// A running server.
pub struct Server {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(certificate: &Certificate, script: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let (certificate, key) = certificate.pem();
        let chain = CertificateDer::pem_slice_iter(&certificate).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut vcenter = Vcenter {
            script: Box::new(script),
            requests: requests.clone(),
            session: None,
            logins: 0,
            views: 0,
        };
        let stop = over.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that hangs up in the middle is part of the tests.
                vcenter.serve(Arc::new(tls.clone()), stream.unwrap()).ok();
            }
        });
        Self { port, requests, over, thread: Some(thread) }
    }

    /// Names of the methods that were called.
    pub fn methods(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.method).collect()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn count(&self, method: &str) -> usize {
        self.methods().iter().filter(|called| *called == method).count()
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

struct Vcenter {
    script: Script,
    requests: Arc<Mutex<Vec<Request>>>,
    session: Option<String>,
    logins: usize,
    views: usize,
}

impl Vcenter {
    /// One request; then the connection ends, as behind some proxies.
    fn serve(&mut self, tls: Arc<ServerConfig>, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // A test that has gone on without reading must not wait for this thread.
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        let request = self.read(&mut stream)?;
        self.requests.lock().unwrap().push(request.clone());
        let reply = match (self.script)(&request) {
            Reply::Usual => self.usual(&request),
            reply => reply,
        };
        let response =
            |inside: &str| format!("<{0}Response xmlns=\"urn:vim25\">{inside}</{0}Response>", request.method);
        match reply {
            Reply::Usual => unreachable!("it was replaced"),
            Reply::Inside(inside) if request.method == "Login" => {
                let session = self.session.clone().unwrap_or_default();
                let cookie =
                    format!("Set-Cookie: vmware_soap_session=\"{session}\"; Path=/; HttpOnly; Secure\r\n");
                stream.write_all(&http("200 OK", &cookie, &envelope(&response(&inside))))?;
            }
            Reply::Inside(inside) => stream.write_all(&http("200 OK", "", &envelope(&response(&inside))))?,
            Reply::Fault(kind, words) => stream.write_all(&fault(kind, words, ""))?,
            Reply::Argument(kind, words, argument) => {
                let inside = format!("<invalidProperty>{argument}</invalidProperty>");
                stream.write_all(&fault(kind, words, &inside))?;
            }
            Reply::Expired => {
                self.session = None;
                stream.write_all(&fault("NotAuthenticated", "The session is not authenticated.", ""))?;
            }
            Reply::Raw(bytes) => stream.write_all(&bytes)?,
            Reply::Silence(time) => std::thread::sleep(time),
            Reply::Endless(bytes) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n<s:Envelope xmlns:s='e'><s:Body><r>")?;
                for _ in 0..bytes / 65_536 {
                    stream.write_all(&[b'x'; 65_536])?;
                }
            }
        }
        stream.conn.send_close_notify();
        stream.flush()
    }

    fn read(&self, stream: &mut impl Read) -> std::io::Result<Request> {
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
            let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
            if bytes.len() >= end + 4 + length {
                bytes.drain(..end + 4);
                break (head, length);
            }
        };
        let body = String::from_utf8(bytes[..length].to_vec()).unwrap();
        assert!(head.starts_with("POST /sdk HTTP/1.1"), "{head}");
        let method = body.split("Body><").nth(1).and_then(|rest| rest.split([' ', '>']).next()).unwrap();
        let session =
            header(&head, "cookie").map(|cookie| cookie.replace("vmware_soap_session=", "").replace('"', ""));
        Ok(Request {
            method: method.to_owned(),
            action: header(&head, "soapaction"),
            session,
            number: self.requests.lock().unwrap().len(),
            body,
        })
    }

    fn usual(&mut self, request: &Request) -> Reply {
        let known = self.session.is_some() && request.session == self.session;
        let inside = match request.method.as_str() {
            "RetrieveServiceContent" => SERVICE.to_owned(),
            "Login"
                if request
                    .body
                    .contains("<password>Zx81-!pass &lt;w&gt;ord&apos;&quot;&amp;-7431</password>") =>
            {
                self.logins += 1;
                self.session = Some(format!("session-{}", self.logins));
                self.views = 0;
                "<returnval><key>k</key></returnval>".to_owned()
            }
            "Login" => {
                return Reply::Fault(
                    "InvalidLogin",
                    "Cannot complete login due to an incorrect user name or password.",
                );
            }
            _ if !known => return Reply::Fault("NotAuthenticated", "The session is not authenticated."),
            "Logout" => {
                self.session = None;
                String::new()
            }
            "CreateContainerView" => {
                self.views += 1;
                format!(
                    "<returnval type=\"ContainerView\">view-{}</returnval>",
                    request.session.as_deref().unwrap()
                )
            }
            "DestroyView" if self.views == 0 => return gone(),
            "DestroyView" => {
                self.views -= 1;
                String::new()
            }
            "ContinueRetrievePropertiesEx" if self.views == 0 => {
                return Reply::Fault("InvalidArgument", "A specified parameter was not correct: token");
            }
            "ContinueRetrievePropertiesEx" => names(&[("vm-1042", "web %2f db")], ""),
            "RetrievePropertiesEx" if request.body.contains("<obj type=\"ContainerView\">") => {
                // A view that another session made is gone.
                if self.views == 0 {
                    return gone();
                }
                names(&[("vm-1", "twin"), ("vm-2", "twin")], "<token>1</token>")
            }
            "RetrievePropertiesEx" => objects(&request.body),
            other => panic!("{other} is not scripted"),
        };
        Reply::Inside(inside)
    }
}

fn gone() -> Reply {
    Reply::Fault(
        "ManagedObjectNotFound",
        "The object has already been deleted or has not been completely created",
    )
}

pub const SERVICE: &str = "<returnval><rootFolder type=\"Folder\">group-d1</rootFolder>\
    <propertyCollector type=\"PropertyCollector\">propertyCollector</propertyCollector>\
    <searchIndex type=\"SearchIndex\">SearchIndex</searchIndex><viewManager type=\"ViewManager\">ViewManager</viewManager><about><name>VMware vCenter Server</name>\
    <fullName>VMware vCenter Server 8.0.2 build-22385739</fullName><apiType>VirtualCenter</apiType>\
    <apiVersion>8.0.2.0</apiVersion></about><sessionManager type=\"SessionManager\">SessionManager</sessionManager></returnval>";

/// A page of names.
pub fn names(machines: &[(&str, &str)], token: &str) -> String {
    let objects: String = machines
        .iter()
        .map(|(id, name)| {
            format!("<objects><obj type=\"VirtualMachine\">{id}</obj><propSet><name>name</name><val>{name}</val></propSet></objects>")
        })
        .collect();
    format!("<returnval>{token}{objects}</returnval>")
}

/// Objects by id. Folders: two data centers with a folder each.
fn objects(body: &str) -> String {
    if body.contains("<pathSet>config.hardware</pathSet>") {
        let inside = MACHINE.split("<RetrievePropertiesExResponse xmlns=\"urn:vim25\">").nth(1).unwrap();
        return inside.split("</RetrievePropertiesExResponse>").next().unwrap().to_owned();
    }
    let all = [
        (
            "SessionManager",
            "SessionManager",
            "<propSet><name>currentSession</name><val><key>k</key></val></propSet>",
        ),
        (
            "Datastore",
            "datastore-15",
            "<propSet><name>summary.url</name><val>ds:///vmfs/volumes/a/</val></propSet>",
        ),
        (
            "DistributedVirtualPortgroup",
            "dvportgroup-31",
            "<propSet><name>name</name><val>prod%2f10</val></propSet><propSet><name>key</name><val>dvportgroup-31</val></propSet>",
        ),
        (
            "VirtualMachine",
            "vm-1",
            "<propSet><name>parent</name><val type=\"Folder\">group-v3</val></propSet>",
        ),
        (
            "VirtualMachine",
            "vm-2",
            "<propSet><name>parentVApp</name><val type=\"VirtualApp\">resgroup-v9</val></propSet>",
        ),
        (
            "Folder",
            "group-v3",
            "<propSet><name>name</name><val>a%2fb</val></propSet><propSet><name>parent</name><val type=\"Datacenter\">dc-1</val></propSet>",
        ),
        (
            "VirtualApp",
            "resgroup-v9",
            "<propSet><name>name</name><val>app</val></propSet><propSet><name>parent</name><val type=\"Datacenter\">dc-1</val></propSet>",
        ),
        (
            "Datacenter",
            "dc-1",
            "<propSet><name>name</name><val>DC</val></propSet><propSet><name>parent</name><val type=\"Folder\">group-d1</val></propSet>",
        ),
        ("Folder", "group-d1", "<propSet><name>name</name><val>Datacenters</val></propSet>"),
    ];
    let asked = all.iter().filter(|(kind, id, _)| body.contains(&format!("<obj type=\"{kind}\">{id}</obj>")));
    let objects: String = asked
        .map(|(kind, id, sets)| format!("<objects><obj type=\"{kind}\">{id}</obj>{sets}</objects>"))
        .collect();
    format!("<returnval>{objects}</returnval>")
}

fn envelope(content: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\n<soapenv:Body>\n{content}\n</soapenv:Body>\n</soapenv:Envelope>"
    )
}

fn fault(kind: &str, words: &str, inside: &str) -> Vec<u8> {
    let content = format!(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{words}</faultstring><detail>\
         <{kind}Fault xmlns=\"urn:vim25\" xsi:type=\"{kind}\">{inside}</{kind}Fault></detail></soapenv:Fault>"
    );
    // As a vCenter does: a session that nobody has logged in to.
    let cookie = if kind == "NotAuthenticated" {
        "Set-Cookie: vmware_soap_session=\"nobody\"; Path=/\r\n"
    } else {
        ""
    };
    http("500 Internal Server Error", cookie, &envelope(&content))
}

/// A whole HTTP response.
pub fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
