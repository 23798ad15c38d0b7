//! Productions of several files, the files that settings name, and what the environment overrides.

use std::path::Path;

use super::*;
use crate::clock::{Clock as _, SystemClock};
use crate::config::load::{Loaded, load, load_all, load_sources};

/// Writes files into a folder and loads it; gives the problems with names relative to the folder.
fn folder(files: &[(&str, &str)], env: &Env) -> (tempfile::TempDir, Loaded, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let loaded = load(dir.path(), &classes::registry(), env);
    let all: Vec<_> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    let text = all.join("\n").replace(&format!("{}/", dir.path().display()), "");
    (dir, loaded, text)
}

const MAIN: &str = "include = ['parts/*.toml', 'more.toml']\n[production]\nname = 'p'\n[store]\nretention = '30d'\n\
    [operations.out]\ntype = 'file'\npath = 'x'\n";

const PART: &str = "[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = 'out'\n\
    tls = { cert = 'c.pem', key = 'c.pem' }\ndescription = '${file:note.txt}'\n";

/// A certificate and its key in one file.
const PEM: &str = concat!(
    include_str!("../../../../tests/tls/server.pem"),
    include_str!("../../../../tests/tls/server.key")
);

#[test]
fn included_files_are_merged_and_their_paths_are_relative_to_them() {
    let files = [
        ("production.toml", MAIN),
        ("parts/a.toml", PART),
        ("parts/c.pem", PEM),
        ("parts/note.txt", "a\nb\n"),
        ("more.toml", ""),
    ];
    let (dir, loaded, text) = folder(&files, &Env::empty());
    assert_eq!(text, "");
    let plan = loaded.plan.unwrap();
    assert_eq!(plan.item(&"in".into()).unwrap().common.description.as_deref(), Some("a\nb"));
    assert_eq!(plan.store.path, dir.path().join("data"));
    let names: Vec<_> = plan.sources.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["production.toml", "parts/a.toml", "more.toml"]);

    // What was kept loads again, without the files (those that references name are read anew).
    for name in ["production.toml", "parts/a.toml", "more.toml"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    let again = load_sources(&plan.sources, dir.path(), &classes::registry(), &Env::empty());
    let again = again.plan.unwrap();
    assert_eq!(again.version, plan.version);
    assert_eq!(again.item(&"in".into()).unwrap().fingerprint, plan.item(&"in".into()).unwrap().fingerprint);
}

#[test]
fn certificates_that_no_peer_would_accept_are_found_before_anything_runs() {
    let made = |from: (i32, u8, u8), until: (i32, u8, u8)| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        parameters.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let soon =
        SystemClock.now().to_zoned(jiff::tz::TimeZone::UTC).date().checked_add(jiff::Span::new().days(9));
    let soon = soon.unwrap();
    let month = u8::try_from(soon.month()).unwrap();
    let (good, key) = made((2020, 1, 1), (2120, 1, 1));
    let (expired, expired_key) = made((2020, 1, 1), (2021, 1, 1));
    let (later, later_key) = made((2110, 1, 1), (2120, 1, 1));
    let (short, short_key) =
        made((2020, 1, 1), (i32::from(soon.year()), month, u8::try_from(soon.day()).unwrap()));
    let say = |cert: &str, key: &str| {
        let part = "[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = 'out'\n\
            tls = { cert = 'cert.pem', key = 'key.pem' }\n";
        let main = MAIN.replace("'parts/*.toml', 'more.toml'", "'part.toml'");
        let files =
            [("production.toml", main.as_str()), ("part.toml", part), ("cert.pem", cert), ("key.pem", key)];
        folder(&files, &Env::empty()).2
    };
    assert_eq!(say(&good, &key), "");
    assert_eq!(
        say(&expired, &expired_key),
        "part.toml:5:16: error S0621: the certificate of cert.pem expired at 2021-01-01T00:00:00Z"
    );
    assert_eq!(
        say(&later, &later_key),
        "part.toml:5:16: error S0621: the certificate of cert.pem is valid from 2110-01-01T00:00:00Z"
    );
    assert!(
        say(&short, &short_key).starts_with("part.toml:5:16: warning S0622: the certificate of cert.pem")
    );
    assert_eq!(say(&good, &short_key), "part.toml:5:34: error S0621: key.pem is not the key of cert.pem");
    assert_eq!(
        say("x", &good),
        "part.toml:5:16: error S0621: cert.pem holds no certificate in PEM form\n\
         part.toml:5:34: error S0621: key.pem holds no private key in PEM form"
    );
}

#[test]
fn what_two_files_define_is_an_error_that_names_both() {
    let twice = "[operations.out]\ntype = 'file'\npath = 'y'\n[services.out]\ntype = 'hl7.mllp'\n[store]\nretention = '1d'\n";
    let files = [("production.toml", MAIN), ("more.toml", twice)];
    insta::assert_snapshot!(folder(&files, &Env::empty()).2, @r##"
production.toml:1:12: warning S0003: no file matches parts/*.toml
more.toml:1:13: error S0004: out is defined twice: first at production.toml:6:13
more.toml:4:11: error S0004: out is defined twice: first at production.toml:6:13
more.toml:7:1: error S0004: retention is defined twice: first at production.toml:5:1
"##);
    let files =
        [("production.toml", MAIN), ("parts/a.toml", "[processes.p]\ntipe = 'x'"), ("more.toml", "a = ")];
    insta::assert_snapshot!(folder(&files, &Env::empty()).2, @r##"
production.toml:6:13: warning S0401: nothing leads to out
parts/a.toml:1:1: error S0103: type is missing
more.toml:1:1: error S0102: unknown key a
more.toml:1:5: error S0002: string values must be quoted, expected literal string
"##);
    insta::assert_snapshot!(folder(&[("production.toml", "include = 5\n[production]\nname = 'x'")], &Env::empty()).2, @r##"
production.toml:1:1: warning S0605: nothing is ever purged: neither retention nor max_size is set
production.toml:1:11: error S0104: expected a list of files such as ["interfaces/*.toml"]
"##);
    insta::assert_snapshot!(folder(&[], &Env::empty()).2, @"production.toml:1:1: error S0001: production.toml cannot be read: no such file or directory");
}

#[test]
fn the_environment_overrides_store_admin_and_log() {
    let env: Env = [
        ("SEPTET__STORE__PATH", "/var/0123"),
        ("SEPTET__STORE__ENCRYPT_BODIES", "true"),
        ("SEPTET__STORE__KEY", "0123456789012345678901234567890123456789012345678901234567890123"),
        ("SEPTET__ADMIN__LISTEN", "127.0.0.1:1"),
        ("SEPTET__LOG__LEVEL", "debug"),
        ("SEPTET_URL", "http://elsewhere"),
    ]
    .into_iter()
    .collect();
    let dir = tempfile::tempdir().unwrap();
    let loaded = load_text(&around(""), dir.path(), &classes::registry(), &env);
    assert_eq!(loaded.diagnostics, []);
    let plan = loaded.plan.unwrap();
    assert_eq!(plan.store.path, Path::new("/var/0123"));
    assert!(plan.store.encrypt_bodies && plan.store.key.is_some_and(|key| key.reveal().starts_with("0123")));
    assert_eq!(plan.admin.unwrap().listen.port(), 1);
    assert_eq!(plan.log.level.as_deref(), Some("debug"));
    assert!(plan.sources.iter().all(|(name, _)| name == "production.toml"), "overrides are no files");

    let env = [("SEPTET__STORE__PTAH", "x"), ("SEPTET__STORE__MEMORY", "lots"), ("SEPTET__SERVICES__X", "y")];
    insta::assert_snapshot!(problems_with(&around(""), &env.into_iter().collect()), @r##"
$SEPTET__SERVICES__X:1:1: warning S0113: SEPTET__SERVICES__X overrides nothing (only [store], [admin] and [log] are overridden from the environment)
$SEPTET__STORE__MEMORY:1:1: error S0105: expected a size such as "16MiB": a number with B, KiB, MiB, GiB or TiB
$SEPTET__STORE__PTAH:1:1: error S0102: unknown key ptah (did you mean path?)
"##);
}

#[test]
fn overrides_are_refused_where_several_productions_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("production.toml"), around("")).unwrap();
    let env: Env = [("SEPTET__STORE__PATH", "/x")].into_iter().collect();
    let paths = [dir.path().to_owned(), dir.path().to_owned()];
    for loaded in load_all(&paths, &classes::registry(), &env) {
        assert_eq!(loaded.diagnostics.iter().map(|d| d.code).collect::<Vec<_>>(), ["S0112"]);
    }
    let codes = |text: &str| {
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("production.toml"), text).unwrap();
        let paths = [dir.path().to_owned(), other.path().to_owned()];
        let all = load_all(&paths, &classes::registry(), &Env::empty());
        assert_eq!(all[0].errors(), 0);
        all[1].diagnostics.iter().map(|d| format!("{} {}:{}", d.code, d.line, d.column)).collect::<Vec<_>>()
    };
    assert_eq!(codes(&around("")), ["S0212 6:11"]);
    assert_eq!(codes(&around("").replace("127.0.0.1:2575", "127.0.0.1:2576")), Vec::<String>::new());
    let path = dir.path().join("data").display().to_string();
    let folder = dir.path().file_name().unwrap().display().to_string();
    for path in [path, format!("../{folder}/./data")] {
        assert_eq!(
            codes(&around("").replace(":2575", ":2576").replace("'data'", &format!("'{path}'"))),
            ["S0611 3:2"]
        );
    }
    assert_eq!(load_all(&paths[..1], &classes::registry(), &env)[0].errors(), 0);
}
