//! O-03: nothing leaks. A production at log level trace uses every kind of client against servers that echo all
//! they are sent; then everything the process wrote (standard output and error, every file of the store) and
//! everything the admin API answers is searched for every secret that crossed the wire.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use septet_oauth::keys::{Algorithm, SigningKey};
use serde_json::{Value, json};

use crate::support::scripted::{Scripted, json as answer};
use crate::support::{Septet, files_below, free_port};

/// Parameters of a token request that nobody may see.
const SECRET: [&str; 7] =
    ["client_secret", "password", "refresh_token", "code", "code_verifier", "assertion", "client_assertion"];

const CLIENTS: [&str; 7] = ["basic", "post", "hmac", "signed", "user", "bearer", "person"];

/// Every secret that reached the server, in the forms it had on the wire.
fn secrets(server: &Scripted) -> BTreeSet<String> {
    let mut secrets = BTreeSet::new();
    for seen in server.seen() {
        let mut fields = seen.form();
        if let Ok(Value::Object(json)) = serde_json::from_str::<Value>(&seen.body) {
            fields = json
                .into_iter()
                .map(|(name, value)| (name, value.as_str().unwrap_or("").to_owned()))
                .collect();
        }
        fields.extend(seen.uri.query().into_iter().flat_map(|query| {
            url::form_urlencoded::parse(query.as_bytes()).into_owned().collect::<Vec<_>>()
        }));
        secrets.extend(SECRET.iter().chain(&["access_token"]).filter_map(|name| fields.remove(*name)));
        secrets.extend(seen.header("x-key").map(str::to_owned));
        let Some((scheme, value)) = seen.header("authorization").and_then(|value| value.split_once(' '))
        else {
            continue;
        };
        secrets.insert(value.to_owned());
        if scheme == "Basic" {
            let pair = String::from_utf8(STANDARD.decode(value).unwrap()).unwrap();
            secrets.insert(pair.split_once(':').unwrap().1.to_owned());
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

/// Gives tokens at every other request and echoes what it was sent at the others; an API that refuses the first
/// token of each client, and says which it was.
async fn echoing() -> Scripted {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let refused = std::sync::Mutex::new(BTreeSet::new());
    Scripted::start(move |seen| {
        let (path, n) = (seen.uri.path(), count.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
        let all = format!(
            "{:?} {} {} {}",
            seen.headers,
            seen.uri,
            seen.body,
            seen.header("authorization").unwrap_or("")
        );
        if let Some(name) = path.strip_prefix("/token/") {
            if n % 3 == 2 {
                return answer(400, json!({ "error": "invalid_request", "error_description": all }));
            }
            return answer(
                200,
                json!({ "access_token": format!("t0ken-of-{name}-{n}-secretpart"), "expires_in": 3600,
                        "refresh_token": format!("r3fresh-of-{name}-{n}-secretpart") }),
            );
        }
        if refused.lock().unwrap().insert(path.to_owned()) {
            let challenge =
                format!("Bearer error=\"invalid_token\", error_description=\"{all}\"").replace('\n', " ");
            let challenge: String = challenge.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
            let mut refusal = answer(401, json!({ "you_sent": all }));
            refusal.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            return refusal;
        }
        answer(if path.contains("post") { 400 } else { 200 }, json!({ "you_sent": all }))
    })
    .await
}

fn production(septet: &Septet, server: &Scripted, inbound: u16, key: &SigningKey) -> String {
    let mut text = format!(
        "[production]\nname = \"leaks\"\n[log]\nlevel = \"trace\"\n[store]\npath = \"data\"\nretention = \"30d\"\n\
         [admin]\nlisten = \"127.0.0.1:{}\"\n[messages.Result]\nvalue = \"string\"\n\
         [services.in]\ntype = \"http\"\nlisten = \"127.0.0.1:{inbound}\"\nmessage = \"Result\"\ntargets = [{}]\n",
        septet.admin,
        CLIENTS.map(|name| format!("\"out-{name}\"")).join(", ")
    );
    let pem = key.pem();
    for name in CLIENTS {
        let (grant, more) = match name {
            "basic" => (
                "client_credentials",
                "client_secret = \"basic-s3cret\"\nheaders = { x-key = \"header-s3cret\" }".into(),
            ),
            "post" => (
                "client_credentials",
                "client_auth = \"post\"\nclient_secret = \"post-s3cret+/=\"\nrequest_body = \"json\"".into(),
            ),
            "hmac" => (
                "client_credentials",
                "client_auth = \"client_secret_jwt\"\nclient_secret = \"hmac-s3cret-of-at-least-32-bytes\""
                    .into(),
            ),
            "signed" => (
                "client_credentials",
                format!("client_auth = \"private_key_jwt\"\nprivate_key = '''\n{pem}'''"),
            ),
            "user" => (
                "password",
                "client_auth = \"none\"\nusername = \"ada\"\npassword = \"pa55word-of-ada\"".into(),
            ),
            "bearer" => ("jwt_bearer", format!("client_auth = \"none\"\nprivate_key = '''\n{pem}'''")),
            _ => (
                "authorization_code",
                format!(
                    "client_auth = \"none\"\nauthorization_url = \"http://127.0.0.1:{}/authorize\"",
                    server.port
                ),
            ),
        };
        let placement = match name {
            "user" => "query",
            "bearer" => "body",
            _ => "header",
        };
        let body = if placement == "body" { "\nbody = \"form\"" } else { "" };
        text += &format!(
            "[oauth.{name}]\ntoken_url = \"http://127.0.0.1:{port}/token/{name}\"\ngrant = \"{grant}\"\nclient_id = \"id-{name}\"\n{more}\n\
             [operations.out-{name}]\ntype = \"rest\"\nurl = \"http://127.0.0.1:{port}/api\"\nretry_interval = \"50ms\"\n\
             oauth = {{ client = \"{name}\", placement = \"{placement}\" }}\n[operations.out-{name}.requests.Result]\npath = \"/{name}\"{body}\n",
            port = server.port
        );
    }
    text
}

/// Every answer of the admin API that could show something.
async fn answers(septet: &Septet) -> String {
    let mut all = String::new();
    let mut paths: Vec<String> =
        ["metrics", "api/v1/oauth", "api/v1/items", "api/v1/queues", "api/v1/production"]
            .map(|path| format!("/{path}"))
            .to_vec();
    paths.extend(CLIENTS.map(|name| format!("/api/v1/oauth/{name}")));
    paths
        .extend(["/api/v1/events?limit=1000".to_owned(), "/api/v1/messages?limit=1000&keys=true".to_owned()]);
    let messages = septet.get("/api/v1/messages?limit=1000").await;
    for message in messages["messages"].as_array().unwrap() {
        paths.push(format!("/api/v1/messages/{}", message["id"]));
        paths.push(format!("/api/v1/messages/{}/raw", message["id"]));
        paths.push(format!("/api/v1/sessions/{}", message["session"]));
    }
    for path in paths {
        all += &reqwest::get(septet.url(&path)).await.unwrap().text().await.unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn o_03_no_secret_is_in_anything_that_the_process_writes_or_answers() {
    let server = echoing().await;
    let (inbound, key) = (free_port(), SigningKey::generate(Algorithm::ES256).unwrap());
    let mut septet = Septet::write("");
    std::fs::write(septet.path("production.toml"), production(&septet, &server, inbound, &key)).unwrap();
    septet.run().await;

    // A person signs in, until the code is taken.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let mut states = Vec::new();
    for n in 0..4 {
        let left = client.get(septet.url("/oauth/person/connect")).send().await.unwrap();
        let location = url::Url::parse(left.headers()["location"].to_str().unwrap()).unwrap();
        let state = location.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        let back = septet.url(&format!("/oauth/person/callback?code=c0de-{n}-secretpart&state={state}"));
        states.push(state);
        client.get(back).send().await.unwrap();
    }
    let session = client
        .post(format!("http://127.0.0.1:{inbound}/"))
        .json(&json!({ "value": "1" }))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let session = serde_json::from_str::<Value>(&session).unwrap()["session"].as_u64().unwrap();
    let trace = septet.settled(session).await;
    assert_eq!(trace["status"], "suspended", "all but what the API answered 400 to: {trace:#}");
    for name in CLIENTS {
        septet.command(&["oauth", "test", name]);
    }

    let mut secrets = secrets(&server);
    secrets.extend(states);
    let pem: Vec<_> = key.pem().lines().collect();
    secrets.insert(pem[1].to_owned());
    for kind in ["t0ken-of-person", "r3fresh-of", "pa55word", "header-s3cret", "eyJ", "c0de-"] {
        assert!(secrets.iter().any(|secret| secret.contains(kind)), "{kind} crossed the wire: {secrets:#?}");
    }
    let hidden = |place: &str, shown: &str| {
        for secret in &secrets {
            let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            assert!(!shown.contains(secret) && !shown.contains(&encoded), "{place} shows {secret}");
        }
    };
    hidden("an answer", &answers(&septet).await);
    septet.kill();
    septet.run().await;
    hidden("an answer after a restart", &answers(&septet).await);
    assert_eq!(septet.terminate(), Some(0));
    assert!(septet.log().contains("TRACE"), "the log is at its most talkative");
    for file in files_below(septet.folder.path()) {
        if !file.ends_with("production.toml") {
            hidden(&file.display().to_string(), &String::from_utf8_lossy(&std::fs::read(&file).unwrap()));
        }
    }
}
