use std::time::Instant;

use super::*;
use crate::export::Program;

const SECRET: &str = "hunter2-seen";

/// `/bin/sh` as a server that does what the script says; `$1` is its socket, `$2` a file with the password.
async fn start(directory: &Path, script: &str) -> Result<Server, ExportError> {
    let files = Files::new(directory, Program::Nbdkit, 1);
    let mut line = CommandLine::default();
    line.option("-c", script);
    line.option("sh", &files.socket);
    line.args.push(crate::v2v::args::Arg::SecretFile { prefix: String::new(), content: SECRET.into() });
    let patience = Duration::from_millis(500);
    Server::start_within(patience, Path::new("/bin/sh"), "test", "disk 1".to_owned(), line, files).await
}

async fn failure(script: &str) -> ExportError {
    let directory = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let error = start(directory.path(), script).await.err().expect("nothing serves");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let left = Files::new(directory.path(), Program::Nbdkit, 1);
    assert!(!left.socket.exists() && !left.pid.exists());
    error
}

#[tokio::test]
async fn a_dead_server_is_told_by_its_last_error_without_secrets() {
    let script = "echo 'nbdkit: error: first' >&2; echo \"nbdkit: x: error: bad $(cat $2), sorry\" >&2; echo bye; exit 3";
    let error = failure(script).await;
    assert_eq!(error.to_string(), "/bin/sh cannot serve disk 1: bad ***, sorry");
    assert!(matches!(error, ExportError::Ended { exit: Exit::Code(3), .. }));
    assert_eq!(failure("kill -9 $$").await.to_string(), "/bin/sh cannot serve disk 1: signal 9 killed it");
}

#[tokio::test]
async fn a_silent_server_is_stopped_when_its_time_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let error =
        start(directory.path(), &format!("echo $$ > {}; sleep 60", pid.display())).await.err().unwrap();
    assert_eq!(error.to_string(), "/bin/sh did not serve disk 1 within 0 s: it said nothing");
    let pid = Pid::from_raw(std::fs::read_to_string(pid).unwrap().trim().parse().unwrap());
    assert_eq!(process::exit_of(pid), Some(Exit::Signal(15)));
}

#[tokio::test]
async fn a_socket_path_the_kernel_refuses_is_told_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("x".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let error = start(&deep, "touch $(dirname $1)/started").await.err().unwrap();
    assert!(matches!(error, ExportError::LongPath { .. }), "{error}");
    assert!(error.to_string().contains("set tmp_dir"), "{error}");
    assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::new(directory.path(), Program::QemuNbd, 1);
    let program = Path::new("/nowhere/qemu-nbd");
    let error =
        Server::start(program, "test", "d".to_owned(), CommandLine::default(), files).await.err().unwrap();
    assert_eq!(error.to_string(), "cannot start /nowhere/qemu-nbd for d");
}

#[test]
fn the_last_error_is_found_among_what_a_server_says() {
    for (log, expected) in [
        ("nbdkit: error: a\nnbdkit: vddk[1]: error: b\nnbdkit: debug: c\n", Some("b")),
        ("qemu-nbd: Could not open 'x'\nqemu-nbd: debug: y\n", Some("Could not open 'x'")),
        ("nbdkit: error while loading shared libraries\n", Some("error while loading shared libraries")),
        ("Segmentation fault\nnbdkit: debug: z\n", Some("Segmentation fault")),
        ("nbdkit: debug: z\r\n\r\n", None),
        ("", None),
    ] {
        let program = if log.starts_with("qemu") { "qemu-nbd" } else { "nbdkit" };
        assert_eq!(last_error(log, program).as_deref(), expected, "{log}");
    }
}

#[test]
fn only_whole_lines_of_this_server_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    std::fs::write(&log, "earlier\nnow\n").unwrap();
    assert_eq!(log_end(&log, 8).unwrap(), "now\n");
    std::fs::write(&log, format!("{}\nthe end\n", "x".repeat(LOG_END as usize))).unwrap();
    assert_eq!(log_end(&log, 0).unwrap(), "the end\n");
}

#[tokio::test]
async fn whatever_listens_there_is_not_believed() {
    use tokio::io::AsyncWriteExt;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let mut endless = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    for _ in 0..100 {
        endless.extend(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x06\0\0\0\x03\0\0\0\0");
    }
    let mut huge = b"NBDMAGICIHAVEOPT\0\x03\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x06\0\0\0\x03".to_vec();
    huge.extend([0xff; 4]);
    for bytes in [b"".to_vec(), b"SSH-2.0-x\r\n".repeat(3), endless, huge] {
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        };
        let (answer, _stream) = tokio::join!(greeting::ask(&socket), serve);
        assert!(answer.is_err(), "{bytes:?}");
        std::fs::remove_file(&socket).unwrap();
    }
}

/// A server that runs, without having been asked whether it serves.
fn running(directory: &Path, script: &str) -> Server {
    let files = Files::new(directory, Program::Nbdkit, 1);
    for path in [&files.socket, &files.pid] {
        std::fs::write(path, "").unwrap();
    }
    let mut tool = Tool::new(Path::new("/bin/sh"), "test");
    tool.command().args(["-c", script]);
    let (program, scrubber) = (PathBuf::from("/bin/sh"), Scrubber::default());
    Server { pid: tool.spawn().unwrap(), program, disk: "disk 1".to_owned(), files, scrubber, log_start: 0 }
}

#[tokio::test]
async fn a_stopped_or_dropped_server_leaves_no_process_socket_or_pid_file() {
    let directory = tempfile::tempdir().unwrap();
    let left = || std::fs::read_dir(directory.path()).unwrap().count();

    let server = running(directory.path(), "sleep 60");
    let pid = server.pid();
    server.stop().await;
    assert_eq!((process::exit_of(pid), left()), (Some(Exit::Signal(15)), 0));

    let server = running(directory.path(), "trap '' TERM; while :; do sleep 1; done");
    let pid = server.pid();
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.stop_within(Duration::from_millis(200)).await;
    assert_eq!((process::exit_of(pid), left()), (Some(Exit::Signal(9)), 0));

    let server = running(directory.path(), "sleep 60");
    let pid = server.pid();
    drop(server);
    assert_eq!((process::ended(pid).await, left()), (Exit::Signal(9), 0));
}
