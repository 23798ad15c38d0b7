//! `check`, `schema`, `doc` and `hash-password` as a user meets them: the real binary, its output and exit codes.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the binary in `folder`; gives exit code, standard output and standard error.
fn septet(folder: &Path, args: &[&str], input: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_septet"));
    command.args(args).current_dir(folder).env_clear().env("VENDOR_SECRET", "hush");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the binary starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the binary reads");
    let output = child.wait_with_output().expect("the binary ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

const GOOD: &str = "[production]\nname = 'p'\n[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:2575'\n\
    targets = ['out']\n[operations.out]\ntype = 'file'\npath = 'out/{id}.hl7'\n";

#[test]
fn check_says_what_is_wrong_and_where_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("production.toml"), text).unwrap();

    write(GOOD);
    let (code, out, _) = septet(folder.path(), &["check", "."], "");
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("./production.toml:1:1: warning S0605") && out.ends_with("no errors, 1 warning\n"),
        "{out}"
    );

    write(&GOOD.replace("listen", "lisen").replace("'out']", "'aut']"));
    let (code, out, _) = septet(folder.path(), &["check", "production.toml"], "");
    assert_eq!(code, 1, "{out}");
    let expected = "production.toml:5:1: error S0102: unknown key lisen\n  |\n5 | lisen = '127.0.0.1:2575'\n  | ^^^^^\n  = did you mean listen?\n";
    assert!(out.contains(expected), "{out}");
    assert!(out.contains("production.toml:6:12: error S0201"), "{out}");

    let (code, out, _) = septet(folder.path(), &["check", "--json", "production.toml"], "");
    let problems: serde_json::Value = serde_json::from_str(&out).unwrap();
    let of = |code: &str| problems.as_array().unwrap().iter().find(|p| p["code"] == code).unwrap().clone();
    assert_eq!(code, 1);
    assert_eq!(of("S0102")["line"], 5);
    assert_eq!(of("S0102")["column"], 1);
    assert_eq!(of("S0102")["severity"], "error");
    assert_eq!(of("S0102")["suggestion"], "did you mean listen?");

    assert_eq!(septet(folder.path(), &["check", "nowhere"], "").0, 2);
    assert_eq!(septet(folder.path(), &["check"], "").0, 2);
    assert_eq!(septet(folder.path(), &["chek"], "").0, 2);
    assert_eq!(septet(folder.path(), &["check", "--explain", "S0102"], "").0, 0);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["production.toml"], "no store was made");
}

#[test]
fn the_shipped_productions_have_no_errors() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(folder.join("productions")).unwrap().flatten() {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        let (code, out, _) = septet(folder, &["check", path.to_str().unwrap()], "");
        assert_eq!(code, 0, "{out}");
    }
}

#[test]
fn schema_and_reference_cover_every_type() {
    let folder = tempfile::tempdir().unwrap();
    let (code, schema, _) = septet(folder.path(), &["schema"], "");
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let (_, doc, _) = septet(folder.path(), &["doc"], "");
    assert_eq!(code, 0);
    for (kind, name) in [("services", "hl7.mllp"), ("processes", "flow"), ("operations", "rest")] {
        assert!(schema["$defs"].get(format!("{kind}.{name}")).is_some(), "{name}");
        assert!(doc.contains(&format!("## {name} (")), "{name}");
    }
    let (code, one, _) = septet(folder.path(), &["doc", "router"], "");
    assert!(code == 0 && one.starts_with("## router (process)"), "{one}");
    let (code, _, error) = septet(folder.path(), &["doc", "ruoter"], "");
    assert!(code == 2 && error.contains("did you mean router?"), "{error}");
}

#[test]
fn a_password_becomes_a_salted_hash() {
    let folder = tempfile::tempdir().unwrap();
    let hash = |input| septet(folder.path(), &["hash-password"], input);
    let (code, one, error) = hash("secret word\n");
    assert_eq!(code, 0, "{error}");
    assert!(one.starts_with("$argon2id$v=19$") && one.trim().split('$').count() == 6, "{one}");
    assert_ne!(one, hash("secret word\n").1, "salted");
    assert_eq!(hash("\n").0, 2);
}
