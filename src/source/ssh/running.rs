//! Is a virtual machine on a host running? Asked before its disks are read. Pure but for the one question.
//!
//! A running ESXi keeps `<name>.vmx.lck` beside the vmx file for as long as the machine is powered on, wherever it runs
//! (datastores are shared); `esxcli` knows the machines of its own host. A host that is neither (a file server with the
//! datastore on it) cannot tell.

use super::client::{ClientError, Host, quote};

/// The list of a host with a thousand machines has 300 KiB.
const MOST_SAID: usize = 4 << 20;

/// What a host says of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It is powered on.
    On,
    /// The lock file is there, and this host does not run the machine: another one does, or one died.
    Locked,
    /// It is powered off.
    Off,
    /// Nobody there knows.
    Unknown,
}

/// Asks the host.
pub(super) async fn ask(host: &Host, tag: &str, vmx: &str) -> Result<Power, ClientError> {
    let output =
        host.run(tag, &question(vmx), "tell whether the virtual machine is running", MOST_SAID).await?;
    Ok(answer(&String::from_utf8_lossy(&output), vmx))
}

/// For any login shell; busybox has all of it.
fn question(vmx: &str) -> String {
    let script = format!(
        "v={}; if [ -e \"$v.lck\" ]; then echo locked; fi; \
         if command -v esxcli >/dev/null 2>&1 && l=$(esxcli vm process list); then \
         echo listed; readlink -f \"$v\"; printf '%s\\n' \"$l\"; fi; echo end",
        quote(vmx)
    );
    format!("sh -c {}", quote(&script))
}

fn answer(output: &str, vmx: &str) -> Power {
    // The answer's lines could not be told from the path's.
    if vmx.contains(char::is_control) || output.trim_end().lines().next_back() != Some("end") {
        return Power::Unknown;
    }
    let mut lines = output.lines().peekable();
    let locked = lines.next_if_eq(&"locked").is_some();
    if lines.next() != Some("listed") {
        return if locked { Power::Locked } else { Power::Unknown };
    }
    let real = lines.next().unwrap_or_default();
    let mut alike = false;
    for file in lines.filter_map(|line| line.trim().strip_prefix("Config File:")).map(str::trim) {
        if file == vmx || (file == real && !real.is_empty()) {
            return Power::On;
        }
        alike |= tail(file) == tail(vmx);
    }
    match (locked, alike) {
        (true, _) => Power::Locked,
        // The same directory and name by another way: perhaps the same machine.
        (false, true) => Power::Unknown,
        (false, false) => Power::Off,
    }
}

/// Directory and name.
fn tail(path: &str) -> (Option<&str>, &str) {
    match path.rsplit_once('/') {
        Some((above, name)) => (Some(above.rsplit('/').next().unwrap_or(above)), name),
        None => (None, path),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VMX: &str = "/vmfs/volumes/ds/web 1/web 1.vmx";
    const REAL: &str = "/vmfs/volumes/5d1b-77/web 1/web 1.vmx";

    /// As ESXi 7 lists its machines.
    fn list(files: &[&str]) -> String {
        let machine = |file: &&str| {
            format!(
                "web\n   World ID: 2100\n   Process ID: 0\n   Display Name: web\n   Config File: {file}\n\n"
            )
        };
        files.iter().map(machine).collect()
    }

    #[test]
    fn only_what_is_known_to_be_off_counts_as_off() {
        let listed = |locked: &str, files: &[&str]| format!("{locked}listed\n{REAL}\n{}\nend\n", list(files));
        for (output, power) in [
            (listed("", &["/vmfs/volumes/5d1b-77/other/other.vmx"]), Power::Off),
            (listed("", &[]), Power::Off),
            (listed("", &["/vmfs/volumes/5d1b-77/a/a.vmx", REAL]), Power::On),
            (listed("locked\n", &[VMX]), Power::On),
            (listed("locked\n", &[]), Power::Locked),
            (listed("", &["/vmfs/volumes/other/web 1/web 1.vmx"]), Power::Unknown),
            ("locked\nend\n".to_owned(), Power::Locked),
            ("end\n".to_owned(), Power::Unknown),
            (format!("listed\n{REAL}\n"), Power::Unknown),
            ("".to_owned(), Power::Unknown),
            ("Welcome!\nlisted\nend\n".to_owned(), Power::Unknown),
        ] {
            assert_eq!(answer(&output, VMX), power, "{output}");
        }
        assert_eq!(answer(&listed("", &[]), "/a\nb.vmx"), Power::Unknown);
    }

    /// The real shell understands the question, whatever the path, and the answer is understood.
    #[test]
    fn the_question_is_asked_in_the_shells_own_words() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("it's $HOME \"real\"");
        std::fs::create_dir(&real).unwrap();
        let vmx = real.join("a `b`.vmx");
        std::fs::write(&vmx, "").unwrap();
        std::os::unix::fs::symlink(&real, directory.path().join("link")).unwrap();
        let linked = directory.path().join("link/a `b`.vmx");
        let linked = linked.to_str().unwrap();
        let ask = || {
            let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
            let mut shell = std::process::Command::new("sh");
            let output = shell.arg("-c").arg(question(linked)).env("PATH", path).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            answer(std::str::from_utf8(&output.stdout).unwrap(), linked)
        };
        assert_eq!(ask(), Power::Unknown);
        let esxcli = directory.path().join("esxcli");
        let lists = |text: &str| {
            let script =
                format!("#!/bin/sh\n[ \"$*\" = 'vm process list' ] || exit 1\ncat <<'E'\n{text}\nE\n");
            std::fs::write(&esxcli, script).unwrap();
            std::fs::set_permissions(&esxcli, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        lists("");
        assert_eq!(ask(), Power::Off);
        lists(&list(&[vmx.to_str().unwrap()]));
        assert_eq!(ask(), Power::On, "by its real path");
        lists("");
        std::fs::write(real.join("a `b`.vmx.lck"), "").unwrap();
        assert_eq!(ask(), Power::Locked);
    }

    proptest! {
        #[test]
        fn no_answer_panics(output in "(locked\n|listed\n|end\n|\\PC{0,9}\n|Config File: /?\n){0,6}", vmx: String) {
            answer(&output, &vmx);
        }
    }
}
