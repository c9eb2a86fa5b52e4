//! Questions to a host over ssh, by the openssh client. An edge: a command goes there, its output comes back.
//!
//! The account's own ssh configuration and `known_hosts` count, as they do for virt-v2v (which runs `ssh` and `scp`) and
//! for nbdkit's ssh plugin: a host whose key is not known is refused by all three, and nobody is there to be asked.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::json::one_line;
use crate::process::capture::{CaptureError, Captured, capture};
use crate::process::{Exit, Tool};
use crate::uri;

/// A busy ESXi host takes seconds for a login.
const PATIENCE: Duration = Duration::from_secs(60);
/// The client's own failures, by its manual.
const CLIENT_FAILED: i32 = 255;

/// No answer from a host.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A URI that names no file of a host.
    #[error("{0} is not of the form ssh://user@host/path/to/vm.vmx")]
    Uri(String),
    /// The client.
    #[error("cannot ask {host} by ssh; is the openssh client installed?")]
    Run {
        /// The host.
        host: String,
        /// Why.
        source: CaptureError,
    },
    /// Unknown host key.
    #[error(
        "the host key of {host} is not known to this account: run `{login}` once as the user who runs the conversion and \
         accept the key, or add the key to ~/.ssh/known_hosts"
    )]
    UnknownKey {
        /// The host.
        host: String,
        /// How to log in.
        login: String,
    },
    /// Another host key than before.
    #[error(
        "the host key of {host} is not the one in known_hosts: if the host was installed anew, remove the old key with \
         ssh-keygen -R and run `{login}` once to accept the new one; if not, somebody else answers in its place"
    )]
    ChangedKey {
        /// The host.
        host: String,
        /// How to log in.
        login: String,
    },
    /// The key is not accepted.
    #[error(
        "{host} does not let {user} in: {said}. Put the public key into the authorized_keys of that user"
    )]
    Denied {
        /// The host.
        host: String,
        /// Who wanted to log in.
        user: String,
        /// The client's words.
        said: String,
    },
    /// Not reached.
    #[error("cannot reach {host} by ssh: {said}")]
    Unreachable {
        /// The host.
        host: String,
        /// The client's words.
        said: String,
    },
    /// The command failed there.
    #[error("{host} cannot {what}: {said}")]
    Failed {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said.
        said: String,
    },
}

/// A host, and who logs in there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address.
    pub host: String,
    /// If it is not 22, or not what the ssh configuration says.
    pub port: Option<u16>,
    /// The account there.
    pub user: String,
    /// Socket of the agent that holds the key.
    pub agent: PathBuf,
    /// A file with host keys instead of the account's own.
    pub known_hosts: Option<PathBuf>,
    /// Any host key is believed: of a server that a cloud has made (contract.md 7).
    pub any_key: bool,
}

impl Host {
    /// The host of a vmx file's URI, and the path of the file there. Without a user it is `root` (contract.md 6.1).
    pub fn of(uri: &str, agent: PathBuf) -> Result<(Self, String), ClientError> {
        let uri::Ssh { user, host, port, path } =
            uri::ssh(uri).ok_or_else(|| ClientError::Uri(one_line(uri, 300)))?;
        let user = user.unwrap_or_else(|| "root".to_owned());
        Ok((Self { host, port, user, agent, known_hosts: None, any_key: false }, path))
    }

    /// What a command writes there, at most `limit` bytes. `what` completes the sentence "the host cannot ..".
    pub async fn run(
        &self,
        tag: &str,
        command: &str,
        what: &str,
        limit: usize,
    ) -> Result<Vec<u8>, ClientError> {
        self.run_within(tag, command, what, limit, PATIENCE).await
    }

    /// The same for what may take longer than a minute.
    pub async fn run_within(
        &self,
        tag: &str,
        command: &str,
        what: &str,
        limit: usize,
        patience: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let mut tool = Tool::new(Path::new("ssh"), tag);
        tool.command()
            .args(self.arguments(command))
            .env("SSH_AUTH_SOCK", &self.agent)
            .env("LC_ALL", "C.UTF-8");
        tool.command().env_remove("SSH_ASKPASS").env_remove("DISPLAY");
        let captured = capture(tool, limit, patience).await;
        let captured = captured.map_err(|source| ClientError::Run { host: self.host.clone(), source })?;
        match captured.exit {
            Exit::Code(0) => Ok(captured.stdout),
            Exit::Code(CLIENT_FAILED) => Err(self.not_there(&captured)),
            _ => Err(ClientError::Failed {
                host: self.host.clone(),
                what: what.to_owned(),
                said: captured.complaint(),
            }),
        }
    }

    fn arguments(&self, command: &str) -> Vec<OsString> {
        let mut arguments = self.login();
        arguments.extend(["--", self.host.as_str(), command].map(OsString::from));
        arguments
    }

    /// Options of the client, up to the account: for a command, or for a tunnel.
    pub fn login(&self) -> Vec<OsString> {
        // No question; no master that would outlive the job with our pipes in its hands; no banner among the words.
        let timeout = if self.any_key { "ConnectTimeout=10" } else { "ConnectTimeout=30" };
        let options = ["BatchMode=yes", timeout, "ControlMaster=no", "ServerAliveInterval=15"];
        let any_key = self.any_key.then_some("StrictHostKeyChecking=no");
        let options = options.into_iter().chain(["ControlPersist=no", "LogLevel=ERROR"]).chain(any_key);
        let mut arguments: Vec<OsString> =
            options.flat_map(|option| ["-o".into(), OsString::from(option)]).collect();
        if let Some(file) = &self.known_hosts {
            // Quoted: ssh takes several files, divided by spaces.
            let mut option = OsString::from("UserKnownHostsFile=\"");
            option.push(file);
            option.push("\"");
            arguments.extend(["-o".into(), option]);
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".into(), port.to_string().into()]);
        }
        arguments.extend(["-T", "-x", "-l", self.user.as_str()].map(OsString::from));
        arguments
    }

    fn not_there(&self, captured: &Captured) -> ClientError {
        let (host, user) = (self.host.clone(), self.user.clone());
        let complaints = String::from_utf8_lossy(&captured.stderr);
        let said = captured.complaint();
        let port = self.port.map_or_else(String::new, |port| format!("-p {port} "));
        let login = format!("ssh {port}{user}@{host}");
        if complaints.contains("IDENTIFICATION HAS CHANGED") {
            ClientError::ChangedKey { host, login }
        } else if complaints.contains("Host key verification failed") {
            ClientError::UnknownKey { host, login }
        } else if complaints.contains("Permission denied") || complaints.contains("Too many authentication") {
            ClientError::Denied { host, user, said: said.trim_end_matches('.').to_owned() }
        } else {
            ClientError::Unreachable { host, said }
        }
    }
}

/// A word for a shell: whatever stands in it, the shell takes it as it is.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn host() -> Host {
        Host::of("ssh://d%5Cadmin@esx:2222/vmfs/volumes/ds/My%20VM/a.vmx?x=1", "/p/agent".into()).unwrap().0
    }

    #[test]
    fn the_host_cannot_become_an_option_and_nobody_is_asked() {
        let mut host = host();
        host.known_hosts = Some("/a b/known".into());
        let arguments: Vec<String> =
            host.arguments("cat x").into_iter().map(|word| word.into_string().unwrap()).collect();
        let line = arguments.join("|");
        assert!(line.starts_with("-o|BatchMode=yes|"), "{line}");
        assert!(
            line.ends_with("|-o|UserKnownHostsFile=\"/a b/known\"|-p|2222|-T|-x|-l|d\\admin|--|esx|cat x"),
            "{line}"
        );
    }

    #[test]
    fn each_failure_says_what_to_do() {
        for (stderr, words) in [
            (
                "No ED25519 host key is known for esx and you have requested strict checking.\nHost key verification failed.",
                "not known to this account: run `ssh -p 2222 d\\admin@esx` once",
            ),
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\r\n",
                "ssh-keygen -R",
            ),
            (
                "root@esx: Permission denied (publickey).",
                "does not let d\\admin in: root@esx: Permission denied (publickey). Put",
            ),
            (
                "ssh: connect to host esx port 2222: Connection refused",
                "cannot reach esx by ssh: ssh: connect to host esx port 2222: Connection refused",
            ),
            ("", "cannot reach esx by ssh: "),
        ] {
            let captured = Captured { exit: Exit::Code(255), stdout: Vec::new(), stderr: stderr.into() };
            let text = host().not_there(&captured).to_string();
            assert!(text.contains(words), "{text}");
        }
    }

    proptest! {
        /// The real shell gives every word back as it was.
        #[test]
        fn a_quoted_word_is_one_word(word in "[^\0]{0,40}") {
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(&word))).output().unwrap();
            prop_assert_eq!(output.stdout, word.into_bytes());
        }
    }
}
