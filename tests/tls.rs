//! TLS on every listener and every client at once, with authorities that openssl made: who is let in, who is not,
//! and that files which change are read again.

use std::io::Write as _;
use std::process::{Command, Stdio};

use reqwest::{Certificate, Client, Identity};
use serde_json::Value;

use crate::support::issuer::Issuer;
use crate::support::mllp::oru;
use crate::support::pki::Pki;
use crate::support::{Septet, files_below, free_port};

/// A message that comes over plain MLLP goes out over MLLP, HL7 over HTTPS and REST, twice: each with TLS, a
/// client certificate and trust of its own. The other ends are the same production's listeners.
const PRODUCTION: &str = r#"
[production]
name = "tls"
[store]
path = "data"
retention = "1d"
[admin]
listen = "127.0.0.1:{admin}"

[services.feed]
type = "hl7.mllp"
listen = "127.0.0.1:{feed}"
targets = ["over_mllp", "over_http", "notes"]

[operations.over_mllp]
type = "hl7.mllp"
connect = "127.0.0.1:{mllps}"
stay_connected = false
retry_interval = "100ms"
tls = { ca = "tls/servers.pem", cert = "tls/client.pem", key = "tls/client.key" }

[operations.over_http]
type = "hl7.http"
url = "https://localhost:{https}/hl7"
oauth = "tokens"
retry_interval = "100ms"
tls = { ca = "tls/servers.pem", cert = "tls/client.pem", key = "tls/client.key" }

# The token endpoint trusts other clients and is trusted for other reasons than the API.
[oauth.tokens]
issuer = "https://localhost:{auth}"
grant = "client_credentials"
client_id = "lab"
client_secret = "${env:NO_SUCH_VARIABLE:-secret}"
tls = { ca = "tls/issuers.pem", cert = "tls/caller.pem", key = "tls/caller.key" }

[processes.notes]
type = "flow"
steps = [
  { send = "over_rest", message = "Note", with = "{ id: request.controlId }" },
  { send = "over_pinned", message = "Note", with = "{ id: request.controlId }" },
]
[messages.Note]
id = "string"

# The certificate there is for another name: one operation expects it, the other knows the very certificate.
[operations.over_rest]
type = "rest"
url = "https://127.0.0.1:{rest}"
retry_interval = "100ms"
tls = { ca = "tls/servers.pem", server_name = "vendor.example", cert = "tls/client.pem", key = "tls/client.key" }
[operations.over_rest.requests.Note]
method = "POST"
path = "/notes"
[operations.over_pinned]
type = "rest"
url = "https://127.0.0.1:{rest}"
retry_interval = "100ms"
tls = { pin = "{pin}", cert = "tls/client.pem", key = "tls/client.key" }
[operations.over_pinned.requests.Note]
method = "POST"
path = "/notes"

[services.mllps]
type = "hl7.mllp"
listen = "127.0.0.1:{mllps}"
targets = ["out"]
tls = { cert = "tls/server.pem", key = "tls/server.key", client_ca = "tls/clients.pem" }

[services.https]
type = "hl7.http"
listen = "127.0.0.1:{https}"
path = "/hl7"
targets = ["out"]
tls = { cert = "tls/server.pem", key = "tls/server.key", client_ca = "tls/clients.pem" }
[services.https.auth]
issuer = "https://localhost:{auth}"
tls = { ca = "tls/issuers.pem", cert = "tls/caller.pem", key = "tls/caller.key" }

[services.rest]
type = "http"
listen = "127.0.0.1:{rest}"
path = "/notes"
message = "Note"
targets = ["out"]
tls = { cert = "tls/vendor.pem", key = "tls/vendor.key", client_ca = "tls/clients.pem" }

[services.auth]
type = "oauth.server"
listen = "127.0.0.1:{auth}"
issuer = "https://localhost:{auth}"
scopes = { x = "X" }
tls = { cert = "tls/issuer.pem", key = "tls/issuer.key", client_ca = "tls/callers.pem" }
[services.auth.clients.lab]
secret = "${env:NO_SUCH_VARIABLE:-secret}"

[operations.out]
type = "file"
path = "out/{id}"
"#;

const LOCAL: &str = "DNS:localhost,IP:127.0.0.1";

/// What openssl's own client is told when it sends a message over MLLP.
fn s_client(pki: &Pki, port: &str, identity: Option<&str>) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-CAfile"]).arg(pki.path("servers.pem"));
    command.args(["-connect", &format!("127.0.0.1:{port}")]);
    if let Some(name) = identity {
        command.arg("-cert").arg(pki.path(&format!("{name}.pem")));
        command.arg("-key").arg(pki.path(&format!("{name}.key")));
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl");
    let mut input = child.stdin.take().expect("a pipe");
    // A refused client's pipe is broken.
    let _ = input.write_all(&[b"\x0b", oru("S1", "A", "M").as_bytes(), b"\x1c\x0d"].concat());
    let mut output = child.stdout.take().expect("a pipe");
    let mut said = Vec::new();
    let mut chunk = [0; 1024];
    while !said.windows(2).any(|pair| pair == b"\x1c\x0d") {
        match std::io::Read::read(&mut output, &mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(read) => said.extend_from_slice(&chunk[..read]),
        }
    }
    drop(input);
    let _ = child.kill();
    let _ = child.wait();
    String::from_utf8_lossy(&said).into_owned()
}

async fn written(septet: &Septet, count: usize) {
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while files_below(&septet.path("out")).len() < count {
        let queues = septet.get("/api/v1/queues").await;
        assert!(std::time::Instant::now() < deadline, "{count} messages: {queues:#}\n{}", septet.log());
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_and_every_client_has_its_own_trust_and_reads_changed_files_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(pki) = Pki::new(&folder.path().join("tls")) else { return };
    for authority in ["servers", "clients", "issuers", "callers", "strangers"] {
        pki.authority(authority);
    }
    pki.certificate("server", "servers", LOCAL, 365);
    pki.certificate("vendor", "servers", "DNS:vendor.example", 365);
    pki.certificate("issuer", "issuers", LOCAL, 365);
    pki.certificate("client", "clients", "DNS:client", 365);
    pki.certificate("caller", "callers", "DNS:caller", 365);
    pki.certificate("stranger", "strangers", LOCAL, 365);
    let ports: Vec<(&str, String)> =
        ["feed", "mllps", "https", "rest", "auth"].map(|name| (name, free_port().to_string())).to_vec();
    let text = PRODUCTION.replace("{pin}", &pki.pin("vendor"));
    let text = ports.iter().fold(text, |text, (name, port)| text.replace(&format!("{{{name}}}"), port));
    let port = |name: &str| ports.iter().find(|(known, _)| *known == name).unwrap().1.clone();
    let mut septet = Septet::write(&text);
    std::os::unix::fs::symlink(folder.path().join("tls"), septet.path("tls")).unwrap();
    septet.run().await;
    let send = |id: &str| {
        let message = folder.path().join(format!("{id}.hl7"));
        std::fs::write(&message, oru(id, "A1", "M1")).unwrap();
        let target = format!("mllp://127.0.0.1:{}", port("feed"));
        let sent = septet.command(&["send", &target, message.to_str().unwrap()]);
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    };

    // All four ways.
    send("M1");
    written(&septet, 4).await;

    // Strangers: no certificate, and one of somebody else.
    assert!(s_client(&pki, &port("mllps"), Some("client")).contains("MSA|AA|S1"));
    for identity in [None, Some("stranger")] {
        assert_eq!(s_client(&pki, &port("mllps"), identity), "", "{identity:?}");
        for (door, path) in [("https", "/hl7"), ("rest", "/notes"), ("auth", "/oauth2/token")] {
            let mut builder = Client::builder().tls_certs_only(["servers", "issuers"].map(|name| {
                Certificate::from_pem(&std::fs::read(pki.path(&format!("{name}.pem"))).unwrap()).unwrap()
            }));
            if let Some(name) = identity {
                let mut pem = std::fs::read(pki.path(&format!("{name}.pem"))).unwrap();
                pem.extend(std::fs::read(pki.path(&format!("{name}.key"))).unwrap());
                builder = builder.identity(Identity::from_pem(&pem).unwrap());
            }
            let host = if door == "rest" { "vendor.example" } else { "localhost" };
            let number = port(door).parse().unwrap();
            let client =
                builder.resolve(host, std::net::SocketAddr::from(([127, 0, 0, 1], number))).build().unwrap();
            let answer = client.post(format!("https://{host}:{number}{path}")).body("x").send().await;
            assert!(answer.is_err(), "{door} answered {identity:?}");
        }
    }
    written(&septet, 5).await;
    assert_eq!(files_below(&septet.path("out")).len(), 5, "nothing of a stranger is stored");

    // The listeners get a certificate of an authority that the clients do not trust yet.
    pki.authority("renewed");
    pki.certificate("server-renewed", "renewed", LOCAL, 365);
    pki.replace("server", "server-renewed");
    send("M2");
    let failing = |queues: &Value| {
        let waits = |item: &str| {
            let all = queues["queues"].as_array().unwrap();
            let queue = all.iter().find(|queue| queue["item"] == item).unwrap();
            queue["head"]["last_error"].as_str().is_some_and(|error| error.contains("certificate"))
        };
        // HTTP goes on over the connection it has.
        waits("over_mllp")
    };
    septet.until("/api/v1/queues", failing).await;
    pki.replace("servers", "renewed");
    written(&septet, 8).await;

    // Then the clients, too: the listeners trust another authority, and the clients have its certificate.
    pki.authority("clients-renewed");
    pki.certificate("client-renewed", "clients-renewed", "DNS:client", 365);
    pki.replace("clients", "clients-renewed");
    pki.replace("client", "client-renewed");
    assert_eq!(s_client(&pki, &port("mllps"), Some("stranger")), "");
    assert!(s_client(&pki, &port("mllps"), Some("client")).contains("MSA|AA|S1"));

    // What only running can tell: a key that went away since. The item says so, and starts when it is back.
    std::fs::rename(pki.path("server.key"), pki.path("gone.key")).unwrap();
    septet.post("/api/v1/items/mllps/restart", Value::Null).await;
    let state = |items: &Value, wanted: &str| {
        let mllps = items["items"].as_array().unwrap().iter().find(|item| item["name"] == "mllps").cloned();
        mllps.is_some_and(|item| {
            item["state"] == wanted
                && (wanted == "running" || item["last_error"].to_string().contains("server.key"))
        })
    };
    septet.until("/api/v1/items", |items| state(items, "faulted")).await;
    std::fs::rename(pki.path("gone.key"), pki.path("server.key")).unwrap();
    septet.post("/api/v1/items/mllps/start", Value::Null).await;
    septet.until("/api/v1/items", |items| state(items, "running")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_asks_for_client_certificates_and_takes_bound_tokens_with_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let Some(pki) = Pki::new(&folder.path().join("tls")) else { return };
    pki.authority("ca");
    pki.certificate("server", "ca", LOCAL, 365);
    for name in ["ann", "bob"] {
        pki.certificate(name, "ca", "DNS:client", 365);
    }
    let issuer = Issuer::start().await;
    let text = format!(
        "[production]\nname = 'a'\n[store]\npath = 'data'\nretention = '1d'\n[admin]\nlisten = '127.0.0.1:{{admin}}'\n\
         tls = {{ cert = 'tls/server.pem', key = 'tls/server.key', client_ca = 'tls/ca.pem' }}\n\
         auth = {{ issuer = '{}', audience = 'a', certificate_bound = true }}\nroles = {{ look = 'viewer' }}\n",
        issuer.url
    );
    let mut septet = Septet::write(&text);
    std::os::unix::fs::symlink(folder.path().join("tls"), septet.path("tls")).unwrap();
    septet.spawn(&[]);
    let ca = || Certificate::from_pem(&std::fs::read(pki.path("ca.pem")).unwrap()).unwrap();
    let client = |name: &str| {
        let mut pem = std::fs::read(pki.path(&format!("{name}.pem"))).unwrap();
        pem.extend(std::fs::read(pki.path(&format!("{name}.key"))).unwrap());
        Client::builder().tls_certs_only([ca()]).identity(Identity::from_pem(&pem).unwrap()).build().unwrap()
    };
    let url = |path: &str| format!("https://localhost:{}{path}", septet.admin);
    let ann = client("ann");
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !ann.get(url("/readyz")).send().await.is_ok_and(|answer| answer.status() == 200) {
        assert!(std::time::Instant::now() < deadline, "not ready:\n{}", septet.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let stranger = Client::builder().tls_certs_only([ca()]).build().unwrap();
    assert!(stranger.get(url("/readyz")).send().await.is_err());
    // A token that is bound to ann's certificate is of no use to bob.
    let pin = pki.pin("ann").replace("sha256:", "").replace(':', "");
    let digest: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&pin[2 * at..2 * at + 2], 16).unwrap()).collect();
    let thumbprint = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, digest);
    let claims = serde_json::json!({
        "aud": "a", "sub": "ann", "scope": "look", "cnf": { "x5t#S256": thumbprint },
    });
    let token = issuer.token(claims);
    for (name, status) in [("ann", 200), ("bob", 401)] {
        let answer = client(name).get(url("/api/v1/items")).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), status, "{name}");
    }
}

#[test]
fn expired_certificates_and_missing_keys_are_found_by_check_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let Some(pki) = Pki::new(folder.path()) else { return };
    pki.authority("ca");
    pki.certificate("old", "ca", LOCAL, -1);
    let text = "[production]\nname = 'p'\n[store]\nretention = '1d'\n[services.in]\ntype = 'hl7.mllp'\n\
        listen = '127.0.0.1:1'\ntargets = ['out']\ntls = { cert = 'old.pem', key = 'none.key' }\n\
        [operations.out]\ntype = 'hl7.mllp'\nconnect = 'localhost:2'\ntls = { ca = 'old.key', cert = 'old.pem', key = 'old.key' }\n";
    std::fs::write(folder.path().join("production.toml"), text).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_septet")).arg("check").arg(folder.path()).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in [
        "production.toml:9:16: error S0621: the certificate of",
        "production.toml:9:33: error S0106: there is no file",
        "production.toml:13:14: error S0621:",
        "production.toml:13:32: error S0621: the certificate of",
    ] {
        assert!(said.contains(expected), "missing {expected} in\n{said}");
    }
}
