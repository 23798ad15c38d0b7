//! Our OAuth clients against oidc-provider, a certified authorization server that nobody here wrote: every client
//! authentication and grant it has, over TLS with an authority of the test's own, through `septet oauth test`.

use std::collections::BTreeMap;

use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use septet_oauth::keys::{Algorithm, SigningKey};
use serde_json::{Value, json};

use crate::support::authority::Authority;
use crate::support::peers::Peer;
use crate::support::{PATIENCE, Septet};

/// The provider, and a production with clients of it; `None` where oidc-provider is not installed.
struct Scene {
    septet: Septet,
    _provider: Peer,
    ca: String,
}

const SECRET: &str = "a-secret-that-is-long-enough-for-hs512-signatures-which-want-sixty-four-bytes";

fn client(id: &str, method: &str, more: Value) -> Value {
    let mut client = json!({
        "client_id": id, "token_endpoint_auth_method": method, "grant_types": ["client_credentials"],
        "redirect_uris": [], "response_types": [], "scope": "results:write",
    });
    if method.starts_with("client_secret") {
        client["client_secret"] = SECRET.into();
    }
    for (name, value) in more.as_object().unwrap() {
        client[name] = value.clone();
    }
    client
}

async fn scene() -> Option<Scene> {
    let authority = Authority::new("test authority");
    let (server, ours) = (authority.certify(&["localhost"]), authority.certify(&["lab.example"]));
    let keys = [
        SigningKey::generate(Algorithm::ES384).unwrap(),
        SigningKey::generate(Algorithm::RS384).unwrap(),
        SigningKey::generate(Algorithm::PS256).unwrap(),
    ];
    let jwks = |key: &SigningKey| json!({ "keys": [key.public()] });
    let mut septet = Septet::write("");
    let callback = septet.url("/oauth/person/callback");
    let person = json!({
        "grant_types": ["authorization_code", "refresh_token"], "response_types": ["code"],
        "redirect_uris": [callback], "scope": "openid offline_access",
    });
    let public = json!({
        "grant_types": ["authorization_code", "refresh_token"], "response_types": ["code"],
        "redirect_uris": [septet.url("/oauth/public/callback")], "scope": "openid offline_access",
        "application_type": "native",
    });
    let bound = json!({
        "tls_client_auth_san_dns": "lab.example", "tls_client_certificate_bound_access_tokens": true,
    });
    let arguments = json!({
        "cert": server.cert, "key": server.key, "ca": authority.pem,
        "clients": [
            client("basic", "client_secret_basic", json!({})),
            client("post", "client_secret_post", json!({})),
            client("secret-jwt", "client_secret_jwt", json!({ "token_endpoint_auth_signing_alg": "HS512" })),
            client("es384", "private_key_jwt", json!({ "jwks": jwks(&keys[0]), "token_endpoint_auth_signing_alg": "ES384" })),
            client("rs384", "private_key_jwt", json!({ "jwks": jwks(&keys[1]), "token_endpoint_auth_signing_alg": "RS384" })),
            client("ps256", "private_key_jwt", json!({ "jwks": jwks(&keys[2]), "token_endpoint_auth_signing_alg": "PS256" })),
            client("bound", "tls_client_auth", bound),
            client("person", "client_secret_basic", person),
            client("public", "none", public),
        ],
    });
    let provider = Peer::node("oidc-provider.mjs", &["oidc-provider"], &[&arguments.to_string()])?;
    let issuer = provider.ready["issuer"].as_str().unwrap();
    let one = |name: &str, more: &str| {
        format!(
            "[oauth.{name}]\nissuer = \"{issuer}\"\ngrant = \"client_credentials\"\nclient_id = \"{name}\"\n\
             scope = \"results:write\"\nresource = \"https://results.example\"\ntls = {{ ca = \"ca.pem\" }}\n{more}\n"
        )
    };
    let secret = |auth: &str| format!("client_auth = \"{auth}\"\nclient_secret = \"{SECRET}\"");
    let signs = |key: usize, alg: &str| {
        let key = keys[key].pem();
        format!("client_auth = \"private_key_jwt\"\nsigning_alg = \"{alg}\"\nprivate_key = '''\n{key}'''")
    };
    let code = |name: &str, more: &str| {
        format!(
            "[oauth.{name}]\nissuer = \"{issuer}\"\ngrant = \"authorization_code\"\nclient_id = \"{name}\"\n\
             scope = \"openid offline_access\"\nauthorize_params = {{ prompt = \"consent\" }}\n\
             tls = {{ ca = \"ca.pem\" }}\n{more}\n"
        )
    };
    let text = [
        "[production]\nname = \"clients\"\n[store]\npath = \"data\"\nretention = \"30d\"\n".to_owned(),
        format!("[admin]\nlisten = \"127.0.0.1:{}\"\n", septet.admin),
        one("basic", &secret("basic")),
        one("post", &secret("post")),
        one("secret-jwt", &format!("{}\nsigning_alg = \"HS512\"", secret("client_secret_jwt"))),
        one("es384", &signs(0, "ES384")),
        one("rs384", &signs(1, "RS384")),
        one("ps256", &signs(2, "PS256")),
        one("bound", "client_auth = \"tls\"")
            .replace("ca = \"ca.pem\"", "ca = \"ca.pem\", cert = \"lab.pem\", key = \"lab.key\""),
        one("wrong", "client_id = \"basic\"\nclient_secret = \"not-the-secret\"").replacen(
            "client_id = \"wrong\"\n",
            "",
            1,
        ),
        code("person", &secret("basic")),
        code("public", "client_auth = \"none\""),
    ];
    std::fs::write(septet.path("production.toml"), text.concat()).unwrap();
    std::fs::write(septet.path("ca.pem"), &authority.pem).unwrap();
    std::fs::write(septet.path("lab.pem"), &ours.cert).unwrap();
    std::fs::write(septet.path("lab.key"), &ours.key).unwrap();
    septet.run().await;
    Some(Scene { septet, _provider: provider, ca: authority.pem })
}

/// O-08, O-09, O-15: each client authentication gets a token, and `septet oauth test` proves it before any
/// operation is wired.
#[tokio::test(flavor = "multi_thread")]
async fn o_08_o_09_o_15_oidc_provider_accepts_every_client_authentication() {
    let Some(scene) = scene().await else { return };
    let septet = &scene.septet;
    for name in ["basic", "post", "secret-jwt", "es384", "rs384", "ps256", "bound"] {
        let output = septet.command(&["oauth", "test", name]);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{name}: {said}\n{}", septet.log());
        for words in
            ["expires", "(in ", "scope    results:write", "claim    aud = \"https://results.example\""]
        {
            assert!(shown.contains(words), "{name} shows {words}: {shown}");
        }
        assert!(!shown.contains("eyJ"), "the token is not shown: {shown}");
    }
    let bound = septet.command(&["oauth", "test", "bound", "--json"]);
    let bound: Value = serde_json::from_slice(&bound.stdout).unwrap();
    assert!(bound["claims"]["cnf"]["x5t#S256"].is_string(), "bound to our certificate: {bound}");
    assert!((1..=600).contains(&bound["expires_in"].as_i64().unwrap()));

    let output = septet.command(&["oauth", "test", "wrong"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("invalid_client") && said.contains("the server says: "), "{said}");
    assert_eq!(septet.command(&["oauth", "test", "nobody"]).status.code(), Some(1));
    assert_eq!(septet.command(&["oauth", "test"]).status.code(), Some(2));
    assert_eq!(
        septet.command(&["oauth", "test", "basic", "--url", "http://127.0.0.1:1"]).status.code(),
        Some(3)
    );
}

/// A browser as far as the provider's own sign-in pages need one: cookies, and redirects until they leave it.
struct Browser {
    client: reqwest::Client,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    fn new(ca: &str) -> Browser {
        let root = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([root]).redirect(Policy::none()).no_proxy();
        let client = client.pool_max_idle_per_host(0);
        Browser { client: client.timeout(PATIENCE).build().unwrap(), cookies: BTreeMap::new() }
    }

    /// Follows redirects within the provider; where the last one leads, or the page it ended at.
    async fn go(&mut self, url: &str, form: Option<&str>, until: &str) -> (String, String) {
        let (mut url, mut form) = (url.to_owned(), form.map(str::to_owned));
        loop {
            if url.starts_with(until) {
                return (url, String::new());
            }
            let cookies: Vec<_> =
                self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let request = match form.take() {
                Some(form) => self
                    .client
                    .post(&url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form),
                None => self.client.get(&url),
            };
            let answer = request.header(COOKIE, cookies.join("; ")).send().await.unwrap();
            for cookie in answer.headers().get_all(SET_COOKIE) {
                let pair = cookie.to_str().unwrap().split(';').next().unwrap();
                let (name, value) = pair.split_once('=').unwrap();
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
            let Some(location) = answer.headers().get(LOCATION) else {
                return (url, answer.text().await.unwrap());
            };
            let next = url::Url::parse(&url).unwrap().join(location.to_str().unwrap()).unwrap();
            url = next.into();
        }
    }

    /// Signs in as `ada` and agrees to everything; the address that the provider sends the person back to.
    async fn sign_in(&mut self, url: &str, until: &str) -> String {
        let (at, page) = self.go(url, None, until).await;
        assert!(page.contains("login"), "{at}: {page}");
        let (at, page) = self.go(&at, Some("prompt=login&login=ada&password=x"), until).await;
        if at.starts_with(until) {
            return at;
        }
        assert!(page.contains("consent"), "{at}: {page}");
        self.go(&at, Some("prompt=consent"), until).await.0
    }
}

async fn get(url: &str) -> (u16, Option<String>, String) {
    let client = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().unwrap();
    let answer = client.get(url).send().await.unwrap();
    let location = answer.headers().get(LOCATION).map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), location, answer.text().await.unwrap())
}

async fn entry(septet: &Septet, name: &str) -> Value {
    septet.get(&format!("/api/v1/oauth/{name}")).await
}

/// O-08, O-26: a person signs in once at the provider's own pages; from then on refresh tokens, rotated by the
/// provider at each use, and kept over kill -9.
#[tokio::test(flavor = "multi_thread")]
async fn o_08_a_person_signs_in_once_and_refresh_tokens_go_on() {
    let Some(mut scene) = scene().await else { return };
    for name in ["person", "public"] {
        let septet = &scene.septet;
        let before = entry(septet, name).await;
        assert_eq!(before["state"], "none");
        let connect = septet.url(&format!("/oauth/{name}/connect"));
        assert_eq!(before["connect_url"], connect.as_str());
        let text = before["last_error"].as_str().unwrap();
        assert!(text.contains("nobody has signed in") && text.contains(&connect), "{text}");
        let output = septet.command(&["oauth", "test", name]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(&connect));

        let (status, location, _) = get(&connect).await;
        assert_eq!(status, 303);
        let location = location.unwrap();
        let sent: BTreeMap<_, _> = url::Url::parse(&location).unwrap().query_pairs().into_owned().collect();
        assert_eq!(
            (sent["response_type"].as_str(), sent["code_challenge_method"].as_str()),
            ("code", "S256")
        );
        assert!(sent["state"].len() >= 43 && sent["nonce"].len() >= 43 && sent["code_challenge"].len() == 43);
        let callback = septet.url(&format!("/oauth/{name}/callback"));
        assert_eq!(sent["redirect_uri"], callback);
        let back = Browser::new(&scene.ca).sign_in(&location, &callback).await;

        let forged = back.replace(&sent["state"], "forged");
        let (status, _, page) = get(&forged).await;
        assert_eq!(status, 400, "{page}");
        let (status, _, page) = get(&back).await;
        assert_eq!(status, 200, "{page}\n{}", septet.log());
        let (status, _, _) = get(&back).await;
        assert_eq!(status, 400, "a state is good once");

        let valid = entry(septet, name).await;
        assert_eq!((&valid["state"], &valid["fetches"]), (&json!("valid"), &json!(1)), "{valid}");
        // Each use rotates it; the old one would be refused, and its family with it.
        for fetches in 2..4 {
            let output = septet.command(&["oauth", "test", name]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert_eq!(entry(septet, name).await["fetches"], fetches);
        }
    }
    scene.septet.kill();
    scene.septet.run().await;
    for name in ["person", "public"] {
        let output = scene.septet.command(&["oauth", "test", name]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
