//! A session in one project of an OpenStack: tokens, endpoints, pages, microversions. An edge.
//!
//! A token is renewed before it ends, and when a server does not take it: a copy may last longer than a token.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::Instant;

use super::CloudError;
use super::catalogue::{Catalogue, Service, array, text};
use super::credentials::Credentials;
use super::version::{self, Microversion};
use crate::http::{Answer, Client, Patience, Request};
use crate::tls::Trust;

/// A token is renewed when it has so much left, or a tenth of its life.
const BEFORE_ITS_END: Duration = Duration::from_secs(120);
/// Most pages of one listing; a page is a thousand entries where nobody changed that.
const MOST_PAGES: usize = 2000;

/// How often a request that failed inside the server is repeated, and after how long.
const AGAIN: u32 = 2;
const BRIEFLY: Duration = Duration::from_millis(500);

static TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
static SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");
static MICROVERSION: HeaderName = HeaderName::from_static("openstack-api-version");

/// How a cloud is reached.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Certificates are not verified.
    pub insecure: bool,
    /// Authorities, where `os-cacert` names none.
    pub ca_bundle: Option<PathBuf>,
    /// How long it may take.
    pub patience: Patience,
}

/// A session in one project.
#[derive(Debug)]
pub struct Cloud {
    http: Client,
    credentials: Credentials,
    token: Mutex<Arc<Token>>,
    bases: Mutex<BTreeMap<Service, Arc<Base>>>,
}

#[derive(Debug)]
struct Token {
    id: SecretString,
    project: String,
    catalogue: Catalogue,
    renew_at: Option<Instant>,
}

/// Where a service is.
#[derive(Debug)]
struct Base {
    url: String,
    /// The highest it speaks; `None`: it did not say.
    microversion: tokio::sync::OnceCell<Option<Microversion>>,
}

impl Cloud {
    /// Logs in. `environment` has the keys of [`crate::plan::Destination::Openstack`]; `project` is the id of another
    /// project than theirs.
    pub async fn login(
        environment: &[(String, SecretString)],
        project: Option<&str>,
        access: &Access,
    ) -> Result<Self, CloudError> {
        let mut credentials = Credentials::read(environment)?;
        if let Some(id) = project {
            credentials = credentials.in_project(id);
        }
        let insecure = access.insecure || credentials.insecure;
        let bundle = credentials.cacert.as_deref().or(access.ca_bundle.as_deref());
        let trust = Trust::new(None, insecure, bundle).map_err(crate::http::HttpError::from)?;
        let http = Client::new(trust, access.patience)?;
        let token = authenticate(&http, &credentials).await?;
        if let Some(wanted) = project.filter(|wanted| credentials.is_bound() && token.project != *wanted) {
            return Err(CloudError::OtherProject { own: token.project, wanted: wanted.to_owned() });
        }
        let (token, bases) = (Mutex::new(Arc::new(token)), Mutex::default());
        Ok(Self { http, credentials, token, bases })
    }

    /// Id of the project; empty if the server did not say.
    pub fn project(&self) -> String {
        self.current().project.clone()
    }

    /// A new token if the old one is about to end.
    pub async fn refresh(&self) -> Result<(), CloudError> {
        self.token().await.map(|_| ())
    }

    /// `GET`; the JSON answered.
    pub async fn get(&self, service: Service, path: &str) -> Result<Value, CloudError> {
        self.json(Method::GET, service, None, path, None).await
    }

    /// `POST`; the JSON answered, `Null` for none.
    pub async fn post(&self, service: Service, path: &str, body: &Value) -> Result<Value, CloudError> {
        self.json(Method::POST, service, None, path, Some(body)).await
    }

    /// `PUT`.
    pub async fn put(&self, service: Service, path: &str, body: &Value) -> Result<Value, CloudError> {
        self.json(Method::PUT, service, None, path, Some(body)).await
    }

    /// `PATCH`.
    pub async fn patch(&self, service: Service, path: &str, body: &Value) -> Result<Value, CloudError> {
        self.json(Method::PATCH, service, None, path, Some(body)).await
    }

    /// `DELETE`; whether there was something to delete. One that nobody answered is repeated.
    pub async fn delete(&self, service: Service, path: &str) -> Result<bool, CloudError> {
        let mut tries = 0;
        loop {
            match self.json(Method::DELETE, service, None, path, None).await {
                Ok(_) => return Ok(true),
                Err(error) if error.is_not_found() => return Ok(tries > 0),
                Err(error) if error.is_ambiguous() && tries < AGAIN => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Any request, in a microversion.
    pub async fn json(
        &self,
        method: Method,
        service: Service,
        microversion: Option<Microversion>,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CloudError> {
        Ok(self.answer(method, service, microversion, path, body).await?.json()?)
    }

    /// The same with its headers. `path` begins with `/`.
    pub async fn answer(
        &self,
        method: Method,
        service: Service,
        microversion: Option<Microversion>,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, CloudError> {
        let url = format!("{}{path}", self.base(service).await?.url);
        let mut request = Request::new(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let (Some(name), Some(microversion)) = (service.microversion_name(), microversion)
            && let Ok(value) = HeaderValue::try_from(format!("{name} {microversion}"))
        {
            request = request.header(MICROVERSION.clone(), value);
        }
        Ok(self.send(request).await?.success()?)
    }

    /// All entries of a listing, whatever pages it comes in. `path` begins with `/`; `key` is that of the entries.
    pub async fn list(&self, service: Service, path: &str, key: &str) -> Result<Vec<Value>, CloudError> {
        let (plain, _) = path.split_once('?').unwrap_or((path, ""));
        let mut entries = Vec::new();
        let mut next = Some(path.to_owned());
        let mut asked = Vec::new();
        while let Some(path) = next.take() {
            let page = self.get(service, &path).await?;
            let Some(found) = page.get(key).and_then(Value::as_array) else {
                let url = &self.base(service).await?.url;
                return Err(CloudError::Shape { asked: format!("GET {url}{path}"), what: key.to_owned() });
            };
            entries.extend(found.iter().cloned());
            asked.push(path);
            // The link's host may be one that only the server knows.
            next = query_of_next(&page, key).map(|query| format!("{plain}?{query}"));
            if next.as_ref().is_some_and(|next| asked.contains(next)) || asked.len() >= MOST_PAGES {
                tracing::warn!("the listing {plain} does not end: what it has shown so far counts");
                break;
            }
        }
        Ok(entries)
    }

    /// This microversion if the service speaks it.
    pub async fn microversion(&self, service: Service, wanted: Microversion) -> Option<Microversion> {
        let base = self.base(service).await.ok()?;
        let highest = base.microversion.get_or_init(|| self.highest(service, &base.url)).await;
        highest.filter(|highest| *highest >= wanted).map(|_| wanted)
    }

    async fn highest(&self, service: Service, url: &str) -> Option<Microversion> {
        let root = version::root(url)?;
        let document = self.send(Request::get(format!("{root}/"))).await.ok()?.success().ok()?.json().ok()?;
        version::highest(&document, version::of(root).unwrap_or(service.version()))
    }

    /// The endpoint, with the version that is spoken. One without a version is asked which it has; those that do not answer
    /// are used as the services' own clients use them.
    async fn base(&self, service: Service) -> Result<Arc<Base>, CloudError> {
        if let Some(base) = lock(&self.bases).get(&service) {
            return Ok(base.clone());
        }
        let token = self.token().await?;
        let Credentials { interface, region, auth_url, .. } = &self.credentials;
        let given = token.catalogue.url(service, interface, region.as_deref());
        let url = given.ok_or_else(|| CloudError::NoService {
            url: auth_url.clone(),
            service: service.types()[0],
            interface: interface.clone(),
            region: region.as_ref().map(|region| format!(" in region {region}")).unwrap_or_default(),
            known: token.catalogue.known(),
        })?;
        let url = match version::of(url) {
            Some(_) => url.to_owned(),
            None => self.with_version(service, url, &token.project).await?,
        };
        let base = Arc::new(Base { url, microversion: tokio::sync::OnceCell::new() });
        lock(&self.bases).insert(service, base.clone());
        Ok(base)
    }

    async fn with_version(&self, service: Service, url: &str, project: &str) -> Result<String, CloudError> {
        let document = self.send(Request::get(format!("{url}/"))).await?.json().unwrap_or(Value::Null);
        let version = service.version();
        Ok(match (version::lists(&document, version), service) {
            (true, Service::Volume) => format!("{url}/{version}/{project}"),
            (true, _) | (false, Service::Network | Service::Image) => format!("{url}/{version}"),
            (false, Service::Volume | Service::Compute) => url.to_owned(),
        })
    }

    /// With a token, or a new one if it is not taken. What may be repeated is, when the server says that it failed
    /// by itself: databases are busy for a moment.
    async fn send(&self, request: Request) -> Result<Answer, CloudError> {
        let mut tries = 0;
        loop {
            let answer = self.send_once(&request).await?;
            if answer.status.as_u16() != 500 || !request.method.is_idempotent() || tries == AGAIN {
                return Ok(answer);
            }
            tries += 1;
            tracing::debug!("{} {}: trying again", request.method, request.url);
            tokio::time::sleep(BRIEFLY * tries).await;
        }
    }

    async fn send_once(&self, request: &Request) -> Result<Answer, CloudError> {
        let mut token = self.token().await?;
        let mut renewed = 0;
        loop {
            let with_token = request.clone().secret_header(TOKEN.clone(), token.id.expose_secret());
            let answer = self.http.send(with_token).await?;
            if answer.status.as_u16() != 401 || renewed > AGAIN {
                return Ok(answer);
            }
            tracing::debug!("the token is not taken any more: logging in again");
            // A new one may not be known to all of the cloud's servers yet.
            tokio::time::sleep(BRIEFLY * renewed).await;
            renewed += 1;
            token = self.renew(&token).await?;
        }
    }

    fn current(&self) -> Arc<Token> {
        lock(&self.token).clone()
    }

    async fn token(&self) -> Result<Arc<Token>, CloudError> {
        let token = self.current();
        match token.renew_at {
            Some(at) if at <= Instant::now() => self.renew(&token).await,
            _ => Ok(token),
        }
    }

    /// A new token, unless somebody else has got one meanwhile.
    async fn renew(&self, old: &Arc<Token>) -> Result<Arc<Token>, CloudError> {
        let current = self.current();
        if !Arc::ptr_eq(&current, old) {
            return Ok(current);
        }
        let token = Arc::new(authenticate(&self.http, &self.credentials).await?);
        *lock(&self.token) = token.clone();
        Ok(token)
    }
}

/// Nothing panics while it holds one of these; what is in them is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn authenticate(http: &Client, credentials: &Credentials) -> Result<Token, CloudError> {
    let url = format!("{}/auth/tokens", credentials.auth_url);
    let refused = |source| CloudError::Login { url: url.clone(), source };
    let request = Request::new(Method::POST, &url).json(&credentials.body());
    let mut tries = 0;
    let answer = loop {
        match http.send(request.clone()).await.and_then(Answer::success) {
            // A token too many does no harm.
            Err(error) if error.is_ambiguous() && tries < AGAIN => {
                tries += 1;
                tokio::time::sleep(BRIEFLY * tries).await;
            }
            answered => break answered.map_err(refused)?,
        }
    };
    let id = answer.headers.get(&SUBJECT_TOKEN).and_then(|value| value.to_str().ok());
    let Some(id) = id.filter(|id| !id.is_empty()).map(SecretString::from) else {
        return Err(CloudError::NoToken { url });
    };
    let body = answer.json().map_err(refused)?;
    let token = body.get("token").unwrap_or(&Value::Null);
    let project = token.get("project").and_then(|project| text(project, "id"));
    let project = project.or_else(|| credentials.project_id()).unwrap_or_default();
    let renew_at =
        life(token).map(|life| Instant::now() + life.saturating_sub(BEFORE_ITS_END.min(life / 10)));
    Ok(Token { id, project, catalogue: Catalogue::read(token), renew_at })
}

/// How long a token is good for, by the server's own clock, which need not be ours.
fn life(token: &Value) -> Option<Duration> {
    let time = |key| text(token, key)?.parse::<jiff::Timestamp>().ok();
    let from = time("issued_at").unwrap_or_else(jiff::Timestamp::now);
    Duration::try_from(time("expires_at")?.duration_since(from)).ok().filter(|life| !life.is_zero())
}

/// The query of the link to the next page, in any of the forms in use.
fn query_of_next(page: &Value, key: &str) -> Option<String> {
    let links = array(page, &format!("{key}_links"));
    let of_links = links.iter().find(|link| text(link, "rel").as_deref() == Some("next"));
    let href = of_links
        .and_then(|link| text(link, "href"))
        // Glance, Keystone.
        .or_else(|| text(page, "next"))
        .or_else(|| text(page.get("links")?, "next"))?;
    href.split_once('?').map(|(_, query)| query.split('#').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_next_page_is_found_in_every_form() {
        let next = "http://inside:8774/v2.1/servers?limit=2&marker=b";
        for (page, expected) in [
            (json!({ "servers_links": [{ "rel": "next", "href": next }] }), Some("limit=2&marker=b")),
            (json!({ "servers_links": [{ "rel": "previous", "href": next }] }), None),
            (json!({ "next": "/v2/images?marker=x" }), Some("marker=x")),
            (json!({ "links": { "next": null, "self": "x?y" } }), None),
            (json!({ "links": { "next": "http://k/v3/projects?page=2#z" } }), Some("page=2")),
            (json!([]), None),
        ] {
            assert_eq!(query_of_next(&page, "servers").as_deref(), expected, "{page}");
        }
    }

    #[test]
    fn a_tokens_life_is_told_by_the_servers_clock() {
        let hour = Some(Duration::from_secs(3600));
        let old = json!({ "issued_at": "2001-01-01T00:00:00.000000Z", "expires_at": "2001-01-01T01:00:00.000000Z" });
        assert_eq!(life(&old), hour);
        for nothing in
            [json!({}), json!({ "expires_at": "soon" }), json!({ "expires_at": "2001-01-01T00:00:00Z" })]
        {
            assert_eq!(life(&nothing), None, "{nothing}");
        }
    }
}
