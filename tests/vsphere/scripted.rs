//! The client against the scripted server: sessions that end, and servers that are slow, broken or bad.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use virt_v2v_wrapper::source::vsphere::Which;
use virt_v2v_wrapper::source::vsphere::client::{Client, Patience};
use virt_v2v_wrapper::source::vsphere::inventory::{self, InventoryError};

use super::lab::{NAME, PATIENCE, address, login, login_within, site, usual};
use super::server::{MACHINE, PASSWORD, Reply, SERVICE, http, names};

/// Both algorithms, any spelling: the session begins, and VDDK gets the SHA-1 form whatever was given.
/// peers.md 6.3, row 28: refused with both values, `no_verify` or not, and nothing was said to the stranger.
/// Without a fingerprint the site's authorities decide: signature and host name.
/// The server's own words, who it was, what to check; not the password.
/// The first call has no version, for none is known; the others have the server's own.
#[tokio::test]
async fn the_servers_own_version_is_spoken() {
    let Some(site) = site() else { return };
    let server = site.serve(usual);
    site.login(&server).await.close().await;
    let actions: Vec<_> =
        server.requests().into_iter().map(|request| (request.method, request.action)).collect();
    let version = Some("urn:vim25/8.0.2.0".to_owned());
    assert_eq!(
        actions,
        [
            ("RetrieveServiceContent".to_owned(), None),
            ("Login".to_owned(), version.clone()),
            ("Logout".to_owned(), version)
        ]
    );
}

/// All pages are walked, and what the machine refers to by id gets its name.
#[tokio::test]
async fn a_machine_on_the_second_page_is_found() {
    let Some(site) = site() else { return };
    let server = site.serve(usual);
    let client = site.login(&server).await;
    // As stored, and as people see it.
    for name in [NAME, "web / db"] {
        let machine = inventory::by_name(&client, name).await.unwrap();
        assert_eq!((machine.moref.as_str(), machine.guest.name.as_str()), ("vm-1042", name));
        assert_eq!(machine.guest.nics[0].network.as_deref(), Some("prod/10"));
        let path = machine.backings[0].absolute_path.as_deref();
        assert_eq!(path, Some("/vmfs/volumes/a//web & db/web-000001.vmdk"));
    }
    client.close().await;
    assert_eq!((server.count("CreateContainerView"), server.count("DestroyView")), (2, 2));
}

#[tokio::test]
async fn names_that_are_not_there_or_there_twice_are_refused() {
    let Some(site) = site() else { return };
    let server = site.serve(usual);
    let client = site.login(&server).await;
    let error = inventory::by_name(&client, "twin").await.unwrap_err().to_string();
    let expected = "VM name \"twin\" is not unique: vm-1 in /DC/a/b, vm-2 in /DC/app; say which one is meant with \
                    vmware_moref or vmware_inventory_path";
    assert_eq!(error, expected);
    // Exactly: case and space count.
    for name in ["Twin", "twin ", "web", ""] {
        let error = inventory::by_name(&client, name).await.unwrap_err().to_string();
        let beginning =
            format!("No VM with name \"{name}\" among the 3 that DOM\\me may see at https://127.0.0.1:");
        assert!(error.starts_with(&beginning), "{error}");
    }
    let error = inventory::by_reference(&client, "vm-7").await;
    // This server tells of the one machine only, whatever it is asked.
    assert!(matches!(error, Err(InventoryError::NoReference { .. })), "{error:?}");
    assert_eq!(inventory::by_reference(&client, "vm-1042").await.unwrap().guest.name, "web / db");
    client.close().await;
}

/// By id and by path: what is not there, and what is no machine, is a sentence.
#[tokio::test]
async fn a_path_that_leads_to_no_machine_is_a_sentence() {
    let Some(site) = site() else { return };
    let server = site.serve(|request| match request.method.as_str() {
        "FindByInventoryPath" if request.body.contains("<inventoryPath>DC/vm/web %2f db</inventoryPath>") => {
            Reply::Inside("<returnval type=\"VirtualMachine\">vm-1042</returnval>".to_owned())
        }
        "FindByInventoryPath" if request.body.contains("<inventoryPath>DC/vm</inventoryPath>") => {
            Reply::Inside("<returnval type=\"Folder\">group-v3</returnval>".to_owned())
        }
        "FindByInventoryPath" => Reply::Inside(String::new()),
        _ => Reply::Usual,
    });
    let vsphere = site.vsphere(&server).await;
    // In capitals as people may write it.
    for path in ["/DC/vm/web %2f db", "/DC/vm/web %2F db"] {
        let machine = vsphere.find(Which::Path(path)).await.unwrap();
        assert_eq!((machine.moref.as_str(), machine.guest.name.as_str()), ("vm-1042", "web / db"));
    }
    let error = vsphere.find(Which::Path("/DC/vm")).await.unwrap_err().to_string();
    assert!(error.ends_with("/sdk is no VM but a Folder (group-v3)"), "{error}");
    let error = vsphere.find(Which::Path("/DC/vm/wbe")).await.unwrap_err().to_string();
    assert!(error.starts_with("No VM at /DC/vm/wbe that DOM\\me may see at https://"), "{error}");
    let error = vsphere.find(Which::Moref("vm-7")).await.unwrap_err().to_string();
    assert!(error.starts_with("No VM with id vm-7 at https://"), "{error}");
    assert_eq!(vsphere.find(Which::Name("web / db")).await.unwrap().moref, "vm-1042");
    assert_eq!(vsphere.machine_of("vm-1042").await.unwrap().guest.name, "web / db");
    vsphere.close().await;
    // A server without such an index.
    let server = site.serve(|request| match request.method.as_str() {
        "RetrieveServiceContent" => Reply::Inside(SERVICE.replace("searchIndex", "other")),
        _ => usual(request),
    });
    let vsphere = site.vsphere(&server).await;
    let error = vsphere.find(Which::Path("/DC/vm/x")).await.unwrap_err().to_string();
    assert!(error.ends_with("without a search index"), "{error}");
    vsphere.close().await;
}

/// peers.md 6.3, row 19: whichever call meets the end of the session, the answer is the same, after one login.
#[tokio::test]
async fn a_session_that_ends_at_any_call_is_begun_again() {
    let Some(site) = site() else { return };
    let server = site.serve(usual);
    let client = site.login(&server).await;
    let expected = inventory::by_name(&client, NAME).await.unwrap();
    client.close().await;
    let calls = server.count("Login") + 1..server.methods().len() - 1;
    assert!(calls.len() >= 6, "{:?}", server.methods());
    for number in calls {
        let server =
            site.serve(move |request| if request.number == number { Reply::Expired } else { Reply::Usual });
        let client = site.login(&server).await;
        let machine = inventory::by_name(&client, NAME).await;
        let machine = machine.unwrap_or_else(|error| panic!("{number}: {error}; {:?}", server.methods()));
        assert_eq!(machine, expected, "{number}");
        assert_eq!(server.count("Login"), 2, "{number}: {:?}", server.methods());
        client.close().await;
    }
}

/// A server that forgets every session at once is not asked for ever.
#[tokio::test]
async fn sessions_that_never_last_are_an_error() {
    let Some(site) = site() else { return };
    let server = site.serve(|request| match request.method.as_str() {
        "RetrieveServiceContent" | "Login" => Reply::Usual,
        _ => Reply::Expired,
    });
    let client = site.login(&server).await;
    let error = inventory::by_name(&client, NAME).await.unwrap_err().to_string();
    assert!(error.contains("The session is not authenticated (NotAuthenticated)"), "{error}");
    assert!(server.count("Login") <= 4, "{:?}", server.methods());
}

/// Calls that see the same session end make one new session, not one each.
#[tokio::test]
async fn calls_at_the_same_time_log_in_once() {
    let Some(site) = site() else { return };
    let expired = Mutex::new(false);
    let server = site.serve(move |request| {
        let mut expired = expired.lock().unwrap();
        if request.number == 2 && !*expired {
            *expired = true;
            return Reply::Expired;
        }
        Reply::Usual
    });
    let client = site.login(&server).await;
    let (first, second, third) = tokio::join!(client.keep_alive(), client.keep_alive(), client.keep_alive());
    first.and(second).and(third).unwrap();
    assert_eq!(server.count("Login"), 2, "{:?}", server.methods());
    client.close().await;
    assert_eq!(server.count("Logout"), 1);
}

/// A keepalive that finds no session begins one, also where the server says so only by leaving it out.
#[tokio::test]
async fn a_keepalive_begins_a_lost_session_again() {
    let Some(site) = site() else { return };
    let server = site.serve(|request| match request.number {
        2 => Reply::Inside("<returnval><objects><obj type=\"SessionManager\">SessionManager</obj></objects></returnval>".into()),
        // As govmomi's simulator says it.
        4 => Reply::Inside(
            "<returnval><objects><obj type=\"SessionManager\">SessionManager</obj><missingSet><path>currentSession</path>\
             <fault><fault xsi:type=\"NotAuthenticated\"/></fault></missingSet></objects></returnval>"
                .into(),
        ),
        _ => Reply::Usual,
    });
    let client = site.login(&server).await;
    client.keep_alive().await.unwrap();
    assert_eq!(server.count("Login"), 2);
    client.keep_alive().await.unwrap();
    assert_eq!(server.count("Login"), 3, "{:?}", server.methods());
    client.keep_alive().await.unwrap();
    assert_eq!(server.count("Login"), 3);
    client.close().await;
}

/// What else sets the cookie is a session that nobody has logged in to.
#[tokio::test]
async fn only_a_login_gives_a_session() {
    let Some(site) = site() else { return };
    let server = site.serve(|request| match request.number {
        2 => Reply::Raw(http(
            "500 Internal Server Error",
            "Set-Cookie: vmware_soap_session=\"nobody\"; Path=/\r\n",
            "<s:Envelope xmlns:s='e'><s:Body><s:Fault><faultstring>Too busy.</faultstring></s:Fault></s:Body></s:Envelope>",
        )),
        _ => Reply::Usual,
    });
    let client = site.login(&server).await;
    let error = client.keep_alive().await.unwrap_err().to_string();
    assert!(error.ends_with("refuses RetrievePropertiesEx: Too busy."), "{error}");
    client.keep_alive().await.unwrap();
    client.close().await;
    assert_eq!((server.count("Login"), server.count("Logout")), (1, 1));
    assert!(server.requests().iter().all(|request| request.session.as_deref() != Some("nobody")));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_a_sentence_with_the_time() {
    let Some(site) = site() else { return };
    let server = site.serve(|request| match request.method.as_str() {
        "CreateContainerView" => Reply::Silence(Duration::from_secs(4)),
        _ => Reply::Usual,
    });
    let patience = Patience { answer: Duration::from_secs(2), ..PATIENCE };
    let client = login_within(patience, &server, site.pin()).await.unwrap();
    let began = Instant::now();
    let error = inventory::by_name(&client, NAME).await.unwrap_err().to_string();
    assert!(error.contains("did not answer CreateContainerView within 2 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

/// Whatever comes instead of an answer: a sentence with the URL and the method.
#[tokio::test]
async fn what_is_no_answer_is_a_sentence() {
    let Some(site) = site() else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error =
        Client::login(&address(port), PASSWORD.into(), site.pin(), PATIENCE).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("cannot reach https://127.0.0.1:{port}/sdk: Connection refused")),
        "{error}"
    );

    type Make = fn() -> Reply;
    let half = || Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n<s:Envelope".to_vec());
    let cases: [(Make, &str); 9] = [
        (|| Reply::Raw(http("503 Service Unavailable", "", "no healthy upstream")), "HTTP status 503"),
        (|| Reply::Raw(http("404 Not Found", "", "")), "HTTP status 404"),
        // A redirection is not followed: the password would go there.
        (|| Reply::Raw(http("302 Found", "Location: https://127.0.0.1:1/\r\n", "")), "HTTP status 302"),
        (|| Reply::Raw(http("200 OK", "", "<html>Log in to the hotel</html>")), "no SOAP answer"),
        (|| Reply::Raw(http("500 Internal Server Error", "", "oops \u{1}")), "not XML"),
        (|| Reply::Raw(b"SSH-2.0-OpenSSH_9\r\n\r\n".to_vec()), "cannot reach"),
        (half, "cannot reach"),
        (|| Reply::Inside(String::new()), "without a result"),
        (|| Reply::Endless(64 << 20), "more than 16 MiB"),
    ];
    for (reply, part) in cases {
        let server = site.serve(move |_| reply());
        let error = login(&server, site.pin()).await.unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("https://127.0.0.1:"), "{part}: {error}");
        assert!(error.len() < 600, "{error}");
    }
}

/// Memory is bounded, however many machines a server claims to have.
#[tokio::test]
async fn pages_that_never_end_are_an_error() {
    let Some(site) = site() else { return };
    let page: Vec<(&str, &str)> = vec![("vm-1", "x"); 20_000];
    let page = names(&page, "<token>again</token>");
    let server = site.serve(move |request| {
        let listing =
            request.body.contains("<obj type=\"ContainerView\">") || request.body.contains("<token>");
        if listing { Reply::Inside(page.clone()) } else { Reply::Usual }
    });
    let client = site.login(&server).await;
    let error = inventory::by_name(&client, NAME).await.unwrap_err().to_string();
    assert!(error.contains("without an end"), "{error}");
    assert!(server.count("ContinueRetrievePropertiesEx") < 20);
    client.close().await;
}

/// A machine that is gone between two calls, and a result that is none.
#[tokio::test]
async fn answers_that_do_not_fit_are_sentences() {
    let Some(site) = site() else { return };
    let server = site.serve(|request| match request.method.as_str() {
        "RetrievePropertiesEx" if request.body.contains("config.hardware") => {
            Reply::Fault("ManagedObjectNotFound", "The object has already been deleted")
        }
        "CreateContainerView" if request.number < 3 => Reply::Inside("<returnval/>".into()),
        _ => Reply::Usual,
    });
    let client = site.login(&server).await;
    let error = inventory::by_name(&client, NAME).await.unwrap_err().to_string();
    assert!(error.contains("answered CreateContainerView without a view"), "{error}");
    let error = inventory::by_name(&client, NAME).await.unwrap_err().to_string();
    assert!(error.starts_with("No VM with id vm-1042 at https://"), "{error}");
    client.close().await;
}

/// Everything that any library says, at the most talkative level, goes through here.
/// Neither password nor session in any log, at any level, in any form; and the session cookie is the only state kept.
/// Names of hostile length and content are data.
#[tokio::test]
async fn a_machine_called_anything_is_found() {
    let Some(site) = site() else { return };
    let long = "n".repeat(20_000);
    for name in ["a \"b\" 'c' & <d>", "машина 🖥", "-rf", "%", "..", " ", &long] {
        let written = name.replace('&', "&amp;").replace('<', "&lt;");
        let server = site.serve(move |request| {
            let listing = request.body.contains("<obj type=\"ContainerView\">");
            if listing { Reply::Inside(names(&[("vm-1042", &written)], "")) } else { Reply::Usual }
        });
        let client = site.login(&server).await;
        assert_eq!(inventory::by_name(&client, name).await.unwrap().guest.name, name);
        client.close().await;
    }
    assert!(MACHINE.contains("vm-1042"));
}
