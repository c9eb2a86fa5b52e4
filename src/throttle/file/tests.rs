//! Rules of the throttling file, with real files, on a clock that jumps to the next moment somebody waits for.

use std::os::unix::fs::{chown, symlink};

use super::*;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("throttling.json")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn watch(&self) -> Watch {
        Watch::new(self.path())
    }
}

async fn next(watch: &mut Watch) -> Result<Asked, FileError> {
    tokio::time::timeout(Duration::from_secs(60), watch.changed()).await.expect("a change within a minute")
}

fn network(asked: &Asked) -> String {
    asked.limits.network.map(|rate| rate.to_string()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_once_within_five_seconds_and_deleted() {
    let place = Place::new();
    place.write(r#"{"network": "1"}"#);
    let mut watch = place.watch();
    for limit in ["1", "2", "3"] {
        place.write(&format!(r#"{{"network": "{limit}", "else": 1}}"#));
        let begun = Instant::now();
        assert_eq!(network(&next(&mut watch).await.unwrap()), limit);
        assert!(begun.elapsed() <= Duration::from_secs(5));
        assert!(!place.path().exists());
        let idle = tokio::time::timeout(Duration::from_secs(12), watch.changed()).await;
        assert!(idle.is_err(), "nothing was asked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_still_being_written_is_waited_for() {
    let place = Place::new();
    place.write(r#"{"netw"#);
    let mut watch = place.watch();
    let writer = async {
        // Longer than the patience in all, shorter between two writes.
        for text in [r#"{"network": "#, r#"{"network": "12"#, r#"{"network": "12"}"#] {
            tokio::time::sleep(Duration::from_secs(2)).await;
            place.write(text);
        }
    };
    let (asked, ()) = tokio::join!(watch.changed(), writer);
    assert_eq!(network(&asked.unwrap()), "12");
    assert!(!place.path().exists());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_object_is_told_deleted_and_forgotten() {
    for text in ["{", "[]", "7", "{\"cpu\": 1} x", "\u{0}"] {
        let place = Place::new();
        place.write(text);
        let mut watch = place.watch();
        let begun = Instant::now();
        let error = next(&mut watch).await.unwrap_err().to_string();
        assert!(error.starts_with("Failed to read throttling file "), "{error}");
        assert!(error.contains("throttling.json") && begun.elapsed() >= PATIENCE, "{error}");
        assert!(!place.path().exists(), "{text}");
        place.write("{}");
        next(&mut watch).await.unwrap();
    }
    let place = Place::new();
    place.write(&" ".repeat(MOST as usize + 1));
    let error = next(&mut place.watch()).await.unwrap_err();
    assert!(matches!(error, FileError::TooLarge { .. }), "{error}");
    assert!(!place.path().exists());
}

#[tokio::test(start_paused = true)]
async fn an_empty_file_is_nothing_yet() {
    let place = Place::new();
    place.write("");
    let mut watch = place.watch();
    assert!(tokio::time::timeout(Duration::from_secs(60), watch.changed()).await.is_err());
    assert!(place.path().exists());
    place.write("{}");
    next(&mut watch).await.unwrap();
}

/// A link could name a file that only this user may read; a pipe would hold a reader up.
#[tokio::test(start_paused = true)]
async fn links_pipes_and_directories_are_left_alone_and_told_once() {
    let place = Place::new();
    let target = place.directory.path().join("target");
    std::fs::write(&target, r#"{"network": "1"}"#).unwrap();
    let make: [&dyn Fn(); 3] = [
        &|| symlink(&target, place.path()).unwrap(),
        &|| {
            nix::sys::stat::mknod(
                &place.path(),
                nix::sys::stat::SFlag::S_IFIFO,
                nix::sys::stat::Mode::S_IRUSR,
                0,
            )
            .unwrap();
        },
        &|| std::fs::create_dir(place.path()).unwrap(),
    ];
    for make in make {
        make();
        let mut watch = place.watch();
        let error = next(&mut watch).await.unwrap_err();
        assert!(matches!(error, FileError::NotPlain { .. }), "{error}");
        assert!(tokio::time::timeout(Duration::from_secs(60), watch.changed()).await.is_err(), "told once");
        assert!(place.path().symlink_metadata().is_ok(), "it is left alone");
        if std::fs::remove_file(place.path()).is_err() {
            std::fs::remove_dir(place.path()).unwrap();
        }
        place.write("{}");
        next(&mut watch).await.unwrap();
    }
    assert!(target.exists());
    let error = read(&{
        symlink(&target, place.path()).unwrap();
        place.path()
    });
    assert_eq!(
        error.unwrap_err().raw_os_error(),
        Some(libc::ELOOP),
        "also if it is put there between the calls"
    );
}

/// Needs root, to be somebody else.
#[tokio::test(start_paused = true)]
async fn sudos_user_finds_a_file_of_its_own_before_and_after() {
    let place = Place::new();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    place.write("stale");
    offer(&place.path(), Some((Uid::from_raw(4711), Gid::from_raw(4712)))).unwrap();
    let is_offered = || {
        let meta = place.path().symlink_metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.len()), (4711, 4712, 0));
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(place.directory.path()).unwrap().count(), 1);
    };
    is_offered();
    // As the user does: into the file that is there.
    place.write(r#"{"network": "1"}"#);
    let mut watch = place.watch();
    assert_eq!(network(&next(&mut watch).await.unwrap()), "1");
    is_offered();
    place.write(r#"{"network": "2"}"#);
    assert_eq!(network(&next(&mut watch).await.unwrap()), "2");
    chown(place.path(), Some(0), Some(0)).unwrap();
    place.write("{}");
    next(&mut watch).await.unwrap();
    assert!(!place.path().exists(), "of our own nothing stays");
}

#[test]
fn a_stale_file_does_not_limit_the_next_job() {
    let place = Place::new();
    place.write("{}");
    offer(&place.path(), None).unwrap();
    assert!(!place.path().exists());
    offer(&place.path(), None).unwrap();
    std::fs::create_dir(place.path()).unwrap();
    assert!(offer(&place.path(), None).unwrap_err().to_string().contains("throttling.json"));
}

#[test]
fn sudo_is_believed_only_when_it_names_another_user() {
    let user = |uid: Option<&str>, gid: Option<&str>| {
        let (uid, gid) = (uid.map(str::to_owned), gid.map(str::to_owned));
        sudo_user(|name| if name == "SUDO_UID" { uid.clone() } else { gid.clone() })
    };
    assert_eq!(user(Some("1000"), Some("100")), Some((Uid::from_raw(1000), Gid::from_raw(100))));
    for (uid, gid) in [
        (None, None),
        (Some("0"), Some("0")),
        (Some("x"), Some("1")),
        (Some("-1"), Some("1")),
        (Some("1"), None),
    ] {
        assert_eq!(user(uid, gid), None, "{uid:?}");
    }
}
