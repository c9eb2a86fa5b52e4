//! virt-v2v's and virt-v2v-in-place's command line and environment (contract.md 4), from the plan and the capabilities.
//! Pure.
//!
//! Secrets do not stand in the result: an argument that needs one refers to it by [`Arg::SecretFile`], and the
//! edge that spawns ([`crate::convert`]) puts a sealed memfd's path there.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use secrecy::SecretString;

use crate::plan::{Destination, LocalSource, NetworkMapping, Plan, Source};
use crate::v2v::capabilities::Capabilities;
use crate::v2v::clouds;

/// One argument or environment value.
#[derive(Debug, Clone)]
pub enum Arg {
    /// As it stands.
    Plain(OsString),
    /// `prefix` followed by the path of a file with exactly this content that only the tool can read.
    SecretFile {
        /// What stands before the path, e.g. `/dev/sda1:file:`; empty for a bare path.
        prefix: String,
        /// The content.
        content: SecretString,
    },
}

impl Arg {
    /// As it may be shown: without the secret.
    pub fn redacted(&self) -> String {
        match self {
            Arg::Plain(word) => word.to_string_lossy().into_owned(),
            Arg::SecretFile { prefix, .. } => format!("{prefix}***"),
        }
    }
}

/// How a tool is to be run: virt-v2v, or a server of [`crate::export`].
#[derive(Debug, Clone, Default)]
pub struct CommandLine {
    /// Arguments after the program's name.
    pub args: Vec<Arg>,
    /// Added to (or replacing in) the caller's environment.
    pub env: Vec<(String, Arg)>,
    /// Variables of the caller that begin so must not reach the tool, except those of `env`.
    pub env_without: Vec<&'static str>,
}

/// Paths that only exist once the job runs.
#[derive(Debug, Clone, Copy)]
pub struct Paths<'a> {
    /// `--machine-readable=file:` of this.
    pub machine_readable_log: &'a Path,
    /// libvirt XML written for [`crate::plan::LocalSource::Disks`], or for virt-v2v-in-place.
    pub libvirt_xml: &'a Path,
    /// `TMPDIR` and `VIRT_V2V_TMPDIR`.
    pub private_directory: &'a Path,
    /// `--bandwidth-file`, where there is one ([`crate::throttle::rate_file`]).
    pub bandwidth_file: Option<&'a Path>,
    /// Socket of the job's ssh-agent, for ssh sources.
    pub ssh_auth_sock: Option<&'a Path>,
}

impl CommandLine {
    /// The secrets in it, for a [`crate::secret::Scrubber`].
    pub fn secrets(&self) -> Vec<SecretString> {
        let all = self.args.iter().chain(self.env.iter().map(|(_, arg)| arg));
        all.filter_map(|arg| match arg {
            Arg::Plain(_) => None,
            Arg::SecretFile { content, .. } => Some(content.clone()),
        })
        .collect()
    }

    /// The arguments as they may be shown: no secret is in them, and where one is read from stands `***`.
    pub fn words(&self) -> Vec<String> {
        self.args.iter().map(Arg::redacted).collect()
    }

    /// The same on one line, for the log.
    pub fn redacted(&self) -> String {
        let words = self.words();
        words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>().join(" ")
    }

    /// Adds an argument.
    pub fn add(&mut self, arg: impl AsRef<OsStr>) {
        self.args.push(Arg::Plain(arg.as_ref().to_owned()));
    }

    /// Adds an option and its value, two arguments.
    pub fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.add(name);
        self.add(value);
    }

    /// `name prefixVALUE`, where the value need not be text.
    fn joined(&mut self, name: &str, prefix: &str, value: impl AsRef<OsStr>) {
        let mut joined = OsString::from(prefix);
        joined.push(value);
        self.option(name, joined);
    }

    fn secret(&mut self, name: &str, prefix: String, content: &SecretString) {
        self.add(name);
        self.args.push(Arg::SecretFile { prefix, content: content.clone() });
    }

    /// Sets an environment variable.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.env.push((name.to_owned(), Arg::Plain(value.as_ref().to_owned())));
    }
}

/// The command line for a one-phase conversion: the order of v2.3 and later (contract.md 4).
pub fn one_phase(plan: &Plan, capabilities: &Capabilities, paths: Paths<'_>) -> CommandLine {
    let mut line = CommandLine::default();
    common(paths, &mut line);
    source(plan, capabilities, paths, &mut line);
    for mapping in &plan.network_mappings {
        network(mapping, capabilities, &mut line);
    }
    keys(plan, &mut line);
    destination(plan, capabilities, &mut line);
    if let Some(file) = paths.bandwidth_file {
        line.option("--bandwidth-file", file);
    }
    environment(plan, paths, &mut line);
    line
}

/// The command line for virt-v2v-in-place 2.0 and later, which converts the disks that [`Paths::libvirt_xml`] names.
///
/// It knows nearly all options of virt-v2v's input and none of its output. Networks are not told to it: it writes no
/// machine, and refuses two mappings of one network; [`crate::domain::final_domain`] maps them. Nor are `-O` (2.7.4 and
/// later) and `--block-driver` (2.3.4 and later) given: nothing here needs them.
pub fn in_place(plan: &Plan, paths: Paths<'_>) -> CommandLine {
    let mut line = CommandLine::default();
    common(paths, &mut line);
    line.option("-i", "libvirtxml");
    line.add(paths.libvirt_xml);
    keys(plan, &mut line);
    environment(plan, paths, &mut line);
    line
}

/// What every command line begins with.
fn common(paths: Paths<'_>, line: &mut CommandLine) {
    for arg in ["-v", "-x", "--root", "first"] {
        line.add(arg);
    }
    let mut machine_readable = OsString::from("--machine-readable=file:");
    machine_readable.push(paths.machine_readable_log);
    line.add(machine_readable);
}

fn keys(plan: &Plan, line: &mut CommandLine) {
    for key in &plan.luks_keys {
        line.secret("--key", format!("{}:file:", key.device), &key.key);
    }
}

fn source(plan: &Plan, capabilities: &Capabilities, paths: Paths<'_>, line: &mut CommandLine) {
    match &plan.source {
        Source::Vddk { uri, thumbprint, password, libdir, .. } => {
            line.add(&plan.vm_name);
            line.option("-i", "libvirt");
            line.option("-ic", uri);
            line.option("-it", "vddk");
            line.joined("-io", "vddk-libdir=", libdir);
            // Always there: only a two-phase conversion, which starts another program, does without it.
            if let Some(thumbprint) = thumbprint {
                line.joined("-io", "vddk-thumbprint=", thumbprint);
            }
            // The same option; the long name is gone since 2.7.13, 1.x hosts were always given it (virt-v2v-output.md 9).
            let name = if capabilities.is_v2() { "-ip" } else { "--password-file" };
            line.secret(name, String::new(), password);
        }
        Source::Ssh { uri, .. } => {
            line.add(uri);
            line.option("-i", "vmx");
            line.option("-it", "ssh");
        }
        // Nothing is converted there, so virt-v2v does not run.
        Source::Openstack { .. } => {}
        Source::Local(source) => {
            let (mode, path) = match source {
                LocalSource::Disk(path) => ("disk", path.as_path()),
                LocalSource::LibvirtXml(path) => ("libvirtxml", path.as_path()),
                LocalSource::Vmx(path) => ("vmx", path.as_path()),
                LocalSource::Ova(path) => ("ova", path.as_path()),
                LocalSource::Disks(_) => ("libvirtxml", paths.libvirt_xml),
            };
            line.option("-i", mode);
            line.add(path);
        }
    }
}

fn network(mapping: &NetworkMapping, capabilities: &Capabilities, line: &mut CommandLine) {
    match &mapping.mac_address {
        Some(mac) if capabilities.has("mac-option") => {
            line.option("--mac", format!("{mac}:bridge:{}", mapping.destination));
        }
        _ => line.option("--bridge", format!("{}:{}", mapping.source, mapping.destination)),
    }
}

fn destination(plan: &Plan, capabilities: &Capabilities, line: &mut CommandLine) {
    match &plan.destination {
        Destination::Local { directory } => {
            format_and_allocation(plan, line);
            line.option("-o", capabilities.local());
            line.option("-os", directory);
            name_local_guest(plan, line);
        }
        Destination::Ovirt { url, password, cluster, storage, cafile, .. } => {
            let (output, prefix) = capabilities.ovirt_upload();
            line.option("--bridge", "ovirtmgmt");
            format_and_allocation(plan, line);
            line.option("-o", output);
            line.option("-oc", url);
            line.option("-os", storage);
            line.secret("-op", String::new(), password);
            line.joined("-oo", &format!("{prefix}-cafile="), cafile);
            line.option("-oo", format!("{prefix}-cluster={cluster}"));
            // The default since 1.45.90: versions that list only the new names need not be told.
            if prefix == "rhv" {
                line.option("-oo", "rhv-direct");
            }
            line.option("-oo", format!("{prefix}-verifypeer={}", !plan.insecure_connection));
            name_local_guest(plan, line);
        }
        Destination::ExportDomain { domain } => {
            line.option("--bridge", "ovirtmgmt");
            format_and_allocation(plan, line);
            line.option("-o", capabilities.export_domain());
            line.option("-os", domain);
            name_local_guest(plan, line);
        }
        // No --bridge and no -of since v1.14 (contract.md 4): networks are ports, volumes are raw.
        Destination::Openstack { environment, server_id, guest_id, volume_type_id, .. } => {
            line.option("-o", "openstack");
            line.option("-oo", format!("server-id={server_id}"));
            line.option("-oo", format!("guest-id={guest_id}"));
            line.option("-oo", format!("os-cloud={}", clouds::CLOUD));
            if let Some(volume_type) = volume_type_id {
                line.option("-os", volume_type);
            }
            if plan.insecure_connection {
                line.option("-oo", "verify-server-certificate=false");
            }
            name_local_guest(plan, line);
            let content = clouds::clouds_yaml(environment, plan.insecure_connection);
            line.env.push((
                "OS_CLIENT_CONFIG_FILE".to_owned(),
                Arg::SecretFile { prefix: String::new(), content },
            ));
            // Otherwise the caller's own OS_PASSWORD and the like would be mixed into the cloud of the file.
            line.env_without.push("OS_");
        }
        // -o json left with 2.1.1, -o kubevirt came with 2.1.12 (virt-v2v-output.md 9).
        Destination::Kubevirt { directory } if capabilities.has("output:kubevirt") => {
            format_and_allocation(plan, line);
            line.option("-o", "kubevirt");
            line.option("-os", directory);
            name_local_guest(plan, line);
        }
        Destination::Kubevirt { directory } => {
            line.option("-o", "json");
            line.option("-os", directory);
            line.option("-oo", "json-disks-pattern=disk%{DiskNo}/disk.img");
            name_local_guest(plan, line);
        }
    }
}

fn format_and_allocation(plan: &Plan, line: &mut CommandLine) {
    line.option("-of", plan.output_format.as_str());
    if let Some(allocation) = &plan.allocation {
        line.option("-oa", allocation);
    }
}

/// A local file has a guest name of its own, or none: the document's name wins. Names of a hypervisor stay, as they
/// always did.
fn name_local_guest(plan: &Plan, line: &mut CommandLine) {
    if matches!(plan.source, Source::Local(_)) {
        line.option("-on", &plan.vm_name);
    }
}

fn environment(plan: &Plan, paths: Paths<'_>, line: &mut CommandLine) {
    line.env("LANG", "C");
    // Messages stay English, names of guests need not be ASCII (virt-v2v-output.md 6).
    line.env("LC_ALL", "C.UTF-8");
    line.env("LIBGUESTFS_BACKEND", "direct");
    line.env("TMPDIR", paths.private_directory);
    line.env("VIRT_V2V_TMPDIR", paths.private_directory);
    if let Some(settings) = &plan.tools.libguestfs_backend_settings {
        line.env("LIBGUESTFS_BACKEND_SETTINGS", settings);
    }
    if let Some(virtio_win) = &plan.tools.virtio_win {
        line.env("VIRTIO_WIN", virtio_win);
    }
    if let (Source::Ssh { .. }, Some(socket)) = (&plan.source, paths.ssh_auth_sock) {
        line.env("SSH_AUTH_SOCK", socket);
    }
}

#[cfg(test)]
mod tests;
