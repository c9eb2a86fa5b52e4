//! Who is believed and who believes us: certificates, logins, and that no credential is in a log.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::json;
use virt_v2v_wrapper::site::Site as Configuration;
use virt_v2v_wrapper::source::vsphere::Vsphere;
use virt_v2v_wrapper::source::vsphere::client::Client;
use virt_v2v_wrapper::source::vsphere::error::ClientError;
use virt_v2v_wrapper::source::vsphere::inventory;
use virt_v2v_wrapper::tls::Trust;

use super::certificates::{self_signed, self_signed_for, signed_by};
use super::lab::{NAME, PATIENCE, address, login, site, usual};
use super::server::{PASSWORD, Reply, Server};

#[tokio::test]
async fn a_pinned_certificate_is_believed_in_every_form() {
    let Some(site) = site() else { return };
    let server = site.serve(usual);
    let sha1 = site.certificate.fingerprint("sha1");
    let sha256 = site.certificate.fingerprint("sha256");
    for given in
        [sha1.clone(), sha256.to_lowercase(), sha256.replace(':', ""), sha1.replace(':', "").to_lowercase()]
    {
        let trust = Trust::new(Some(&given), false, None).unwrap();
        let client = login(&server, trust).await.unwrap_or_else(|error| panic!("{given}: {error}"));
        assert_eq!(client.thumbprint(), sha1);
        client.close().await;
    }
    assert_eq!(server.count("Login"), 4);
    assert_eq!(server.count("Logout"), 4);
}

#[tokio::test]
async fn another_certificate_is_refused_with_both_fingerprints() {
    let Some(site) = site() else { return };
    let server = site.serve(usual);
    let other = self_signed(site.directory.path(), "other");
    for algorithm in ["sha1", "sha256"] {
        let pinned = other.fingerprint(algorithm);
        let trust = Trust::new(Some(&pinned.to_lowercase()), true, None).unwrap();
        let error = login(&server, trust).await.unwrap_err();
        assert!(matches!(error, ClientError::Certificate { .. }), "{error:?}");
        let sentence = error.to_string();
        assert!(sentence.contains(&pinned), "{sentence}");
        assert!(sentence.contains(&site.certificate.fingerprint(algorithm)), "{sentence}");
    }
    assert_eq!(server.methods(), Vec::<String>::new());
}

#[tokio::test]
async fn authorities_decide_where_nothing_is_pinned() {
    let Some(site) = site() else { return };
    let directory = site.directory.path();
    let authority = self_signed(directory, "authority");
    let signed = signed_by(directory, &authority, "signed", "127.0.0.1");
    let elsewhere = signed_by(directory, &authority, "elsewhere", "127.0.0.2");
    let bundle = |file: &PathBuf| Trust::new(None, false, Some(file)).unwrap();

    let server = Server::start(&signed, usual);
    let client = login(&server, bundle(&authority.file)).await.unwrap();
    assert_eq!(client.thumbprint(), signed.fingerprint("sha1"));
    client.close().await;

    let own = site.serve(usual);
    for (server, part) in
        [(&own, "invalid peer certificate"), (&Server::start(&elsewhere, usual), "127.0.0.1")]
    {
        let error = login(server, bundle(&authority.file)).await.unwrap_err();
        assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
        let sentence = error.to_string();
        assert!(sentence.contains(part) && sentence.contains("vmware_fingerprint"), "{sentence}");
        assert_eq!(server.methods(), Vec::<String>::new());
    }
    // no_verify=1 without a fingerprint.
    login(&own, Trust::new(None, true, None).unwrap()).await.unwrap().close().await;
}

/// Appliances come with a certificate that is authority and leaf in one; who puts it into the bundle means it, but only for
/// the host that it names.
#[tokio::test]
async fn a_certificate_of_the_bundle_itself_is_believed() {
    let Some(site) = site() else { return };
    let directory = site.directory.path();
    let (other, elsewhere) =
        (self_signed(directory, "other"), self_signed_for(directory, "away", "127.0.0.2"));
    let bundle = directory.join("bundle.pem");
    let pems = [&other, &elsewhere, &site.certificate].map(|certificate| certificate.pem().0);
    std::fs::write(&bundle, pems.concat()).unwrap();
    let listed = || Trust::new(None, false, Some(&bundle)).unwrap();
    login(&site.serve(usual), listed()).await.unwrap().close().await;
    for (certificate, trust, part) in [
        (&elsewhere, listed(), "127.0.0.1"),
        (&other, Trust::new(None, false, Some(&site.certificate.file)).unwrap(), "invalid peer certificate"),
    ] {
        let server = Server::start(certificate, usual);
        let error = login(&server, trust).await.unwrap_err().to_string();
        assert!(error.contains("is not trusted") && error.contains(part), "{error}");
        assert_eq!(server.methods(), Vec::<String>::new());
    }
}

/// A document without a fingerprint: the site's bundle decides, and VDDK gets the SHA-1 of what was seen.
#[tokio::test]
async fn a_job_without_a_fingerprint_believes_the_sites_authorities() {
    let Some(site) = site() else { return };
    let directory = site.directory.path();
    let authority = self_signed(directory, "authority");
    let signed = signed_by(directory, &authority, "signed", "127.0.0.1");
    let believing = |server: &Server| {
        let keys = json!({"vmware_fingerprint": null, "two_phase": true});
        let configuration = Configuration { ca_bundle: Some(authority.file.clone()), ..Default::default() };
        site.plan(server, &keys, &configuration)
    };
    let server = Server::start(&signed, usual);
    let vsphere = Vsphere::connect(&believing(&server)).await.unwrap();
    assert_eq!(vsphere.client().thumbprint(), signed.fingerprint("sha1"));
    vsphere.close().await;
    let stranger = site.serve(usual);
    let error = Vsphere::connect(&believing(&stranger)).await.unwrap_err().to_string();
    assert!(error.contains("is not trusted") && error.contains(authority.file.to_str().unwrap()), "{error}");
    assert_eq!(stranger.methods(), Vec::<String>::new());
}

#[tokio::test]
async fn a_refused_login_is_a_sentence() {
    let Some(site) = site() else { return };
    let server = site.serve(usual);
    let wrong = "not-the-password-5512";
    let error = Client::login(&address(server.port), wrong.into(), site.pin(), PATIENCE)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Cannot complete login due to an incorrect user name or password (InvalidLogin)"),
        "{error}"
    );
    assert!(error.contains("DOM\\me") && error.contains("vmware_password"), "{error}");
    assert!(!error.contains(wrong), "{error}");
    // A second try could lock the account.
    assert_eq!(server.count("Login"), 1);
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn credentials_are_in_no_log() {
    let Some(site) = site() else { return };
    let heard = Heard::default();
    let writer = heard.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let server = site.serve(|request| if request.number == 3 { Reply::Expired } else { Reply::Usual });
    let client = site.login(&server).await;
    inventory::by_name(&client, NAME).await.unwrap();
    tracing::debug!("{client:?}");
    client.close().await;
    drop(guard);
    let heard = String::from_utf8_lossy(&heard.0.lock().unwrap()).into_owned();
    assert!(heard.contains("logging in again"), "nothing was heard: {heard}");
    for secret in [PASSWORD, "Zx81", "7431", "session-1", "session-2"] {
        assert!(!heard.contains(secret), "{secret} in {heard}");
    }
    assert!(server.requests().iter().any(|request| request.session.as_deref() == Some("session-2")));
}
