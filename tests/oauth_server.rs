//! The authorization server in the real binary: what it has given and taken back is so after kill -9 too, and its
//! key is rotated by those who may.

use reqwest::redirect::Policy;
use serde_json::{Value, json};

use crate::support::{Septet, assert_nowhere, free_port, peers};

const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

fn production(port: u16, accounts: &str) -> String {
    format!(
        r#"
[production]
name = "auth"
[store]
path = "data"
retention = "7d"
[admin]
listen = "127.0.0.1:{{admin}}"
{accounts}
[services.auth]
type = "oauth.server"
listen = "127.0.0.1:{port}"
issuer = "http://127.0.0.1:{port}"
signing_alg = "ES256"
scopes = {{ "results:read" = "Read results" }}
registration = {{ token = "come-in", grants = ["client_credentials", "jwt_bearer"] }}
[services.auth.clients.app]
secret = "app-secret"
grants = ["authorization_code", "refresh_token", "client_credentials"]
redirect_uris = ["https://app.example/cb"]
[services.auth.users.ada]
password = "pa55 word"
"#
    )
}

struct Auth {
    septet: Septet,
    port: u16,
    http: reqwest::Client,
}

impl Auth {
    async fn start() -> Auth {
        let port = free_port();
        let http = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Auth { septet: Septet::start(&production(port, "")).await, port, http }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> (u16, Value) {
        let request = self.http.post(self.url(path)).basic_auth("app", Some("app-secret")).form(form);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    async fn key_ids(&self) -> Vec<String> {
        let answer = self.http.get(self.url("/oauth2/jwks")).send().await.unwrap();
        let set: Value = answer.json().await.unwrap();
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }

    /// A person signs in and allows; the code.
    async fn code(&self) -> String {
        let hidden = |html: &str| {
            let (_, rest) = html.split_once("name=\"request\" value=\"").unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let query = [
            ("response_type", "code"),
            ("client_id", "app"),
            ("scope", "results:read"),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ];
        let url = self.url("/oauth2/authorize");
        let page = self.http.get(&url).query(&query).send().await.unwrap().text().await.unwrap();
        let signed = hidden(&page);
        let form = [("request", signed.as_str()), ("username", "ada"), ("password", "pa55 word")];
        let page = self.http.post(&url).form(&form).send().await.unwrap().text().await.unwrap();
        let consent = hidden(&page);
        let form = [("request", consent.as_str()), ("decision", "allow")];
        let answer = self.http.post(&url).form(&form).send().await.unwrap();
        let location = answer.headers().get("location").unwrap().to_str().unwrap().to_owned();
        let (_, rest) = location.split_once("code=").unwrap();
        rest.split('&').next().unwrap().to_owned()
    }

    async fn redeem(&self, code: &str) -> (u16, Value) {
        let form = [("grant_type", "authorization_code"), ("code", code), ("code_verifier", VERIFIER)];
        self.post("/oauth2/token", &form).await
    }

    async fn refresh(&self, tokens: &Value) -> (u16, Value) {
        let token = tokens["refresh_token"].as_str().unwrap();
        self.post("/oauth2/token", &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    async fn is_active(&self, tokens: &Value) -> bool {
        let token = tokens["access_token"].as_str().unwrap();
        self.post("/oauth2/introspect", &[("token", token)]).await.1["active"] == true
    }

    async fn crash(&mut self) {
        self.septet.kill();
        self.septet.run().await;
    }
}

#[tokio::test]
async fn what_an_authorization_server_gave_and_took_back_is_so_after_kill_9() {
    let mut auth = Auth::start().await;
    let keys = auth.key_ids().await;
    let code = auth.code().await;
    auth.crash().await;
    let (status, first) = auth.redeem(&code).await;
    assert_eq!(status, 200, "a code survives: {first}");
    let (_, revoked) = auth.redeem(&auth.code().await).await;
    let token = revoked["refresh_token"].as_str().unwrap().to_owned();
    assert_eq!(auth.post("/oauth2/revoke", &[("token", token.as_str())]).await.0, 200);
    let metadata = json!({ "grant_types": ["client_credentials"] });
    let request = auth.http.post(auth.url("/oauth2/register")).bearer_auth("come-in").json(&metadata);
    let registered: Value = request.send().await.unwrap().json().await.unwrap();
    let (id, secret) =
        (registered["client_id"].as_str().unwrap(), registered["client_secret"].as_str().unwrap());

    auth.crash().await;
    assert_eq!(auth.key_ids().await, keys, "tokens that are out there can be verified");
    assert!(auth.is_active(&first).await);
    assert!(!auth.is_active(&revoked).await, "what was taken back stays so");
    assert_eq!(auth.refresh(&revoked).await.0, 400);
    let (status, second) = auth.refresh(&first).await;
    assert_eq!(status, 200, "{second}");
    let form = [("grant_type", "client_credentials")];
    let own = auth.http.post(auth.url("/oauth2/token")).basic_auth(id, Some(secret)).form(&form);
    assert_eq!(own.send().await.unwrap().status(), 200, "a registered client is known");

    auth.crash().await;
    assert_eq!(auth.refresh(&first).await.0, 400, "rotation was durable before its token left");
    assert_eq!(auth.refresh(&second).await.0, 400, "and reuse ended the family");
    assert!(!auth.is_active(&second).await);
    let refresh = second["refresh_token"].as_str().unwrap();
    let access = second["access_token"].as_str().unwrap();
    let secrets = [refresh, refresh.split_once('.').unwrap().1, access, secret, code.as_str()];
    assert_nowhere(auth.septet.folder.path(), &secrets);
}

#[tokio::test]
async fn septet_oauth_rotate_publishes_a_new_key_first_and_keeps_the_old_one_over_a_crash() {
    let mut auth = Auth::start().await;
    let before = auth.key_ids().await;
    let own = [("grant_type", "client_credentials")];
    let (_, old) = auth.post("/oauth2/token", &own).await;
    let said = auth.septet.command(&["oauth", "rotate", "auth", "--json"]);
    assert!(said.status.success(), "{said:?}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(auth.key_ids().await, [said["key_id"].as_str().unwrap(), before[0].as_str()]);
    auth.crash().await;
    assert_eq!(auth.key_ids().await, [said["key_id"].as_str().unwrap(), before[0].as_str()]);
    assert!(auth.is_active(&old).await, "signed with the old key");
    let (_, new) = auth.post("/oauth2/token", &own).await;
    assert!(auth.is_active(&new).await);
    let events = auth.septet.get("/api/v1/events?kind=oauth.rotated").await;
    assert_eq!(events["events"][0]["item"], "auth");
    let nobody = auth.septet.command(&["oauth", "rotate", "nobody"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no item named nobody"));
}

#[tokio::test]
async fn a_reload_changes_the_settings_and_loses_nothing_that_people_allowed() {
    let auth = Auth::start().await;
    let (_, tokens) = auth.redeem(&auth.code().await).await;
    let file = auth.septet.path("production.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let changed =
        text.replace("signing_alg = \"ES256\"", "signing_alg = \"ES384\"\naccess_token_lifetime = \"5m\"");
    std::fs::write(&file, changed).unwrap();
    let (status, answer) = auth.septet.post("/api/v1/production/reload", json!({})).await;
    assert_eq!(status, 200, "{answer}");
    assert!(auth.is_active(&tokens).await, "signed with the key from before");
    let (status, next) = auth.refresh(&tokens).await;
    assert_eq!((status, &next["expires_in"]), (200, &json!(300)), "{next}");
    assert!(auth.is_active(&next).await);
    assert_eq!(auth.key_ids().await.len(), 2);
    let rotated = auth.septet.command(&["oauth", "rotate", "auth"]);
    assert!(String::from_utf8_lossy(&rotated.stdout).contains("ES384"), "{rotated:?}");
    assert_eq!(auth.key_ids().await.len(), 3, "orders reach the server that runs now");
}

#[tokio::test]
async fn only_an_admin_rotates() {
    use aws_lc_rs::digest::{SHA256, digest};
    let hash = |token: &str| {
        let hash = digest(&SHA256, token.as_bytes());
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let accounts = format!(
        "[admin.tokens.ops]\nhash = \"{}\"\nrole = \"operator\"\n[admin.tokens.root]\nhash = \"{}\"\nrole = \"admin\"\n",
        hash("operator-token"),
        hash("admin-token")
    );
    let septet = Septet::start(&production(free_port(), &accounts)).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for (token, status) in [(None, 401), (Some("operator-token"), 403), (Some("admin-token"), 200)] {
        let mut request = http.post(septet.url("/api/v1/oauth/auth/rotate"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        assert_eq!(request.send().await.unwrap().status(), status, "{token:?}");
    }
    let events = http.get(septet.url("/api/v1/events?kind=oauth.rotated")).bearer_auth("admin-token");
    let events: Value = events.send().await.unwrap().json().await.unwrap();
    assert_eq!(events["events"].as_array().unwrap().len(), 1);
    assert_eq!(events["events"][0]["who"], "root");
}

/// openid-client registers itself, proves itself with a key and asks by assertion; jose verifies what it gets, also
/// when the key rolls over, and tries what attackers do with assertions and tokens.
#[tokio::test(flavor = "multi_thread")]
async fn openid_client_and_jose_get_what_they_may_and_nothing_else() {
    let auth = Auth::start().await;
    let asked = json!({
        "issuer": auth.url(""), "registration_token": "come-in", "scope": "results:read", "user": "ada",
        "rotate": auth.septet.url("/api/v1/oauth/auth/rotate"),
    });
    let run = move || peers::run_node("authorization-server.mjs", &["openid-client", "jose"], &asked, None);
    let report = tokio::task::spawn_blocking(run).await.unwrap();
    let Some(report) = report else { return };
    assert_eq!(report["registration_without_token"], "OAUTH_WWW_AUTHENTICATE_CHALLENGE");
    assert_eq!(report["own"]["sub"], report["own"]["client_id"]);
    assert_eq!(report["own"]["scope"], "results:read");
    assert_eq!(report["granted"]["sub"], "ada");
    assert_eq!(report["another_key"], true);
    assert_eq!(report["once"], "GOT A TOKEN");
    let refused = report["refused"].as_object().unwrap();
    assert!(refused.len() > 60, "{refused:#?}");
    for (what, answer) in refused {
        let answer = answer.as_str().unwrap();
        let expected = match what.rsplit(", ").next().unwrap() {
            "as proof" => "401 invalid_client",
            "at userinfo" => "401 Bearer realm=\"septet\", error=\"invalid_token\"",
            "at introspection" => "inactive",
            _ => "400 invalid_grant",
        };
        assert_eq!(answer, expected, "{what}");
    }
    assert_eq!(report["introspection"]["active"], true);
    assert_eq!(report["after_revocation"], json!({ "active": false }));
}
