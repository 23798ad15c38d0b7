//! What a token is checked for, and the refusal that names the check that failed: status, `WWW-Authenticate`
//! (RFC 6750 §3), and the event `auth.refused` with what was expected and what was there.

use std::fmt;

use septet_engine::event::{Level, NewEvent};

/// Of a foreign value, more characters than this are not kept.
const SHOWN: usize = 500;

/// Which check a token failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// There is no bearer token.
    Missing,
    /// The request has more than one.
    Several,
    /// It is no JWT.
    Malformed,
    /// Its algorithm is not accepted, or not the key's.
    Alg,
    /// Its type is not that of an access token.
    Typ,
    /// The issuer has no such key.
    Kid,
    /// Its signature does not verify.
    Sig,
    /// It is another issuer's.
    Iss,
    /// It is for somebody else.
    Aud,
    /// It has expired, or does not say when it does.
    Exp,
    /// It is not valid yet.
    Nbf,
    /// It lacks a scope.
    Scope,
    /// It gives no role.
    Role,
    /// It is bound to a key that the caller has not shown (RFC 8705 §3).
    Cnf,
    /// The issuer says that it is not active (introspection).
    Inactive,
    /// The issuer could not be asked, so nothing can be said about the token.
    Keys,
}

impl Check {
    /// The short name: `missing`, `alg`, `aud`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Check::Missing => "missing",
            Check::Several => "several",
            Check::Malformed => "malformed",
            Check::Alg => "alg",
            Check::Typ => "typ",
            Check::Kid => "kid",
            Check::Sig => "sig",
            Check::Iss => "iss",
            Check::Aud => "aud",
            Check::Exp => "exp",
            Check::Nbf => "nbf",
            Check::Scope => "scope",
            Check::Role => "role",
            Check::Cnf => "cnf",
            Check::Inactive => "inactive",
            Check::Keys => "keys",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Check::Missing => "a bearer token is required",
            Check::Several => "a request has one bearer token, in one place",
            Check::Malformed => "the token cannot be read",
            Check::Alg => "the token's algorithm is not accepted",
            Check::Typ => "the token is no access token",
            Check::Kid => "the token's key is unknown",
            Check::Sig => "the token's signature does not verify",
            Check::Iss => "the token is from another issuer",
            Check::Aud => "the token is for another audience",
            Check::Exp => "the token has expired",
            Check::Nbf => "the token is not valid yet",
            Check::Scope => "the token lacks a scope",
            Check::Role => "the token gives no role here",
            Check::Cnf => "the token is bound to another key",
            Check::Inactive => "the token is not active",
            Check::Keys => "the token cannot be verified now",
        }
    }
}

/// Why a request is refused. `Debug` and `Display` show the check only: the values are the peer's.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .check.description())]
pub struct Refusal {
    /// Which check failed.
    pub check: Check,
    /// What it wanted.
    pub expected: String,
    /// What it got; foreign text.
    pub actual: String,
    /// 401; 403 for a missing scope; 400 for several tokens; 503 when the issuer could not be asked.
    pub status: u16,
    /// The value of `WWW-Authenticate`; none with 503.
    pub www_authenticate: Option<String>,
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusal({} {})", self.check.as_str(), self.status)
    }
}

impl Refusal {
    /// What a failed check means for the answer.
    pub fn new(check: Check, expected: impl Into<String>, actual: impl Into<String>) -> Self {
        let description = check.description();
        let (status, www_authenticate) = match check {
            Check::Missing => (401, Some(r#"Bearer realm="septet""#.to_owned())),
            Check::Keys => (503, None),
            Check::Scope | Check::Role => (403, None),
            Check::Several => {
                let error = r#"Bearer realm="septet", error="invalid_request", error_description="#;
                (400, Some(format!("{error}\"{description}\"")))
            }
            _ => {
                let error = r#"Bearer realm="septet", error="invalid_token", error_description="#;
                (401, Some(format!("{error}\"{description}\"")))
            }
        };
        let actual = actual.into().chars().take(SHOWN).collect();
        Refusal { check, expected: expected.into(), actual, status, www_authenticate }
    }

    pub(crate) fn scope(needed: &str, actual: String) -> Self {
        // Only characters that RFC 6749 §3.3 allows in a scope may stand in the header.
        let legal = |c: &char| matches!(c, ' ' | '\x21' | '\x23'..='\x5b' | '\x5d'..='\x7e');
        let shown: String = needed.chars().filter(legal).collect();
        let error = r#"Bearer realm="septet", error="insufficient_scope", scope="#;
        let mut refusal = Refusal::new(Check::Scope, needed, actual);
        refusal.www_authenticate = Some(format!("{error}\"{shown}\""));
        refusal
    }

    /// The token is good, and none of its roles means anything here.
    pub fn role(known: &str, found: &[String]) -> Self {
        let actual = if found.is_empty() { "none".to_owned() } else { found.join(" ") };
        let mut refusal = Refusal::new(Check::Role, known, actual);
        refusal.www_authenticate = Some(r#"Bearer realm="septet", error="insufficient_scope""#.to_owned());
        refusal
    }

    /// The event `auth.refused`: the check's short name as text, expected and actual value as detail.
    pub fn event(&self) -> NewEvent {
        NewEvent::new(Level::Warning, "auth.refused", self.check.as_str())
            .detail(format!("expected {}, got {}", self.expected, self.actual))
    }
}
