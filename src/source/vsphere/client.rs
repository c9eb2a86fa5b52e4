//! The edge to vSphere's SDK: SOAP over HTTPS, one session, and faults as sentences.
//!
//! Every call goes through [`Client::call`]: it logs in again, once, when the session has expired (peers.md 6.3, row 19),
//! bounds the answer, and gives up after a time. Not here: what is asked (`properties`, `inventory`). Nothing is started
//! before the first call, and nothing stays afterwards but a connection; the session must be ended by [`Client::close`],
//! since a destructor cannot wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use secrecy::{ExposeSecret, SecretString};

use super::address::Address;
use super::error::ClientError;
use super::properties::{self, Object, Of};
use super::soap::{self, Answer, Call, Element, Reference};
use crate::http::reason;
use crate::json::one_line;
use crate::tls::{self, Seen, Trust};

/// Most bytes of one answer. A machine with 60 disks and many snapshots is half a megabyte.
pub(super) const MOST_ANSWER: usize = 16 << 20;
/// Most objects and pages of one retrieval: a server that never ends is not believed. A vCenter has 45,000 machines at
/// most.
const MOST_OBJECTS: usize = 200_000;
const MOST_PAGES: usize = 2_000;
/// How rustls begins what is wrong with a certificate.
const BAD_CERTIFICATE: &str = "invalid peer certificate";
const LOGIN: &str = "Login";
const SESSION_COOKIE: &str = "vmware_soap_session=";

/// How long a server may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until it is connected, TLS included.
    pub connect: Duration,
    /// Until an answer is complete. A vCenter that starts up, or has ten thousand machines, takes its time.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), answer: Duration::from_secs(120) }
    }
}

/// What the service is and where its managers are.
#[derive(Debug, Clone)]
pub struct Service {
    /// E.g. `VMware vCenter Server 8.0.2 build-22385739`.
    pub name: String,
    /// Version of the API, e.g. `8.0.2.0`.
    pub version: String,
    /// Root of the inventory.
    pub root: Reference,
    /// PropertyCollector.
    pub collector: Reference,
    /// SessionManager.
    pub sessions: Reference,
    /// ViewManager.
    pub views: Reference,
    /// SearchIndex; a server need not have one.
    pub search: Option<Reference>,
}

#[derive(Default)]
struct Session {
    cookie: Option<SecretString>,
    /// How many logins there were.
    logins: u64,
}

/// A session with a vCenter or an ESXi host.
pub struct Client {
    http: reqwest::Client,
    url: String,
    user: String,
    password: SecretString,
    trust: Trust,
    seen: Arc<Seen>,
    patience: Patience,
    service: Service,
    session: Mutex<Session>,
    /// Held during a login: many calls may see the same session expire.
    logging_in: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("url", &self.url).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects, asks what is there, and logs in.
    pub async fn login(
        address: &Address,
        password: SecretString,
        trust: Trust,
        patience: Patience,
    ) -> Result<Self, ClientError> {
        let url = address.sdk();
        let seen = Arc::new(Seen::default());
        let set_up = |error: reqwest::Error| ClientError::SetUp { url: url.clone(), reason: reason(error) };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config(&trust, seen.clone())?)
            // Neither the environment's proxies nor another server may see the password.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // Shown in the list of sessions.
            .user_agent(concat!("virt-v2v-wrapper/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            .connect_timeout(patience.connect)
            .timeout(patience.answer)
            .tcp_keepalive(Duration::from_secs(60))
            .pool_max_idle_per_host(1)
            .build()
            .map_err(set_up)?;
        let nowhere = Reference::new("", "");
        let service = Service {
            name: String::new(),
            version: String::new(),
            root: nowhere.clone(),
            collector: nowhere.clone(),
            sessions: nowhere.clone(),
            views: nowhere,
            search: None,
        };
        let mut client = Self {
            http,
            url,
            user: address.user.clone(),
            password,
            trust,
            seen,
            patience,
            service,
            session: Mutex::default(),
            logging_in: tokio::sync::Mutex::default(),
        };
        client.service = client.ask_for_service().await?;
        let Service { name, version, .. } = &client.service;
        tracing::info!("{} is {name}, API {version}", client.url);
        client.log_in(0).await?;
        Ok(client)
    }

    /// What is there.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// URL of the SDK.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// SHA-1 thumbprint of the server's certificate, as VDDK wants it.
    pub fn thumbprint(&self) -> String {
        self.seen.thumbprint().unwrap_or_default()
    }

    /// How many logins there were: what belongs to a session (views, pages) is gone when this has changed.
    pub fn logins(&self) -> u64 {
        self.session().logins
    }

    /// Calls a method; gives its response. Logs in again when the session is over.
    pub async fn call(&self, call: &Call) -> Result<Element, ClientError> {
        let logins = self.logins();
        match self.answer(call).await? {
            Answer::Fault(fault) if fault.is_not_authenticated() => {
                tracing::info!("the session with {} is over: logging in again", self.url);
                self.log_in(logins).await?;
            }
            answer => return self.response(call.method(), answer),
        }
        let answer = self.answer(call).await?;
        self.response(call.method(), answer)
    }

    /// The `returnval` of a method that has one.
    pub async fn value(&self, call: &Call) -> Result<Element, ClientError> {
        let response = self.call(call).await?;
        let value = response.children.into_iter().find(|child| child.name == "returnval");
        value.ok_or_else(|| self.incomplete(call.method(), "a result"))
    }

    /// Properties of objects, all pages. Fails as a whole when the session is over in the middle of it and it cannot go
    /// on; `Of::Objects` may simply be asked for again.
    pub async fn properties(
        &self,
        of: Of<'_>,
        wanted: &[(&str, &[&str])],
    ) -> Result<Vec<Object>, ClientError> {
        let mut objects = Vec::new();
        let mut call = properties::retrieve(&self.service.collector, of, wanted);
        for _ in 0..MOST_PAGES {
            let page = self.page(&call).await?;
            objects.extend(page.objects);
            match page.token {
                Some(_) if objects.len() > MOST_OBJECTS => break,
                Some(token) => call = properties::next(&self.service.collector, &token),
                None => return Ok(objects),
            }
        }
        Err(self.incomplete(call.method(), "an end"))
    }

    /// Some servers answer a request without session by objects whose every property is refused.
    async fn page(&self, call: &Call) -> Result<properties::Page, ClientError> {
        let logins = self.logins();
        let page = properties::page(&self.call(call).await?);
        let mut missing = page.objects.iter().flat_map(|object| &object.missing);
        if !missing.any(|(_, fault)| fault.is_not_authenticated()) {
            return Ok(page);
        }
        self.log_in(logins).await?;
        Ok(properties::page(&self.call(call).await?))
    }

    /// Keeps the session from expiring, or begins a new one: servers end it after 30 minutes without a call. To be called
    /// every few minutes while a copy runs.
    pub async fn keep_alive(&self) -> Result<(), ClientError> {
        // Unlike CurrentTime, this one shows that the session is known.
        let sessions = [self.service.sessions.clone()];
        let logins = self.logins();
        let objects =
            self.properties(Of::Objects(&sessions), &[("SessionManager", &["currentSession"])]).await?;
        match objects.iter().any(|object| object.get("currentSession").is_some()) {
            true => Ok(()),
            false => self.log_in(logins).await,
        }
    }

    /// Ends the session. A failure is only logged: there is nothing to do about it, the server forgets it by itself.
    pub async fn close(self) {
        let call = Call::new("Logout", &self.service.sessions);
        // Not by `call`, which would log in to be able to log out.
        match self.answer(&call).await {
            Ok(Answer::Response(_)) => tracing::debug!("logged out of {}", self.url),
            Ok(Answer::Fault(fault)) => tracing::debug!("{} did not log out: {fault}", self.url),
            Err(error) => tracing::warn!("the session with {} is left to expire: {error}", self.url),
        }
    }

    fn session(&self) -> std::sync::MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs in, unless somebody else did so since there were `logins`.
    async fn log_in(&self, logins: u64) -> Result<(), ClientError> {
        let _one_at_a_time = self.logging_in.lock().await;
        if self.logins() != logins {
            return Ok(());
        }
        // A cookie of the old session could be taken for a wish to keep it.
        self.session().cookie = None;
        let call = Call::new(LOGIN, &self.service.sessions)
            .text("userName", &self.user)
            .text("password", self.password.expose_secret());
        match self.answer(&call).await? {
            Answer::Fault(fault) => {
                let (url, user) = (self.url.clone(), self.user.clone());
                Err(ClientError::Login { url, user, fault })
            }
            Answer::Response(_) if self.session().cookie.is_none() => {
                Err(self.incomplete(LOGIN, "a session"))
            }
            Answer::Response(_) => {
                self.session().logins += 1;
                Ok(())
            }
        }
    }

    async fn ask_for_service(&self) -> Result<Service, ClientError> {
        let instance = Reference::new("ServiceInstance", "ServiceInstance");
        let call = Call::new("RetrieveServiceContent", &instance);
        let answer = self.answer(&call).await?;
        let response = self.response(call.method(), answer)?;
        let incomplete = |lacking| self.incomplete(call.method(), lacking);
        let content = response.child("returnval").ok_or_else(|| incomplete("a result"))?;
        let manager = |name, lacking| {
            content.child(name).and_then(Element::reference).ok_or_else(|| incomplete(lacking))
        };
        let about = |name| one_line(content.at(&["about", name]).map_or("", |element| &element.text), 100);
        let version = about("apiVersion");
        // It becomes a header.
        if version.is_empty() || !version.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return Err(incomplete("the version of its API"));
        }
        Ok(Service {
            name: about("fullName"),
            version,
            root: manager("rootFolder", "its root folder")?,
            collector: manager("propertyCollector", "its property collector")?,
            sessions: manager("sessionManager", "its session manager")?,
            views: manager("viewManager", "its view manager")?,
            search: content.child("searchIndex").and_then(Element::reference),
        })
    }

    fn response(&self, method: &'static str, answer: Answer) -> Result<Element, ClientError> {
        match answer {
            Answer::Response(element) => Ok(element),
            Answer::Fault(fault) => Err(ClientError::Fault { url: self.url.clone(), method, fault }),
        }
    }

    pub(super) fn incomplete(&self, method: &'static str, lacking: &'static str) -> ClientError {
        ClientError::Incomplete { url: self.url.clone(), method, lacking }
    }

    /// One request and its answer.
    async fn answer(&self, call: &Call) -> Result<Answer, ClientError> {
        let method = call.method();
        let failed = |error| self.failed(method, error);
        let mut response = self
            .http
            .post(&self.url)
            .headers(self.headers())
            .body(call.envelope().as_bytes().to_vec())
            .send()
            .await
            .map_err(failed)?;
        let (url, status) = (self.url.clone(), response.status());
        // Faults come with 500.
        if !status.is_success() && status != StatusCode::INTERNAL_SERVER_ERROR {
            return Err(ClientError::Status { url, method, status });
        }
        // Servers also give one with a refusal, of a session that nobody has logged in to; it must not replace that of a
        // login in between.
        if method == LOGIN {
            self.keep_cookie(response.headers());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MOST_ANSWER {
                return Err(ClientError::TooLong { url, method });
            }
            body.extend_from_slice(&chunk);
        }
        soap::parse(&body).map_err(|problem| ClientError::Garbage { url, method, problem })
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"));
        // Without it a server speaks its oldest version, which knows neither NVMe nor secure boot. Its own version is
        // one it knows for certain; the first call has none, as libvirt's have.
        let version = HeaderValue::try_from(format!("urn:vim25/{}", self.service.version));
        if let Some(version) = version.ok().filter(|_| !self.service.version.is_empty()) {
            headers.insert("SOAPAction", version);
        }
        let cookie =
            self.session().cookie.as_ref().map(|cookie| HeaderValue::try_from(cookie.expose_secret()));
        if let Some(Ok(mut cookie)) = cookie {
            cookie.set_sensitive(true);
            headers.insert(COOKIE, cookie);
        }
        headers
    }

    fn keep_cookie(&self, headers: &HeaderMap) {
        let texts = headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
        let cookies = texts.filter_map(|text| text.split(';').next()).map(str::trim);
        if let Some(cookie) = cookies.rev().find(|cookie| cookie.starts_with(SESSION_COOKIE)) {
            self.session().cookie = Some(cookie.into());
        }
    }

    fn failed(&self, method: &'static str, error: reqwest::Error) -> ClientError {
        let url = self.url.clone();
        if let (Trust::Pinned(pinned), Some(shown)) = (&self.trust, self.seen.refused()) {
            return ClientError::Certificate { url, shown, pinned: *pinned };
        }
        if error.is_timeout() {
            let patience = if error.is_connect() { self.patience.connect } else { self.patience.answer };
            return ClientError::Slow { url, method, patience };
        }
        let reason = reason(error);
        match &self.trust {
            Trust::Authorities(bundle) if reason.contains(BAD_CERTIFICATE) => {
                ClientError::Untrusted { url, bundle: bundle.clone(), reason }
            }
            _ => ClientError::Unreachable { url, reason },
        }
    }
}
