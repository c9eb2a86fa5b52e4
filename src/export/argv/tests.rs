use std::path::PathBuf;

use super::*;
use crate::export::Program;
use crate::source::ssh::client::Host;

const ALL: Filters = Filters { cacheextents: true, retry: true, log: true };
const VERBOSE: &str = "-v|-D|nbdkit.backend.datapath=0";
const COMMON: &str =
    "-U|/p/nbdkit-7.sock|-P|/p/nbdkit-7.pid|--exit-with-parent|--readonly|--foreground|--exportname=/";
const SECRET: &str = "hunter2-never-plain";

fn vddk(snapshot: Option<&str>, transports: Option<&str>) -> Export {
    Export::Vddk {
        server: "vc.example.com".to_owned(),
        port: None,
        user: "administrator@vsphere.local".to_owned(),
        password: SECRET.into(),
        moref: "vm-62".to_owned(),
        thumbprint: "AA:BB".to_owned(),
        libdir: "/vddk".into(),
        file: "[ds 1] vm/disk,1.vmdk".to_owned(),
        snapshot: snapshot.map(str::to_owned),
        transports: transports.map(str::to_owned),
    }
}

fn at_port(port: u16) -> Export {
    let mut export = vddk(None, None);
    if let Export::Vddk { port: place, .. } = &mut export {
        *place = Some(port);
    }
    export
}

fn ssh(path: &str, port: Option<u16>, login: Login) -> Export {
    let (host, user) = ("esx".to_owned(), "root".to_owned());
    Export::Ssh { host, port, user, path: path.to_owned(), login, known_hosts: None }
}

fn image(path: &str, format: ImageFormat) -> Export {
    Export::Image { path: path.into(), format, window: None }
}

fn line(export: &Export, filters: Filters) -> CommandLine {
    let files = Files::new(Path::new("/p"), export.program(), 7);
    export.command_line(&files, filters, Some("/old".as_ref()))
}

fn words(line: &CommandLine) -> String {
    let words = line.args.iter().map(|arg| match arg {
        Arg::Plain(word) => word.to_str().unwrap().to_owned(),
        Arg::SecretFile { prefix, .. } => format!("{prefix}<sealed>"),
    });
    words.collect::<Vec<_>>().join("|")
}

#[test]
fn argv_is_the_contracts() {
    let none = Filters::default();
    let retry = Filters { retry: true, ..none };
    let agent = || Login::Agent("/p/agent".into());
    let filters = "--filter=cacheextents|--filter=retry|--filter=log";
    let plugin = "vddk|password=+<sealed>|vm=moref=vm-62|server=vc.example.com|thumbprint=AA:BB|libdir=/vddk|\
                  file=[ds 1] vm/disk,1.vmdk|user=administrator@vsphere.local";
    let log = "retries=1|retry-delay=1|logfile=/p/nbdkit-7.log|logappend=true";
    let qemu = "--read-only|--persistent|--shared=64|--socket=/p/qemu-nbd-7.sock|--pid-file=/p/qemu-nbd-7.pid|--image-opts";
    for (export, filters, expected) in [
        (vddk(None, None), ALL, format!("{VERBOSE}|-D|vddk.datapath=0|{COMMON}|{filters}|{plugin}|{log}")),
        (at_port(8989), none, format!("{VERBOSE}|-D|vddk.datapath=0|{COMMON}|{plugin}|port=8989")),
        (
            vddk(Some("snapshot-9"), Some("nbdssl:nbd")),
            retry,
            format!(
                "{VERBOSE}|-D|vddk.datapath=0|{COMMON}|--filter=retry|{plugin}|snapshot=snapshot-9|transports=nbdssl:nbd|retries=1|retry-delay=1"
            ),
        ),
        (
            ssh("/vmfs/volumes/ds/a.b/vm.1.vmdk", None, Login::Password(SECRET.into())),
            ALL,
            format!(
                "{VERBOSE}|{COMMON}|{filters}|ssh|password=+<sealed>|host=esx|path=/vmfs/volumes/ds/a.b/vm.1-flat.vmdk|user=root|{log}"
            ),
        ),
        (
            ssh("/vmfs/volumes/d.s/vm", Some(2222), agent()),
            none,
            format!("{VERBOSE}|{COMMON}|ssh|host=esx|path=/vmfs/volumes/d.s/vm-flat|user=root|port=2222"),
        ),
        (Export::File { path: "/a=b/c".into() }, ALL, format!("{COMMON}|file|file=/a=b/c")),
        (
            image("/a,b/json:{}", ImageFormat::Qcow2),
            ALL,
            format!("{qemu}|driver=qcow2,file.filename=/a,,b/json:{{}}"),
        ),
        (
            Export::Image {
                path: "/x,y.ova".into(),
                format: ImageFormat::Vmdk,
                window: Some(Window { offset: 1536, size: 512 }),
            },
            none,
            format!(
                "{qemu}|driver=vmdk,file.driver=raw,file.offset=1536,file.size=512,file.file.filename=/x,,y.ova"
            ),
        ),
        (image("nbd:x:1", ImageFormat::Vpc), none, format!("{qemu}|driver=vpc,file.filename=nbd:x:1")),
    ] {
        assert_eq!(words(&line(&export, filters)), expected);
    }
}

fn environment(line: &CommandLine, wanted: &str) -> Option<String> {
    line.env.iter().find(|(name, _)| name == wanted).map(|(_, arg)| match arg {
        Arg::Plain(value) => value.to_str().unwrap().to_owned(),
        Arg::SecretFile { .. } => panic!("{wanted} is a secret"),
    })
}

#[test]
fn only_vddk_sees_the_vddk_libraries() {
    let vddk = vddk(None, None);
    let files = Files::new(Path::new("/p"), Program::Nbdkit, 7);
    for (old, expected) in
        [(None, "/vddk/lib64"), (Some(""), "/vddk/lib64"), (Some("/x:/y"), "/vddk/lib64:/x:/y")]
    {
        let line = vddk.command_line(&files, ALL, old.map(OsStr::new));
        assert_eq!(environment(&line, "LD_LIBRARY_PATH").as_deref(), Some(expected));
    }
    for export in [
        ssh("/a.vmdk", None, Login::Agent("/agent".into())),
        Export::File { path: PathBuf::from("/a") },
        image("/a", ImageFormat::Vmdk),
    ] {
        assert_eq!(environment(&line(&export, ALL), "LD_LIBRARY_PATH"), None);
    }
}

#[test]
fn ssh_asks_the_jobs_agent_or_none() {
    let agent = line(&ssh("/a.vmdk", None, Login::Agent("/p/agent".into())), ALL);
    assert_eq!(environment(&agent, "SSH_AUTH_SOCK").as_deref(), Some("/p/agent"));
    let password = line(&ssh("/a.vmdk", None, Login::Password(SECRET.into())), ALL);
    assert_eq!(
        (environment(&password, "SSH_AUTH_SOCK"), password.env_without),
        (None, vec!["SSH_AUTH_SOCK"])
    );
}

#[test]
fn a_password_is_never_plain() {
    for export in [vddk(None, None), ssh("/a.vmdk", None, Login::Password(SECRET.into()))] {
        let line = line(&export, ALL);
        assert_eq!(line.secrets().len(), 1);
        assert!(!format!("{line:?}{export:?}{}", line.redacted()).contains(SECRET));
    }
}

/// The disk of another host comes to a socket of ours, through the loopback of that host, and nobody is asked anything.
#[test]
fn a_tunnel_ends_at_a_socket() {
    let host = Host {
        host: "192.0.2.7".to_owned(),
        port: None,
        user: "cloud-user".to_owned(),
        agent: "/p/agent".into(),
        known_hosts: None,
        any_key: true,
    };
    let export = Export::Tunnel { host, port: 33_437, disk: "/dev/vda".to_owned() };
    let line = line(&export, Filters::default());
    let words = words(&line);
    for part in ["-o|BatchMode=yes|-o|ConnectTimeout=10|", "|-o|StrictHostKeyChecking=no|", "|-l|cloud-user|"]
    {
        assert!(words.contains(part), "{words}");
    }
    assert!(words.ends_with("|-N|-L|/p/ssh-7.sock:127.0.0.1:33437|--|192.0.2.7"), "{words}");
    assert!(line.env.iter().any(|(name, value)| name == "SSH_AUTH_SOCK" && value.redacted() == "/p/agent"));
}
