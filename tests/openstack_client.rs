//! The client of OpenStack against a server that answers what each test says: logins, projects, renewals, pages,
//! microversions, names.

use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use virt_v2v_wrapper::http::Patience;
use virt_v2v_wrapper::openstack::resolve::{Resolved, Resource};
use virt_v2v_wrapper::openstack::servers::NewServer;
use virt_v2v_wrapper::openstack::version::Microversion;
use virt_v2v_wrapper::openstack::{Access, Cloud, CloudError, Service};

mod server;

use server::{Answer, Asked, Server};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn login(server: &Server, project: Option<&str>, more: &[(&str, &str)]) -> Result<Cloud, CloudError> {
    let base = [("auth-url", server.url()), ("username", "u".into()), ("password", "geheim".into())];
    let mut environment: Vec<_> =
        base.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    environment.extend(more.iter().map(|&(key, value)| (key.to_owned(), value.into())));
    let patience = Patience { again: std::time::Duration::from_secs(3), ..Patience::default() };
    runtime().block_on(Cloud::login(&environment, project, &Access { patience, ..Access::default() }))
}

fn cloud(server: &Server) -> Cloud {
    login(server, None, &[("project-id", "p")]).expect("logged in")
}

/// A token is renewed when it is not taken any more, whatever was asked for, and before it ends.
#[test]
fn a_token_is_renewed_when_it_must_be() {
    // The first token is taken once.
    let server = Server::start(|asked| {
        let is_late = asked.token.as_deref() == Some("token-1") && asked.number > 2;
        is_late.then(|| Answer::json(401, json!({"error": {"message": "expired"}})))
    });
    let cloud = cloud(&server);
    for _ in 0..3 {
        runtime().block_on(cloud.post(Service::Volume, "/volumes/v/action", &json!({}))).unwrap();
    }
    assert_eq!(server.tokens("/volumes/v/action"), ["token-1", "token-1", "token-2", "token-2"]);
    assert_eq!(server.logins(), 2);

    // A token of no time at all is renewed before each use; the server's clock is years behind.
    let server = Server::start(|_| None);
    server.token_ends_after(1);
    let short = self::cloud(&server);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    runtime().block_on(short.get(Service::Compute, "/servers")).unwrap();
    assert_eq!(server.tokens("/servers"), ["token-2"]);
}

/// A cloud that takes no token at all is given up, with its words.
#[test]
fn a_token_that_is_never_taken_is_told() {
    let server = Server::start(|asked| {
        (asked.path.ends_with("/servers"))
            .then(|| Answer::json(401, json!({"error": {"message": "no entry"}})))
    });
    let said = runtime().block_on(cloud(&server).get(Service::Compute, "/servers")).unwrap_err().to_string();
    assert!(said.contains("401") && said.contains("no entry"), "{said}");
    assert!(server.logins() < 10);
}

/// Each project has a login of its own, and volumes are asked for there.
#[test]
fn another_project_is_another_scope() {
    let server = Server::start(|_| None);
    let there = login(&server, Some("other"), &[("project-name", "n")]).unwrap();
    assert_eq!(there.project(), "other");
    let scope = server.body("/auth/tokens")["auth"]["scope"].clone();
    assert_eq!(scope, json!({"project": {"id": "other"}}));
    runtime().block_on(there.volumes()).unwrap();
    assert_eq!(server.asked().last().unwrap().path, "/volume/v3/other/volumes/detail");
}

/// An application credential is good for its project only, and that is said before anything else is asked.
#[test]
fn an_application_credential_stays_in_its_project() {
    let credential = [("application-credential-id", "i"), ("application-credential-secret", "geheimnis")];
    let server = Server::start(|_| None);
    assert_eq!(login(&server, Some("own"), &credential).unwrap().project(), "own");
    let said = login(&server, Some("other"), &credential).unwrap_err().to_string();
    assert!(
        said.contains("application credential") && said.contains("own") && said.contains("other"),
        "{said}"
    );
}

/// What a login lacks, in sentences without the password.
#[test]
fn a_login_that_fails_says_where_and_why() {
    let refusing = Server::start(|asked| {
        (asked.path == "/v3/auth/tokens")
            .then(|| Answer::json(401, json!({"error": {"message": "wrong user"}})))
    });
    let tokenless =
        Server::start(|asked| (asked.path == "/v3/auth/tokens").then(|| Answer::json(200, json!({}))));
    let bare = Server::start(|_| None);
    let no_region = |server: &Server| {
        let cloud = login(server, None, &[("region-name", "elsewhere")]).unwrap();
        runtime().block_on(cloud.volumes()).map(|_| cloud)
    };
    for (said, words) in [
        (login(&refusing, None, &[]), ["cannot log in to OpenStack at", "wrong user"]),
        (login(&tokenless, None, &[]), ["without a token", "os-auth-url"]),
        (
            no_region(&bare),
            ["no public endpoint of the service volumev3 in region elsewhere", "compute (public"],
        ),
    ] {
        let said = virt_v2v_wrapper::log::chain(&said.unwrap_err());
        assert!(words.iter().all(|word| said.contains(word)) && !said.contains("geheim"), "{said}");
    }
}

/// All pages count, in either form of link, and one that leads nowhere new ends the listing.
#[test]
fn a_listing_is_all_of_its_pages() {
    let server = Server::start(|asked| {
        let page = |names: &[&str], next: Option<&str>| {
            let servers: Vec<Value> = names.iter().map(|name| json!({"id": name, "name": name})).collect();
            let links =
                next.map(|query| json!([{"rel": "next", "href": format!("http://inside:1/x?{query}")}]));
            Answer::json(200, json!({"servers": servers, "servers_links": links.unwrap_or(json!([]))}))
        };
        match asked.path.as_str() {
            "/compute/v2.1/servers" => Some(page(&["a", "b"], Some("marker=b&limit=2"))),
            "/compute/v2.1/servers?marker=b&limit=2" => Some(page(&["c"], Some("marker=c"))),
            "/compute/v2.1/servers?marker=c" => Some(page(&[], Some("marker=c"))),
            _ => None,
        }
    });
    let servers = runtime().block_on(cloud(&server).servers()).unwrap();
    assert_eq!(servers.iter().map(|server| server.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(server.asked().iter().filter(|asked| asked.path.contains("/servers")).count(), 3);
}

/// A microversion is asked for where it is spoken, and nowhere else.
#[test]
fn a_microversion_is_used_where_it_is_spoken() {
    for (highest, networks, header) in [
        (Some("2.93"), Some(json!("none")), Some("compute 2.37")),
        (Some("2.36"), None, None),
        (None, None, None),
    ] {
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/compute/v2.1/" => Some(match highest {
                Some(version) => Answer::json(200, json!({"version": {"id": "v2.1", "version": version}})),
                None => Answer::json(404, Value::Null),
            }),
            "/compute/v2.1/servers" => Some(Answer::json(202, json!({"server": {"id": "s"}}))),
            _ => None,
        });
        let new = NewServer { volumes: vec!["v".into()], ..NewServer::default() };
        let made = runtime().block_on(cloud(&server).create_server(&new, "mark", false));
        assert_eq!(made.unwrap(), "s");
        let asked = server.asked().pop().unwrap();
        assert_eq!(asked.body["server"].get("networks").cloned(), networks);
        assert_eq!(asked.microversion.as_deref(), header);
    }
    let server = Server::start(|asked| {
        let document = json!({"versions": [{"id": "v3.0", "version": "3.70"}]});
        (asked.path == "/volume/v3/").then(|| Answer::json(200, document))
    });
    let cloud = cloud(&server);
    let asks = |minor| runtime().block_on(cloud.microversion(Service::Volume, Microversion::new(3, minor)));
    assert!(asks(70).is_some() && asks(71).is_none());
    assert_eq!(server.count("/volume/v3/"), 1, "it is asked once");
}

/// Endpoints without a version are asked for one; those that say nothing are used as the services' own clients do.
#[test]
fn an_endpoint_without_a_version_is_asked() {
    for (says, volume, network) in [
        (true, "/bare/v3/p/volumes/detail", "/bare/v2.0/ports"),
        (false, "/bare/volumes/detail", "/bare/v2.0/ports"),
    ] {
        let server = Server::start(move |asked| {
            let document = json!({"versions": [{"id": "v3.0"}, {"id": "v2.0"}]});
            (asked.path == "/bare/").then(|| match says {
                true => Answer::json(300, document),
                false => Answer::json(404, Value::Null),
            })
        });
        server.endpoints("/bare", "/bare");
        let cloud = cloud(&server);
        runtime().block_on(cloud.volumes()).unwrap();
        assert_eq!(server.asked().last().unwrap().path, volume);
        runtime().block_on(cloud.list(Service::Network, "/ports", "ports")).unwrap();
        assert_eq!(server.asked().last().unwrap().path, network);
    }
}

/// A name or an id; what a cloud does not say is used as it is, and only a listing without it says that there is none.
#[test]
fn a_name_or_an_id_names_a_thing() {
    let listing = |asked: &Asked, path: &str, answer: Value| {
        (asked.path.starts_with(path) && !asked.path.contains("/networks/"))
            .then(|| Answer::json(200, answer))
    };
    let networks = json!({"networks": [{"id": "1", "name": "Netz A&B/ü"}, {"id": "2", "name": "twin"}, {"id": "3", "name": "twin"}]});
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/network/v2.0/networks/1" => Some(Answer::json(200, json!({"network": {"id": "1"}}))),
        path if path.contains("/networks/") => Some(Answer::json(404, Value::Null)),
        _ => listing(asked, "/network/v2.0/networks?name=", networks.clone()),
    });
    let resolve = |given: &str| {
        let cloud = cloud(&server);
        runtime().block_on(cloud.resolve(Resource::Network, given))
    };
    assert_eq!(resolve("1").unwrap().id(), "1");
    assert_eq!(resolve("Netz A&B/ü").unwrap().id(), "1");
    assert_eq!(server.asked().last().unwrap().path, "/network/v2.0/networks?name=Netz%20A%26B%2F%C3%BC");
    assert!(matches!(resolve("twin"), Err(CloudError::Ambiguous { count: 2, .. })));
    assert!(matches!(resolve("none"), Err(CloudError::Unknown { .. })));

    let dumb =
        Server::start(|asked| asked.path.contains("/networks").then(|| Answer::json(501, Value::Null)));
    let unclear = runtime().block_on(cloud(&dumb).resolve(Resource::Network, "any")).unwrap();
    assert!(matches!(&unclear, Resolved::Unclear { id, .. } if id == "any"), "{unclear:?}");
}

/// A server that failed by itself is asked again where that is safe, and what may be there is looked for first.
#[test]
fn what_a_server_failed_at_is_repeated_safely() {
    let server = Server::start(|asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", "/compute/v2.1/servers") if asked.number < 4 => Some(Answer::json(500, Value::Null)),
        ("POST", "/compute/v2.1/servers") => Some(Answer::json(500, Value::Null)),
        ("GET", "/compute/v2.1/servers/detail") => {
            let metadata = json!({"virt_v2v_wrapper": "mark"});
            Some(Answer::json(200, json!({"servers": [{"id": "other"}, {"id": "s", "metadata": metadata}]})))
        }
        _ => None,
    });
    let cloud = cloud(&server);
    runtime().block_on(cloud.servers()).unwrap();
    let new = NewServer { ports: vec!["p".into()], ..NewServer::default() };
    let made = runtime().block_on(cloud.create_server(&new, "mark", false)).unwrap();
    assert_eq!(made, "s");
    let posts = server
        .asked()
        .iter()
        .filter(|asked| asked.method == "POST" && asked.path.ends_with("/servers"))
        .count();
    assert_eq!(posts, 1, "it was there already");
}
