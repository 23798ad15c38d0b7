//! Bearer tokens of an issuer at the admin API (`[admin.auth]`): judged as those of services are, and the
//! account's role made from a claim (`[admin.roles]`).

use std::collections::BTreeMap;
use std::fmt;

use septet_engine::clock::SharedClock;
use septet_engine::config::settings::{Admin, Role};
use septet_engine::server_tls::ClientCertificate;
use septet_oauth::{Claims, Presented, Refusal, Verifier};
use serde_json::Value;

use crate::access::Account;

/// What turns tokens into accounts.
pub(crate) struct Bearer {
    verifier: Verifier,
    role_claim: Option<String>,
    roles: BTreeMap<String, Role>,
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bearer({} roles)", self.roles.len())
    }
}

impl Bearer {
    /// Where `[admin]` has `auth`.
    pub(crate) fn new(settings: &Admin, clock: &SharedClock) -> Option<Bearer> {
        Some(Bearer {
            verifier: Verifier::new(settings.auth.clone()?, clock.clone()),
            role_claim: settings.role_claim.clone(),
            roles: settings.roles.clone(),
        })
    }

    /// The account of a token: named by its subject, or its client, with the highest role that its claims give.
    pub(crate) async fn account(
        &self,
        authorization: &str,
        certificate: Option<ClientCertificate>,
    ) -> Result<Account, Refusal> {
        let certificate = certificate.map(|certificate| certificate.sha256);
        let shown = Presented { authorization: Some(authorization), certificate, wanted: None };
        let claims = self.verifier.judge(shown).await?;
        let found = self.claimed(&claims);
        let role = found.iter().filter_map(|value| self.roles.get(value)).max();
        let role = *role.ok_or_else(|| {
            let known: Vec<_> = self.roles.keys().map(String::as_str).collect();
            Refusal::role(&known.join(" or "), &found)
        })?;
        Ok(Account { name: claims.subject().or(claims.client()).map(str::to_owned), role })
    }

    /// The values of the claim that holds roles.
    fn claimed(&self, claims: &Claims) -> Vec<String> {
        let Some(claim) = &self.role_claim else { return claims.scopes.clone() };
        let value = match claim.strip_prefix('/') {
            Some(pointer) => {
                let mut steps = pointer.split('/').map(|step| step.replace("~1", "/").replace("~0", "~"));
                let first = steps.next().and_then(|step| claims.all.get(&step));
                steps.try_fold(first, |value, step| value.map(|value| value.get(&step))).flatten()
            }
            None => claims.all.get(claim),
        };
        match value {
            Some(Value::String(text)) => text.split_whitespace().map(str::to_owned).collect(),
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }
}
