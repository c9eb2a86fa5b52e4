//! A pure [`CommandLine`] made into a [`Tool`]: here its secrets become sealed memfds.

use std::ffi::OsString;
use std::path::Path;

use secrecy::ExposeSecret;

use super::{Tool, sealed};
use crate::v2v::args::{Arg, CommandLine};

impl Tool {
    /// `program` with these arguments and this environment, and each secret in a sealed file of its own.
    pub fn with(program: &Path, tag: &str, command_line: CommandLine) -> std::io::Result<Self> {
        tracing::info!("running {} {}", program.display(), command_line.redacted());
        let mut tool = Self::new(program, tag);
        for arg in command_line.args {
            let arg = tool.value(arg)?;
            tool.command.arg(arg);
        }
        for (name, _) in std::env::vars_os() {
            if command_line.env_without.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                tool.command.env_remove(name);
            }
        }
        for (name, arg) in command_line.env {
            let arg = tool.value(arg)?;
            tool.command.env(name, arg);
        }
        Ok(tool)
    }

    fn value(&mut self, arg: Arg) -> std::io::Result<OsString> {
        match arg {
            Arg::Plain(value) => Ok(value),
            Arg::SecretFile { prefix, content } => {
                let mut value = OsString::from(prefix);
                value.push(self.hand_over(sealed("secret", content.expose_secret().as_bytes())?));
                Ok(value)
            }
        }
    }
}
