//! An engine: login, requests, and how long it is waited for. An edge.
//!
//! An SSO token is asked for first, as the API's own clients do; an engine without that service gets the password with each
//! request. A token that has expired is renewed once for a request: the server had not looked at it. What is asked for is the
//! business of everything beside it.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::OvirtError;
use super::answer::text;
use super::terms::{Address, Terms};
use crate::http::{Answer, Client, HttpError, Patience, Request, encoded};
use crate::plan::{Plan, Tools};
use crate::tls::Trust;

/// Longest wait for what the engine does by itself (contract.md 6.2, 6.6).
pub const LONG: Duration = Duration::from_secs(600);
/// How long one answer is waited for: an engine does what takes longer by itself, and is asked how far it is.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a request that changes nothing is repeated: an engine that restarts is away for minutes.
const AGAIN: Duration = Duration::from_secs(180);
/// The same for a login: who mistyped the engine's name should read so soon.
const AT_THE_DOOR: Duration = Duration::from_secs(60);
/// How long a request is repeated that meets a conflict of which the engine says nothing: most often something is locked.
const BARE: Duration = Duration::from_secs(30);
/// How often it is asked meanwhile.
const EVERY: Duration = Duration::from_secs(1);
/// A goodbye that is not heard is no loss.
const GOODBYE: Duration = Duration::from_secs(5);
/// The answers of an engine without the SSO service, whatever words come with them.
const NO_SERVICE: [StatusCode; 3] =
    [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
/// How often a login is tried whose answer was lost, or that the engine failed to do.
const LOGINS: u32 = 3;
/// How often any other request is, that the engine failed to do.
const TRIES: u32 = 3;

/// By what the engine knows us.
#[derive(Debug, Clone)]
enum Pass {
    Token(SecretString),
    /// It has no SSO service.
    Password,
}

/// An engine that knows us.
#[derive(Debug)]
pub struct Engine {
    /// For logins.
    door: Client,
    http: Client,
    at: Address,
    password: SecretString,
    pass: Mutex<Pass>,
    tools: Tools,
}

impl Engine {
    /// Logs in.
    pub async fn connect(plan: &Plan, terms: &Terms<'_>) -> Result<Self, OvirtError> {
        let trust = match plan.insecure_connection {
            true => Trust::Anybody,
            false => Trust::Authorities(terms.cafile.to_owned()),
        };
        let tools = plan.tools.clone();
        let at = Address::of(terms.url)?;
        let client = |trust, again| {
            let (answer, again) = (tools.patience(ANSWER), tools.patience(again));
            Client::new(trust, Patience { answer, again, ..Patience::default() })
                .map_err(|source| OvirtError::request("Login failed", source))
        };
        let (door, http) = (client(trust.clone(), AT_THE_DOOR)?, client(trust, AGAIN)?);
        let pass = Mutex::new(Pass::Password);
        let engine = Self { door, http, at, password: terms.password.clone(), pass, tools };
        *engine.pass.lock().await = engine.login().await?;
        Ok(engine)
    }

    /// Where it is, for texts.
    pub fn url(&self) -> &str {
        &self.at.api
    }

    async fn login(&self) -> Result<Pass, OvirtError> {
        let url = format!("{}/sso/oauth/token", self.at.base);
        let fields = [
            ("grant_type", "password"),
            ("scope", "ovirt-app-api"),
            ("username", self.at.user.as_str()),
            ("password", self.password.expose_secret()),
        ];
        let pairs = fields.map(|(key, value)| Zeroizing::new(format!("{key}={}", encoded(value))));
        let form = Zeroizing::new(pairs.iter().map(|pair| pair.as_str()).collect::<Vec<_>>().join("&"));
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            let request = Request::new(Method::POST, &url)
                .body("application/x-www-form-urlencoded", form.as_bytes().to_vec());
            match self.door.send(request).await {
                // Nothing is made by asking twice.
                Err(error) if error.is_ambiguous() && tries < LOGINS => continue,
                Ok(answer) if failed(&answer) && tries < LOGINS => self.wait(AGAIN).pause().await,
                other => break other.map_err(|source| OvirtError::request("Login failed", source))?,
            }
        };
        let said = match answer.json().unwrap_or(Value::Null) {
            // Some versions put it into a list, which the API's own clients take, too.
            Value::Array(mut list) if list.len() == 1 => list.remove(0),
            said => said,
        };
        let is_there = !NO_SERVICE.contains(&answer.status) && !wants_password(&answer);
        match text(&said, "access_token") {
            Some(token) => return Ok(Pass::Token(SecretString::from(token.to_owned()))),
            // The service's own refusal; any other one may be that of an engine without the service.
            None if is_there && said.get("error").or(said.get("error_code")).is_some() => {
                let words = text(&said, "error_description").or_else(|| text(&said, "error"));
                let said = crate::json::one_line(words.unwrap_or("it says no more"), 300);
                return Err(OvirtError::Login { user: self.at.user.clone(), url: self.at.api.clone(), said });
            }
            None => {}
        }
        match answer.status {
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                let refused = answer.success().err();
                Err(refused.map_or(OvirtError::NoToken { url }, |source| {
                    OvirtError::request("Login failed", source)
                }))
            }
            status => {
                tracing::info!("{url} answered {status} and no token: the password goes with each request");
                Ok(Pass::Password)
            }
        }
    }

    /// Asks, with a body or without; gives what a success says.
    pub async fn ask(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, OvirtError> {
        let mut renewed = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let pass = self.pass.lock().await.clone();
            let mut request = Request::new(method.clone(), format!("{}/{path}", self.at.api))
                .header(HeaderName::from_static("version"), HeaderValue::from_static("4"))
                .secret_header(AUTHORIZATION, &self.authorization(&pass));
            if let Some(body) = body {
                request = request.json(body);
            }
            let answered = self.http.send(request).await;
            let answer = answered.map_err(|source| OvirtError::request(what, source))?;
            if answer.status == StatusCode::UNAUTHORIZED && !renewed && matches!(pass, Pass::Token(_)) {
                tracing::info!("the engine's token has expired: logging in again");
                renewed = true;
                *self.pass.lock().await = self.login().await?;
                continue;
            }
            // What is done twice is done once; others look first whether it was ([`super::create`]).
            if method.is_idempotent() && failed(&answer) && tries < TRIES {
                tracing::info!("{what}: the engine answered {}: asking again", answer.status);
                self.wait(AGAIN).pause().await;
                continue;
            }
            if answer.status == StatusCode::UNAUTHORIZED {
                let said = match answer.success() {
                    Err(HttpError::Refused { said, .. }) => said,
                    _ => String::new(),
                };
                return Err(OvirtError::Login { user: self.at.user.clone(), url: self.at.api.clone(), said });
            }
            let json = answer.success().and_then(|answer| match answer.json() {
                // The change is made, whatever words come with it.
                Err(error) if method != Method::GET => {
                    tracing::debug!("{error}");
                    Ok(Value::Null)
                }
                json => json,
            });
            return json.map_err(|source| OvirtError::request(what, source));
        }
    }

    fn authorization(&self, pass: &Pass) -> Zeroizing<String> {
        Zeroizing::new(match pass {
            Pass::Token(token) => format!("Bearer {}", token.expose_secret()),
            Pass::Password => {
                let both = Zeroizing::new(format!("{}:{}", self.at.user, self.password.expose_secret()));
                format!("Basic {}", BASE64_STANDARD.encode(both.as_bytes()))
            }
        })
    }

    /// `GET`.
    pub async fn get(&self, what: &str, path: &str) -> Result<Value, OvirtError> {
        self.ask(what, Method::GET, path, None).await
    }

    /// The same; `None` where it is not there.
    pub async fn find(&self, what: &str, path: &str) -> Result<Option<Value>, OvirtError> {
        match self.get(what, path).await {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(Some),
        }
    }

    /// The same; `None` also where the engine has no such thing to ask for, does not understand the question, does not let us
    /// ask, or answers with something else than JSON: for what a job can do without.
    pub async fn optional(&self, what: &str, path: &str) -> Result<Option<Value>, OvirtError> {
        match self.get(what, path).await {
            Err(error) if error.is_untold() => {
                tracing::info!("{}", crate::log::chain(&error));
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// Asks again while something is locked, which the engine says with 409 and these words.
    pub async fn patiently(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
        wait: &Wait,
    ) -> Result<Value, OvirtError> {
        let bare = self.wait(BARE);
        loop {
            match self.ask(what, method.clone(), path, body).await {
                Err(error) if error.is_busy() && wait.goes_on() => wait.pause().await,
                Err(error) if error.is_bare_conflict() && bare.goes_on() => bare.pause().await,
                answer => return answer,
            }
        }
    }

    /// A wait that begins now.
    pub fn wait(&self, limit: Duration) -> Wait {
        Wait::new(&self.tools, limit)
    }

    /// Gives the token back.
    pub async fn goodbye(self) {
        let Pass::Token(token) = self.pass.lock().await.clone() else { return };
        let form = format!("scope=ovirt-app-api&token={}", encoded(token.expose_secret()));
        let request = Request::new(Method::POST, format!("{}/services/sso-logout", self.at.base))
            .body("application/x-www-form-urlencoded", form.into_bytes());
        if !matches!(tokio::time::timeout(GOODBYE, self.http.send(request)).await, Ok(Ok(_))) {
            tracing::debug!("the engine did not take its token back");
        }
    }
}

/// How long something is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    until: Instant,
    every: Duration,
}

impl Wait {
    fn new(tools: &Tools, limit: Duration) -> Self {
        let every = tools.patience(EVERY).clamp(Duration::from_millis(20), EVERY);
        Self { until: Instant::now() + tools.patience(limit), every }
    }

    /// Is there time for another look?
    pub fn goes_on(&self) -> bool {
        Instant::now() + self.every < self.until
    }

    /// Until the next look.
    pub async fn pause(&self) {
        tokio::time::sleep(self.every).await;
    }

    /// Asks until there is an answer; `None` when the time is over.
    pub async fn until<T>(
        &self,
        mut ask: impl AsyncFnMut() -> Result<Option<T>, OvirtError>,
    ) -> Result<Option<T>, OvirtError> {
        loop {
            if let Some(found) = ask().await? {
                return Ok(Some(found));
            }
            if !self.goes_on() {
                return Ok(None);
            }
            self.pause().await;
        }
    }
}

/// Did the engine itself fail? One that is away, behind a proxy, was waited for already.
fn failed(answer: &Answer) -> bool {
    answer.status == StatusCode::INTERNAL_SERVER_ERROR
}

/// Is this the refusal of a server that wants the password with each request?
fn wants_password(answer: &Answer) -> bool {
    let scheme =
        answer.headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    answer.status == StatusCode::UNAUTHORIZED && scheme.to_ascii_lowercase().starts_with("basic")
}
