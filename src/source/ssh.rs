//! VMware over ssh: an agent of the job's own that holds the key (contract.md 2.5, 4).
//!
//! virt-v2v and nbdkit's ssh plugin both ask the agent. It is a tool of the job in the foreground (`ssh-agent -D`),
//! so it dies with the job, always. A key from the document goes from a sealed memfd to `ssh-add`'s stdin and is
//! never a file.
//!
//! For a two-phase conversion there is more: [`client`] asks the host, [`guest`] opens what is there.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use secrecy::{ExposeSecret, SecretString};

use crate::plan::SshKey;
use crate::process::{self, Exit, Tool};

pub mod client;
pub mod guest;
pub mod running;

/// How long the agent may take to listen, and `ssh-add` to be done: nobody is there to type a passphrase.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What can go wrong with the agent. The texts begin as the old program's did (contract.md 3.3).
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// It does not run.
    #[error("Failed to start ssh-agent: {0}. Is the openssh client installed?")]
    Agent(String),
    /// It has no key.
    #[error("Failed to add SSH keys to the agent: {said}. {advice}")]
    Key {
        /// What `ssh-add` said.
        said: String,
        /// What to do.
        advice: &'static str,
    },
}

/// Starts an agent with the key and gives its socket.
pub async fn start_agent(tag: &str, key: &SshKey, private: &Path) -> Result<PathBuf, SshError> {
    let socket = agent_socket(private);
    let mut agent = Tool::new(Path::new("ssh-agent"), tag);
    agent.command().arg("-D").arg("-a").arg(&socket);
    let agent = agent.spawn().map_err(|error| SshError::Agent(error.to_string()))?;
    tracing::info!("ssh-agent started with pid {agent}");
    wait_for(agent, || UnixStream::connect(&socket).is_ok())
        .await
        .map_err(|exit| SshError::Agent(describe(exit)))?;
    add_key(tag, key, &socket, private).await?;
    Ok(socket)
}

/// Where the agent listens.
pub fn agent_socket(private: &Path) -> PathBuf {
    private.join("agent")
}

async fn add_key(tag: &str, key: &SshKey, socket: &Path, private: &Path) -> Result<(), SshError> {
    let said = private.join("ssh-add.log");
    let io = |error: std::io::Error| SshError::Agent(error.to_string());
    let mut tool = Tool::new(Path::new("ssh-add"), tag);
    let log = File::create(&said).map_err(io)?;
    let command = tool.command();
    // Without a display and a terminal ssh-add asks nobody for a passphrase; it fails, and says so.
    command.env("SSH_AUTH_SOCK", socket).env_remove("SSH_ASKPASS").env_remove("DISPLAY");
    command.stdout(log.try_clone().map_err(io)?).stderr(log);
    let advice = match key {
        SshKey::Default => "Give ssh_key or ssh_key_file, or put a key without passphrase into ~/.ssh",
        SshKey::File(path) => {
            command.arg(path);
            "Is ssh_key_file a private key without passphrase that only its owner can read?"
        }
        SshKey::Text(text) => {
            command.arg("-").stdin(key_on_stdin(text).map_err(io)?);
            "Is ssh_key a whole private key without passphrase?"
        }
    };
    let adder = tool.spawn().map_err(io)?;
    let exit = match wait_for(adder, || false).await {
        Err(Some(Exit::Code(0))) => return Ok(()),
        Err(exit) => exit,
        Ok(()) => None,
    };
    let said = std::fs::read_to_string(&said).unwrap_or_default();
    let said = said.lines().last().map_or_else(|| describe(exit), str::to_owned);
    Err(SshError::Key { said, advice })
}

fn key_on_stdin(text: &SecretString) -> std::io::Result<Stdio> {
    // A PEM text needs its last line end; JSON clients lose it.
    let mut key = zeroize::Zeroizing::new(text.expose_secret().as_bytes().to_vec());
    if !key.ends_with(b"\n") {
        key.push(b'\n');
    }
    Ok(process::sealed("ssh-key", &key)?.into())
}

/// Waits until `done`, or until `child` has ended (`Err(Some(..))`) or patience has (`Err(None)`).
async fn wait_for(child: Pid, done: impl Fn() -> bool) -> Result<(), Option<Exit>> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if let Some(exit) = process::exit_of(child) {
            return Err(Some(exit));
        }
        if Instant::now() >= deadline {
            process::signal_group(child, nix::sys::signal::Signal::SIGKILL);
            return Err(None);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn describe(exit: Option<Exit>) -> String {
    match exit {
        Some(exit) => exit.to_string(),
        None => format!("it was not ready within {} s", PATIENCE.as_secs()),
    }
}
