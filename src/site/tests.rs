//! Rules of the site configuration.

use super::*;

fn parse(text: &str) -> Result<Site, String> {
    Site::parse(text, Path::new("/x/config.toml")).map_err(|error| error.to_string())
}

#[test]
fn every_key_is_read() {
    let site = parse(
        r#"
        layout = "uci"
        state_dir = "/s"
        log_dir = "/l"
        daemonize = false
        two_phase = "ignore"
        virt_v2v = "/b/v"
        virt_v2v_in_place = "/b/i"
        nbdkit = "/b/n"
        vddk_libdir = "/v"
        ca_bundle = "/c"
        virtio_win = "/w"
        tmp_dir = "/t"
        libguestfs_backend_settings = "force_tcg"
        patience_percent = 300
        "#,
    );
    let expected = Site {
        layout: Layout::Uci,
        state_dir: Some("/s".into()),
        log_dir: Some("/l".into()),
        daemonize: false,
        two_phase: TwoPhase::Ignore,
        virt_v2v: Some("/b/v".into()),
        virt_v2v_in_place: Some("/b/i".into()),
        nbdkit: Some("/b/n".into()),
        vddk_libdir: "/v".into(),
        ca_bundle: Some("/c".into()),
        virtio_win: Some("/w".into()),
        tmp_dir: "/t".into(),
        libguestfs_backend_settings: Some("force_tcg".into()),
        patience_percent: 300,
    };
    assert_eq!(site, Ok(expected));
    assert_eq!(parse(""), Ok(Site::default()));
}

#[test]
fn errors_name_the_file_and_the_key() {
    for (text, expected) in [
        ("layuot = \"job\"", "site configuration /x/config.toml: unknown key layuot"),
        ("[a]\nb = 1", "site configuration /x/config.toml: unknown key a"),
        ("daemonize = 1", "site configuration /x/config.toml: daemonize: expected a boolean, found a number"),
        ("layout = \"x\"", "site configuration /x/config.toml: layout: expected `job` or `uci`"),
        (
            "patience_percent = 0",
            "site configuration /x/config.toml: patience_percent: must be 1 to 10000, not 0",
        ),
        ("tmp_dir = \"t\"", "site configuration /x/config.toml: tmp_dir: t is not an absolute path"),
        ("nbdkit = \"nbdkit\"", "site configuration /x/config.toml: nbdkit: nbdkit is not an absolute path"),
        (
            "virtio_win = \"/\\u0000\"",
            "site configuration /x/config.toml: virtio_win: a path cannot hold a NUL character",
        ),
    ] {
        assert_eq!(parse(text), Err(expected.to_owned()));
    }
    let error = parse("layout = \"job\"\nx =").unwrap_err();
    assert!(error.starts_with("site configuration /x/config.toml: line 2: "), "{error}");
}

#[test]
fn a_named_file_counts_and_a_missing_one_means_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let env = |name: &str| (name == FILE_VARIABLE).then(|| file.clone().into_os_string());
    assert_eq!(Site::load(&env).unwrap(), Site::default());
    assert!(Site::missing_file(&env).unwrap().contains("c.toml"));
    std::fs::write(&file, "daemonize = false").unwrap();
    assert!(!Site::load(&env).unwrap().daemonize);
    assert_eq!(Site::missing_file(&env), None);
    if !Path::new(DEFAULT_FILE).exists() {
        assert_eq!(Site::load(&|_| None).unwrap(), Site::default());
    }
}

#[test]
fn directories_follow_layout_user_and_configuration() {
    let user = Caller { uid: 1000, home: Some("/home/u".into()), xdg_state_home: None };
    let xdg = Caller { xdg_state_home: Some("/xdg".into()), ..user.clone() };
    let root = Caller { uid: 0, ..user.clone() };
    for (text, caller, state, log) in [
        ("", &root, "/var/lib/virt-v2v-wrapper/jobs/T/state.json", "/var/log/virt-v2v-wrapper/T"),
        ("layout='uci'", &root, "/var/lib/uci/state.json", "/var/log/uci"),
        ("layout='uci'", &user, "/var/lib/uci/state.json", "/var/log/uci"),
        ("layout='uci'\nstate_dir='/s'\nlog_dir='/l'", &root, "/s/state.json", "/l"),
        ("state_dir='/s'\nlog_dir='/l'", &root, "/s/jobs/T/state.json", "/l/T"),
        ("state_dir='/s'", &root, "/s/jobs/T/state.json", "/var/log/virt-v2v-wrapper/T"),
        ("", &xdg, "/xdg/virt-v2v-wrapper/jobs/T/state.json", "/xdg/virt-v2v-wrapper/log/T"),
        (
            "",
            &user,
            "/home/u/.local/state/virt-v2v-wrapper/jobs/T/state.json",
            "/home/u/.local/state/virt-v2v-wrapper/log/T",
        ),
        ("state_dir='/s'", &user, "/s/jobs/T/state.json", "/s/log/T"),
    ] {
        let files = parse(text).unwrap().directories(caller).unwrap().job_files("T");
        assert_eq!((files.state(), files.log_directory.as_path()), (state.into(), Path::new(log)), "{text}");
    }
    assert!(matches!(
        Site::default().directories(&Caller { uid: 1, ..Caller::default() }),
        Err(SiteError::NoStateDirectory)
    ));
}

#[test]
fn programs_are_found_in_order_and_must_be_executable() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
    for (above, mode) in [(&a, 0o644), (&b, 0o755)] {
        std::fs::create_dir(above).unwrap();
        std::fs::write(above.join("tool"), "").unwrap();
        std::fs::set_permissions(above.join("tool"), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let path = std::env::join_paths([Path::new("."), &a, &b]).unwrap();
    assert_eq!(find_program(None, "tool", &[], Some(&path)).unwrap(), b.join("tool"));
    assert_eq!(find_program(None, "tool", &[&b], Some(OsStr::new(""))).unwrap(), b.join("tool"));
    let error = find_program(Some(&a.join("tool")), "tool", &[], Some(&path)).unwrap_err().to_string();
    assert!(error.ends_with("of the site configuration is not an executable file"), "{error}");
    let error = find_program(None, "no-such-tool", &[], Some(&path)).unwrap_err().to_string();
    assert_eq!(error, "no-such-tool is not installed: it is in no directory of PATH");
}
