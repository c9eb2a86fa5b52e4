//! The command line of a server, from the export (contract.md 6.4). Pure.
//!
//! As for virt-v2v, no secret stands in the result: [`crate::process`] puts a sealed memfd's path there.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use secrecy::SecretString;

use super::{Export, Files, Filters, Login, Window};
use crate::source::local::ImageFormat;
use crate::v2v::args::{Arg, CommandLine};

/// Connections that qemu-nbd admits at a time: it refuses more, and one by default. More than the copy engine opens.
const CONNECTIONS: &str = "64";

impl Export {
    /// How its program is run. `library_path` is the caller's `LD_LIBRARY_PATH`.
    pub fn command_line(&self, files: &Files, filters: Filters, library_path: Option<&OsStr>) -> CommandLine {
        let mut line = CommandLine::default();
        match self {
            Export::Vddk {
                server,
                port,
                user,
                password,
                moref,
                thumbprint,
                libdir,
                file,
                snapshot,
                transports,
            } => {
                verbose(&mut line);
                // The plugin has a word of its own for each request.
                line.option("-D", "vddk.datapath=0");
                nbdkit(files, &mut line);
                add_filters(filters, &mut line);
                line.add("vddk");
                add_password(password, &mut line);
                line.add(format!("vm=moref={moref}"));
                line.add(format!("server={server}"));
                line.add(format!("thumbprint={thumbprint}"));
                line.add(joined("libdir=", libdir));
                line.add(format!("file={file}"));
                line.add(format!("user={user}"));
                if let Some(port) = port {
                    line.add(format!("port={port}"));
                }
                if let Some(snapshot) = snapshot {
                    line.add(format!("snapshot={snapshot}"));
                }
                if let Some(transports) = transports {
                    line.add(format!("transports={transports}"));
                }
                filter_options(files, filters, &mut line);
                // Of this child only: the libraries in there break other programs (peers.md 6.3, row 27).
                line.env("LD_LIBRARY_PATH", library_directories(libdir, library_path));
            }
            Export::Ssh { host, port, user, path, login, known_hosts } => {
                verbose(&mut line);
                nbdkit(files, &mut line);
                add_filters(filters, &mut line);
                line.add("ssh");
                if let Login::Password(password) = login {
                    add_password(password, &mut line);
                }
                line.add(format!("host={host}"));
                line.add(format!("path={}", flat_path(path)));
                line.add(format!("user={user}"));
                if let Some(port) = port {
                    line.add(format!("port={port}"));
                }
                if let Some(known_hosts) = known_hosts {
                    line.add(joined("known-hosts=", known_hosts));
                }
                filter_options(files, filters, &mut line);
                match login {
                    Login::Agent(socket) => line.env("SSH_AUTH_SOCK", socket),
                    // Keys of somebody's agent would use up the tries that the host grants.
                    Login::Password(_) => line.env_without.push("SSH_AUTH_SOCK"),
                }
            }
            Export::File { path } => {
                // No filters: there is no connection to lose, and SEEK_HOLE is quick. Not verbose: it opens one file.
                nbdkit(files, &mut line);
                line.add("file");
                line.add(joined("file=", path));
            }
            Export::Tunnel { host, port, .. } => {
                host.login().iter().for_each(|word| line.add(word));
                // A socket of our own directory, not a port that every user of this host could read the disk from.
                for option in
                    ["ExitOnForwardFailure=yes", "StreamLocalBindUnlink=yes", "StreamLocalBindMask=0177"]
                {
                    line.option("-o", option);
                }
                line.add("-N");
                let mut forward = files.socket.clone().into_os_string();
                forward.push(format!(":127.0.0.1:{port}"));
                line.option("-L", forward);
                line.add("--");
                line.add(&host.host);
                line.env("SSH_AUTH_SOCK", &host.agent);
                line.env("LC_ALL", "C.UTF-8");
                line.env_without.push("SSH_ASKPASS");
            }
            Export::Image { path, format, window } => {
                qemu_nbd(image_options(path, *format, *window), files, &mut line);
            }
        }
        line
    }
}

/// Says what it does with the other host, which is what the reason of a failure is found in, but not every request:
/// those were 1.8 GB for each TiB.
fn verbose(line: &mut CommandLine) {
    line.add("-v");
    line.option("-D", "nbdkit.backend.datapath=0");
}

fn nbdkit(files: &Files, line: &mut CommandLine) {
    line.option("-U", &files.socket);
    line.option("-P", &files.pid);
    for arg in ["--exit-with-parent", "--readonly", "--foreground", "--exportname=/"] {
        line.add(arg);
    }
    // Its errors are read by people and by us.
    line.env("LC_ALL", "C.UTF-8");
}

/// In this order: requests come from the left (contract.md 6.4).
fn add_filters(filters: Filters, line: &mut CommandLine) {
    let Filters { cacheextents, retry, log } = filters;
    for (name, used) in [("cacheextents", cacheextents), ("retry", retry), ("log", log)] {
        if used {
            line.add(format!("--filter={name}"));
        }
    }
}

/// The filters' parameters come last, and only they know them.
fn filter_options(files: &Files, filters: Filters, line: &mut CommandLine) {
    if filters.retry {
        // By default a minute passes before a failed read is told. Those who read try again themselves, and a read that is
        // too large for the host's memory fails each time.
        line.add("retries=1");
        line.add("retry-delay=1");
    }
    if filters.log {
        line.add(joined("logfile=", &files.log));
        line.add("logappend=true");
    }
}

fn add_password(password: &SecretString, line: &mut CommandLine) {
    line.args.push(Arg::SecretFile { prefix: "password=+".to_owned(), content: password.clone() });
}

fn library_directories(libdir: &Path, old: Option<&OsStr>) -> OsString {
    let mut directories = libdir.join("lib64").into_os_string();
    // An empty entry would mean the current directory.
    if let Some(old) = old.filter(|old| !old.is_empty()) {
        directories.push(":");
        directories.push(old);
    }
    directories
}

/// Where the data of a disk are: `vm.vmdk` only describes it, `vm-flat.vmdk` has them.
pub fn flat_path(path: &str) -> String {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[name..].rfind('.') {
        // A leading dot begins no extension.
        Some(dot) if dot > 0 => format!("{}-flat{}", &path[..name + dot], &path[name + dot..]),
        _ => format!("{path}-flat"),
    }
}

fn qemu_nbd(image: OsString, files: &Files, line: &mut CommandLine) {
    line.add("--read-only");
    line.add("--persistent");
    line.add(format!("--shared={CONNECTIONS}"));
    line.add(joined("--socket=", &files.socket));
    line.add(joined("--pid-file=", &files.pid));
    line.add("--image-opts");
    line.add(image);
    line.env("LC_ALL", "C.UTF-8");
}

/// An image for qemu's `--image-opts`.
pub fn image_options(path: &Path, format: ImageFormat, window: Option<Window>) -> OsString {
    // A file name of its own would be read for `json:{..}` and `nbd:host:port`; `file.filename` never is, whatever it
    // begins with, and still finds out whether it is a file or a device (bdrv_find_protocol of qemu 7.2).
    let mut options = OsString::from(format!("driver={},", format.as_str()));
    match window {
        None => options.push("file.filename="),
        Some(Window { offset, size }) => {
            options.push(format!("file.driver=raw,file.offset={offset},file.size={size},file.file.filename="))
        }
    }
    options.push(OsString::from_vec(doubled_commas(path)));
    options
}

/// A comma ends an option's value, two are one.
fn doubled_commas(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    bytes.flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 })).collect()
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut joined = OsString::from(prefix);
    joined.push(path);
    joined
}

#[cfg(test)]
mod tests;
