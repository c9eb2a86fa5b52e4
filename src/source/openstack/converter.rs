//! The conversion host of the source OpenStack, over ssh: which device a volume is there, and a container that serves devices
//! over NBD (contract.md 7). An edge.
//!
//! The container is ours with `nbd_export_only` ([`crate::export_only`]), or an old one: both read `/data/input/conversion.json`
//! and write `/data/nbdready`. Everything it needs is in one directory there, in which the job's mark stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::OpenstackSourceError;
use crate::export_only::READY;
use crate::openstack::MARK;
use crate::openstack::servers::Server;
use crate::source::ssh::client::{ClientError, Host, quote};

/// Who logs in there.
const USER: &str = "cloud-user";
/// Of the first disk, in the container.
const FIRST_PORT: u16 = 10_809;
/// Most bytes of an answer, and of the container's logs.
const MOST_ANSWER: usize = 64 << 10;
const MOST_LOGS: usize = 16 << 20;
/// A container may have to be stopped by force, or its image be fetched.
const SLOW: Duration = Duration::from_secs(600);
/// In the job's directory while its container is being started: the process that does it.
const STARTING: &str = "starting";
/// How long that is waited for, in seconds.
const STARTS: u32 = 120;
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long the link with the volume's id may be missing until the one new device is taken for it.
const LINK_PATIENCE: Duration = Duration::from_secs(15);
/// Characters of a volume's id that a disk can have for a serial number.
const SERIAL: usize = 20;

/// The host.
#[derive(Debug)]
pub(super) struct Converter {
    host: Host,
    tag: String,
}

/// What serves the disks there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Serving {
    /// The directory of the job there.
    pub(super) directory: String,
    /// The container.
    pub(super) container: String,
    /// For each device a port on the loopback of that host.
    pub(super) ports: Vec<u16>,
}

/// Where a server can be reached: what its owner says, else what the cloud gave it.
pub(super) fn address(server: &Server) -> Option<&str> {
    let is_v4 = |address: &&String| address.contains('.');
    let given = server.addresses.iter().find(is_v4).or(server.addresses.first());
    server.access_ipv4.as_deref().filter(|address| !address.is_empty()).or(given.map(String::as_str))
}

impl Converter {
    pub(super) fn new(address: &str, agent: PathBuf, tag: &str) -> Self {
        // Such a host was made for this, and its key is nobody's to know.
        let host = Host {
            host: address.to_owned(),
            port: None,
            user: USER.to_owned(),
            agent,
            known_hosts: None,
            any_key: true,
        };
        Self { host, tag: tag.to_owned() }
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    async fn ask(&self, command: &str, what: &str) -> Result<String, ClientError> {
        let said = self.host.run_within(&self.tag, command, what, MOST_ANSWER, SLOW).await?;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }

    /// Can it be asked at all?
    pub(super) async fn connect(&self) -> Result<(), OpenstackSourceError> {
        let said = self.host.run(&self.tag, "echo connected", "say anything", MOST_ANSWER).await;
        match said {
            Ok(said) if said.trim_ascii() == b"connected" => Ok(()),
            Ok(said) => Err(OpenstackSourceError::OddAnswer { said: super::shown(&said) }),
            Err(source) => Err(OpenstackSourceError::NoSsh(source)),
        }
    }

    /// Names of its block devices.
    pub(super) async fn devices(&self) -> Result<Vec<String>, OpenstackSourceError> {
        let said = self.ask("ls /sys/block", "list its devices").await?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }

    /// The device that a volume is, once it is there: by the volume's id, for a device's name is a hint only. Where no link has
    /// the id, the one device that was not there `before`.
    pub(super) async fn device_of(
        &self,
        volume: &str,
        before: &[String],
        patience: Duration,
    ) -> Result<String, OpenstackSourceError> {
        let serial: String = volume.chars().take(SERIAL).collect();
        let (begun, link) = (Instant::now(), format!("/dev/disk/by-id/virtio-{serial}"));
        // A partition's link ends with more.
        let look = format!(
            "for link in {} /dev/disk/by-id/*{}; do device=$(readlink -e \"$link\") && {{ echo \"$device\"; exit 0; }}; done; \
             ls /sys/block",
            quote(&link),
            quote(&serial)
        );
        loop {
            let said = self.ask(&look, "say which device a volume is").await?;
            if said.starts_with('/') {
                return Ok(said);
            }
            if begun.elapsed() >= LINK_PATIENCE.min(patience) {
                let new: Vec<&str> =
                    said.split_whitespace().filter(|name| !before.iter().any(|old| old == name)).collect();
                if let [device] = new[..] {
                    tracing::warn!("volume {volume} is taken for /dev/{device}: there is no {link}");
                    return Ok(format!("/dev/{device}"));
                }
            }
            if begun.elapsed() >= patience {
                let seconds = patience.as_secs();
                return Err(OpenstackSourceError::NotPlugged { volume: volume.to_owned(), link, seconds });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Makes the directory of the job.
    pub(super) async fn directory(
        &self,
        mark: &str,
        devices: &[String],
    ) -> Result<String, OpenstackSourceError> {
        let ports: BTreeMap<String, u16> =
            devices.iter().zip(FIRST_PORT..).map(|(device, port)| (inside(device), port)).collect();
        let document = json!({ "nbd_export_only": ports }).to_string();
        let make = format!(
            "umask 022 && d=$(mktemp -d -t v2v-XXXXXX) && printf %s {} > \"$d/job\" && mkdir \"$d/lib\" \"$d/log\" \"$d/input\" \
             && printf %s {} > \"$d/input/conversion.json\" && echo \"$d\"",
            quote(mark),
            quote(&document)
        );
        let said = self.ask(&make, "make a directory for the job").await?;
        match said.starts_with('/') && !said.contains(['\n', '\'']) {
            true => Ok(said),
            false => Err(OpenstackSourceError::OddAnswer { said: super::shown(said.as_bytes()) }),
        }
    }

    /// Starts the container that serves the devices; it is in the directory before anybody waits for it.
    pub(super) async fn serve(
        &self,
        directory: &str,
        mark: &str,
        image: &str,
        devices: &[String],
    ) -> Result<Serving, OpenstackSourceError> {
        let mut podman = vec!["sudo".to_owned(), "podman".into(), "run".into(), "--detach".into()];
        podman.push(format!("--label={MARK}={mark}"));
        for (from, to) in [("", "/data"), ("/lib", "/var/lib/uci"), ("/log", "/var/log/uci")] {
            podman.extend(["--volume".into(), format!("{directory}{from}:{to}:z")]);
        }
        for (device, port) in devices.iter().zip(FIRST_PORT..) {
            podman.extend(["-p".into(), format!("127.0.0.1::{port}")]);
            podman.extend(["--device".into(), format!("{device}:{}", inside(device))]);
        }
        podman.push(image.to_owned());
        let words: Vec<String> = podman.iter().map(|word| quote(word)).collect();
        let file = quote(&format!("{directory}/container"));
        let starting = quote(&format!("{directory}/{STARTING}"));
        // It goes on when nobody listens any more: whoever closes waits for it.
        let run = format!(
            "echo $$ > {starting}; {} > {file} && cat {file}; s=$?; rm -f {starting}; exit $s",
            words.join(" ")
        );
        let said = self.ask(&run, "start the container that serves the disks").await?;
        // What was fetched before is told in lines of its own.
        let container = said.lines().last().unwrap_or_default().trim().to_owned();
        if container.is_empty() {
            return Err(OpenstackSourceError::OddAnswer { said });
        }
        let said =
            self.ask(&format!("sudo podman port {}", quote(&container)), "tell a container's ports").await?;
        let ports = (FIRST_PORT..).take(devices.len()).map(|port| {
            published(&said, port).ok_or_else(|| OpenstackSourceError::NoPort { port, said: said.clone() })
        });
        let ports = ports.collect::<Result<_, _>>()?;
        Ok(Serving { directory: directory.to_owned(), container, ports })
    }

    /// Waits until all disks are served, or the container is gone.
    pub(super) async fn ready(
        &self,
        serving: &Serving,
        patience: Duration,
    ) -> Result<(), OpenstackSourceError> {
        let Serving { directory, container, .. } = serving;
        let begun = Instant::now();
        let look = format!(
            "test -f {} && {{ echo ready; exit 0; }}; sudo podman inspect --format '{{{{.State.Running}}}}' {}",
            quote(&format!("{directory}/{READY}")),
            quote(container)
        );
        loop {
            match self.ask(&look, "look after the container").await {
                Ok(said) if said == "ready" => return Ok(()),
                Ok(said) if said == "false" => {
                    let last =
                        format!("sudo tail -n 3 {}", quote(&format!("{directory}/virt-v2v-wrapper.log")));
                    let said = self.ask(&last, "read the container's log").await;
                    let said = said.unwrap_or_else(|error| crate::log::chain(&error));
                    return Err(OpenstackSourceError::Ended { said: super::shown(said.as_bytes()) });
                }
                // Not every podman can be asked so, and a host may be busy.
                Ok(_) | Err(ClientError::Failed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if begun.elapsed() >= patience {
                return Err(OpenstackSourceError::NotReady { seconds: patience.as_secs() });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends everything of the job there: the container is stopped, its logs are kept in `logs`, its directory is removed. What
    /// is not there any more is as good.
    pub(super) async fn close(
        &self,
        directory: Option<&str>,
        mark: &str,
        logs: &Path,
    ) -> Result<(), OpenstackSourceError> {
        let directory = match directory {
            Some(directory) => directory.to_owned(),
            None => {
                let look =
                    format!("grep -lsx -- {} \"${{TMPDIR:-/tmp}}\"/v2v-*/job | head -n 1", quote(mark));
                self.ask(&look, "look for the job's directory").await?.trim_end_matches("/job").to_owned()
            }
        };
        let is_ours = format!(
            "[ \"$(cat {} 2>/dev/null)\" = {} ] && echo ours || true",
            quote(&format!("{directory}/job")),
            quote(mark)
        );
        if directory.is_empty() || self.ask(&is_ours, "look at the job's directory").await? != "ours" {
            return Ok(());
        }
        // One whose start was answered by nobody is known by its label, once it is there.
        let containers = format!(
            "i=0; while [ $i -lt {STARTS} ] && p=$(cat {} 2>/dev/null) && kill -0 \"$p\" 2>/dev/null; do i=$((i+1)); sleep 1; \
             done; {{ cat {} 2>/dev/null; sudo podman ps --quiet --no-trunc --filter {} 2>/dev/null; }} | sort -u",
            quote(&format!("{directory}/{STARTING}")),
            quote(&format!("{directory}/container")),
            quote(&format!("label={MARK}={mark}"))
        );
        let containers = self.ask(&containers, "look for the job's container").await?;
        for container in containers.split_whitespace() {
            let stop = format!("sudo podman stop {}", quote(container));
            self.ask(&stop, "stop the container that serves the disks").await?;
        }
        self.keep_logs(&directory, logs).await;
        self.ask(&format!("sudo rm -rf {}", quote(&directory)), "remove the job's directory").await?;
        for container in containers.split_whitespace() {
            // Stopped it harms nobody.
            if let Err(error) =
                self.ask(&format!("sudo podman rm {}", quote(container)), "remove a container").await
            {
                tracing::debug!("{}", crate::log::chain(&error));
            }
        }
        Ok(())
    }

    /// What the container has logged, each file with its name; no reason to leave anything as it is.
    async fn keep_logs(&self, directory: &str, logs: &Path) {
        let read = format!(
            "cd {} && sudo find . -name '*.log' -size +0 -exec tail -v -n +1 {{}} \\; | tail -c {}",
            quote(directory),
            MOST_LOGS - 1
        );
        let kept = self.host.run_within(&self.tag, &read, "read the container's logs", MOST_LOGS, SLOW).await;
        match kept.map(|text| std::fs::write(logs, text)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("cannot write {}: {error}", logs.display()),
            Err(error) => {
                tracing::warn!("the logs of the source conversion host: {}", crate::log::chain(&error))
            }
        }
    }
}

/// What a device is called in the container.
fn inside(device: &str) -> String {
    format!("{device}-v2v")
}

/// Where a port of the container is published, `10809/tcp -> 127.0.0.1:33437`.
fn published(said: &str, port: u16) -> Option<u16> {
    said.lines().find_map(|line| {
        let (inner, outer) = line.split_once("->")?;
        (inner.trim().split('/').next()? == port.to_string()).then_some(())?;
        outer.trim().rsplit(':').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_port_is_that_of_the_disk() {
        let said = "10810/tcp -> 127.0.0.1:40001\n10809/tcp -> 127.0.0.1:33437\n1080/tcp -> 0.0.0.0:1";
        for (port, expected) in [(10_809, Some(33_437)), (10_810, Some(40_001)), (1080, Some(1)), (80, None)]
        {
            assert_eq!(published(said, port), expected);
        }
        assert_eq!(published("10809/tcp -> [::1]:77", 10_809), Some(77));
        assert_eq!(published("Error: no such container", 10_809), None);
    }

    #[test]
    fn a_server_is_reached_where_its_owner_says() {
        let server = |access: Option<&str>, addresses: &[&str]| Server {
            access_ipv4: access.map(str::to_owned),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            ..Server::default()
        };
        for (access, addresses, expected) in [
            (Some("192.0.2.7"), &["10.0.0.7"][..], Some("192.0.2.7")),
            (Some(""), &["fd00::7", "10.0.0.7"], Some("10.0.0.7")),
            (None, &["fd00::7"], Some("fd00::7")),
            (None, &[], None),
        ] {
            assert_eq!(address(&server(access, addresses)), expected);
        }
    }
}
