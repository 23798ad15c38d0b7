//! What is wrong with the settings of a resource server, [`Auth`]. [`crate::Verifier`] does the work.

pub use septet_engine::config::auth::Auth;

use crate::keys::{Algorithm, algorithm, algorithm_names};
use crate::net;

/// Every problem of a resource server's settings: the key at fault, a code, and what is wrong.
pub fn check_auth(auth: &Auth) -> Vec<(&'static str, &'static str, String)> {
    let mut problems = Vec::new();
    if auth.issuer.is_none() && auth.introspection_url.is_none() {
        problems.push(("issuer", "S0501", "auth needs issuer or introspection_url".to_owned()));
    }
    for (key, value) in [("issuer", &auth.issuer), ("introspection_url", &auth.introspection_url)] {
        if let Some(Err(why)) = value.as_deref().map(net::endpoint) {
            problems.push((key, "S0502", format!("{key} cannot be used: {why}")));
        }
    }
    for name in auth.algorithms.0.iter().filter(|name| algorithm(name).is_none()) {
        let known = algorithm_names().collect::<Vec<_>>().join(", ");
        problems.push(("algorithms", "S0502", format!("algorithms are of {known}; {name} is not")));
    }
    if auth.introspection_url.is_some() && (auth.client_id.is_none() || auth.client_secret.is_none()) {
        let text = "introspection_url needs client_id and client_secret".to_owned();
        problems.push(("introspection_url", "S0501", text));
    }
    if auth.tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
        let text = "a client certificate needs both tls.cert and tls.key".to_owned();
        problems.push(("tls", "S0501", text));
    }
    problems
}

/// The accepted algorithms. HMAC and `none` are never among them.
pub(crate) fn accepted(auth: &Auth) -> Vec<Algorithm> {
    if auth.algorithms.0.is_empty() {
        return algorithm_names().filter_map(algorithm).collect();
    }
    auth.algorithms.0.iter().filter_map(|name| algorithm(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(json: &str) -> Auth {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_audience_is_one_or_several() {
        let one = auth(r#"{"issuer":"https://i.example","audience":"a"}"#);
        let many = auth(r#"{"issuer":"https://i.example","audience":["a","b"]}"#);
        assert_eq!(one.audience.0, ["a"]);
        assert_eq!(many.audience.0, ["a", "b"]);
        assert!(check_auth(&one).is_empty() && check_auth(&many).is_empty());
    }

    #[test]
    fn misuse_is_named_and_symmetric_algorithms_are_refused() {
        let texts = |json: &str| {
            check_auth(&auth(json))
                .into_iter()
                .map(|(key, _, text)| format!("{key}: {text}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(texts("{}"), ["issuer: auth needs issuer or introspection_url"]);
        let found = texts(r#"{"issuer":"http://i.example","algorithms":["HS256","none"]}"#);
        assert!(
            found[0].contains("loopback")
                && found[1].contains("HS256 is not")
                && found[2].contains("none is not")
        );
        assert!(texts(r#"{"introspection_url":"https://i.example"}"#)[0].contains("client_id"));
    }

    #[test]
    fn secrets_do_not_show() {
        let auth =
            auth(r#"{"introspection_url":"https://i.example","client_id":"x","client_secret":"hide-me"}"#);
        assert!(!format!("{auth:?}").contains("hide-me"));
    }
}
