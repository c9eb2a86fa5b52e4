//! What the suites with the scripted server stand on: a certificate of its own, and clients that trust it.

use std::time::Duration;

use serde_json::{Value, json};
use virt_v2v_wrapper::plan::{Plan, Surroundings, plan};
use virt_v2v_wrapper::site::Site as Configuration;
use virt_v2v_wrapper::source::vsphere::Vsphere;
use virt_v2v_wrapper::source::vsphere::address::Address;
use virt_v2v_wrapper::source::vsphere::client::{Client, Patience};
use virt_v2v_wrapper::source::vsphere::error::ClientError;
use virt_v2v_wrapper::tls::Trust;

use super::certificates::{Certificate, self_signed};
use super::server::{PASSWORD, Reply, Request, Server};
use crate::exports::site::have;

/// Quick enough for a test, long enough for a busy machine.
pub const PATIENCE: Patience = Patience { connect: Duration::from_secs(20), answer: Duration::from_secs(20) };
pub const NAME: &str = "web %2f db";

pub struct Site {
    pub directory: tempfile::TempDir,
    pub certificate: Certificate,
}

/// `None`: the test is skipped.
pub fn site() -> Option<Site> {
    have(&["openssl"]).then(|| {
        let directory = tempfile::tempdir().unwrap();
        let certificate = self_signed(directory.path(), "own");
        Site { directory, certificate }
    })
}

impl Site {
    pub fn serve(&self, script: impl FnMut(&Request) -> Reply + Send + 'static) -> Server {
        Server::start(&self.certificate, script)
    }

    pub fn pin(&self) -> Trust {
        Trust::new(Some(&self.certificate.fingerprint("sha1")), false, None).unwrap()
    }

    /// A session as a job has it.
    pub async fn vsphere(&self, server: &Server) -> Vsphere {
        Vsphere::connect(&self.plan(server, &json!({}), &Configuration::default())).await.unwrap()
    }

    /// With further keys of the document.
    pub fn plan(&self, server: &Server, more: &Value, configuration: &Configuration) -> Plan {
        let mut document = json!({
            "vm_name": NAME.replace('/', "_"),
            "transport_method": "vddk",
            "vmware_uri": format!("vpx://DOM%5cme@127.0.0.1:{}/DC/host", server.port),
            "vmware_fingerprint": self.certificate.fingerprint("sha1"),
            "vmware_password": PASSWORD,
            "output_directory": "/nowhere",
        });
        for (key, value) in more.as_object().unwrap() {
            document[key] = value.clone();
        }
        let document = virt_v2v_wrapper::document::parse(document.to_string().as_bytes()).unwrap().document;
        plan(document, configuration, &Surroundings::default()).unwrap()
    }

    pub async fn login(&self, server: &Server) -> Client {
        login(server, self.pin()).await.unwrap()
    }
}

pub async fn login(server: &Server, trust: Trust) -> Result<Client, ClientError> {
    login_within(PATIENCE, server, trust).await
}

pub async fn login_within(patience: Patience, server: &Server, trust: Trust) -> Result<Client, ClientError> {
    Client::login(&address(server.port), PASSWORD.into(), trust, patience).await
}

pub fn address(port: u16) -> Address {
    Address::parse(&format!("vpx://DOM%5cme@127.0.0.1:{port}/DC/host")).unwrap()
}

pub fn usual(_: &Request) -> Reply {
    Reply::Usual
}
