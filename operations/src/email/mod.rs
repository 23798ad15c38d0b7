//! `email`: messages as mails over SMTP. Alerts above all (list the operation in `production.alerts`), but any
//! message: its fields fill the templates, and it can be attached.
//!
//! [`compose`] makes the mail, a pure function of header and body, so that a mail sent again after a crash is
//! the same mail with the same `Message-ID`; [`session`] talks to the server. A connection is good for one
//! mail: servers of today close idle ones soon, and mails are few.
//!
//! The reply code is the server's, of whichever command it refused. A token that is refused (535) is dropped,
//! fetched once, and tried once more, all in one attempt.

mod compose;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lettre::transport::smtp::extension::ClientId;
use schemars::JsonSchema;
use septet_engine::body::Body;
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::{ClientTls, Secret};
use septet_engine::config::units::{HostPort, Strings};
use septet_engine::fault::Fault;
use septet_engine::host::{
    BusinessOperation, HostFault, OperationContext, OperationError, OperationFactory, Outcome, Runtime,
};
use septet_engine::id::ItemName;
use septet_engine::record::Record;
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind};
use septet_engine::reply::Family;
use septet_engine::token::AccessToken;
use serde::Deserialize;
use serde_json::json;

use crate::http_client::token_of;
use crate::http_settings::{check_tls, is_this_machine};
use crate::http_template::Known;
use crate::oauth_use::{OauthPlan, OauthUse};
use crate::stream_tls::Tls;
use compose::{Letter, Mail};
use session::{Failure, SignIn};

/// The class.
pub const CLASS: ItemClass = ItemClass {
    type_name: "email",
    kind: ItemKind::Operation,
    summary: "Sends messages, alerts above all, as mails over SMTP, with OAuth (XOAUTH2) where the server wants it.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Messages as mails. `from`, `to`, `cc`, `bcc`, `reply_to`, `subject`, `body` and the attachments' `name`,
/// `text` and `base64` are templates: `{name}` takes a field of the message, `{PID-3.1}` of an HL7 message, and
/// `{id} {session} {control_id} {date} {time}` of its header. A field that is not there leaves a gap.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Host and port of the mail server: 587 for `starttls`, 465 for `tls`.
    connect: HostPort,
    /// `starttls` (plain until the server has answered STARTTLS, and never without it), `tls` from the first
    /// byte, or `none`.
    #[serde(default)]
    security: Security,
    /// Trust and client certificate. Absent: the system's authorities.
    tls: Option<ClientTls>,
    /// How to sign in: `none`, `plain`, `login` or `xoauth2`. Default: `xoauth2` with `oauth`, `plain` with
    /// `username`, else `none`.
    auth: Option<Auth>,
    /// Who signs in; for `xoauth2` the mailbox, by default the address of `from`.
    username: Option<String>,
    /// The password of `plain` and `login`.
    password: Option<Secret>,
    /// The OAuth client whose token signs in (`xoauth2`). Microsoft 365: grant `client_credentials`, scope
    /// `https://outlook.office365.com/.default`.
    oauth: Option<OauthUse>,
    /// Lets a password or token go over a plain connection to another machine: for networks that are trusted.
    #[serde(default)]
    allow_plain: bool,
    /// The name to say in EHLO; by default the address literal `[127.0.0.1]`.
    hello: Option<String>,
    /// The sender: `Septet <septet@example.org>`.
    from: String,
    /// Who gets it: one address, or a list of them. An entry that is filled with nothing is left out.
    to: Strings,
    /// Who gets a copy.
    #[serde(default)]
    cc: Option<Strings>,
    /// Who gets a copy without the others' knowing.
    #[serde(default)]
    bcc: Option<Strings>,
    /// Where answers go.
    reply_to: Option<String>,
    /// The subject. By default the level and text of an alert, the type of any other message.
    subject: Option<String>,
    /// The text. By default the fields of an alert; of any other message its type and where to find it, but
    /// nothing of what it says.
    body: Option<String>,
    /// What is attached.
    #[serde(default)]
    attachments: Vec<AttachmentSettings>,
}

/// One attachment: the message itself, or what `text` or `base64` makes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AttachmentSettings {
    /// Its file name; values are escaped as in file names.
    name: String,
    /// Its content as text. Without `text` and `base64` the message itself is attached, byte for byte, a
    /// record's secrets as `•••`.
    text: Option<String>,
    /// Its content in base64, as in `"{OBX-5.5}"`.
    base64: Option<String>,
    /// Its media type. Default: that of the message; of `text` `text/plain; charset=utf-8`; of `base64`
    /// `application/octet-stream`.
    content_type: Option<String>,
}

/// See [`Settings::security`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Security {
    /// RFC 3207.
    #[default]
    Starttls,
    /// RFC 8314.
    Tls,
    /// Neither.
    None,
}

/// See [`Settings::auth`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Auth {
    /// Without signing in.
    None,
    /// RFC 4616.
    Plain,
    /// User name and password, asked for one after the other.
    Login,
    /// A bearer token.
    Xoauth2,
}

// === Checking ===

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let mut whole = true;
    check_tls(build, settings.tls.as_ref());
    if settings.tls.is_some() && settings.security == Security::None {
        let suggestion = Some("say security = \"starttls\" or \"tls\"".to_owned());
        build.error("S0333", &[At::Key("tls")], "there is no TLS with security = \"none\"", suggestion);
        whole = false;
    }
    let oauth = settings.oauth.as_ref().and_then(|oauth| oauth.plan(build));
    if let Some(oauth_use) = &settings.oauth {
        whole &= oauth.is_some() && oauth_use.fits(build, Known::Open);
    }
    let auth = settings.auth.unwrap_or(match (&settings.oauth, &settings.username) {
        (Some(_), _) => Auth::Xoauth2,
        (None, Some(_)) => Auth::Plain,
        (None, None) => Auth::None,
    });
    whole &= check_sign_in(build, &settings, auth);
    let local = is_this_machine(url::Host::parse(&settings.connect.host).ok().as_ref().map(borrowed));
    if auth != Auth::None && settings.security == Security::None && !local {
        let what = if auth == Auth::Xoauth2 { "an OAuth token" } else { "a password" };
        let text = format!("{what} would be sent over a plain connection");
        let at = &[At::Key("security")];
        if settings.allow_plain {
            build.warning("S0332", at, text, Some("use starttls or tls".to_owned()));
        } else {
            let suggestion = "use starttls or tls, or say allow_plain = true where the network is trusted";
            build.error("S0332", at, text, Some(suggestion.to_owned()));
            whole = false;
        }
    }
    let host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if settings.hello.as_ref().is_some_and(|name| name.is_empty() || !name.chars().all(host)) {
        let text = "a server is greeted with a host name or an address in brackets";
        build.error("S0358", &[At::Key("hello")], text, None);
        whole = false;
    }
    let letter = compose::check(build, &settings);
    let clients = settings.oauth.iter().flat_map(|oauth| oauth.clients(build.names)).collect();
    let plan = Plan {
        letter: letter?,
        hello: settings.hello.map_or_else(ClientId::default, ClientId::Domain),
        connect: settings.connect,
        security: settings.security,
        tls: settings.tls.unwrap_or_default(),
        auth,
        username: settings.username,
        password: settings.password,
        oauth,
    };
    let facts = Facts { oauth: clients, replies: Some(Family::Smtp), answers: true, ..Facts::default() };
    whole.then(|| Built { factory: Factory::Operation(Arc::new(EmailFactory(Arc::new(plan)))), facts })
}

fn borrowed(host: &url::Host<String>) -> url::Host<&str> {
    match host {
        url::Host::Domain(name) => url::Host::Domain(name),
        url::Host::Ipv4(address) => url::Host::Ipv4(*address),
        url::Host::Ipv6(address) => url::Host::Ipv6(*address),
    }
}

/// That the sign-in has what it needs, and nothing that it would not use.
fn check_sign_in(build: &mut Build<'_>, settings: &Settings, auth: Auth) -> bool {
    let (user, password) = (settings.username.is_some(), settings.password.is_some());
    let wrong = match auth {
        Auth::Plain | Auth::Login if !user => Some(("auth", "this sign-in needs a username")),
        Auth::Plain | Auth::Login if !password => Some(("username", "this sign-in needs a password")),
        Auth::Plain | Auth::Login if settings.oauth.is_some() => {
            Some(("auth", "oauth signs in with auth = \"xoauth2\""))
        }
        Auth::Xoauth2 if settings.oauth.is_none() => Some(("auth", "xoauth2 needs oauth = \"CLIENT\"")),
        Auth::Xoauth2 if password => Some(("password", "xoauth2 signs in with a token, not with a password")),
        Auth::None if password || settings.oauth.is_some() => {
            Some(("auth", "without sign-in, password and oauth are of no use"))
        }
        _ => None,
    };
    if let Some((key, text)) = wrong {
        build.error("S0358", &[At::Key(key)], text, None);
    }
    wrong.is_none()
}

// === Running ===

/// Settings, checked.
struct Plan {
    connect: HostPort,
    security: Security,
    tls: ClientTls,
    auth: Auth,
    username: Option<String>,
    password: Option<Secret>,
    oauth: Option<OauthPlan>,
    hello: ClientId,
    letter: Letter,
}

struct EmailFactory(Arc<Plan>);

impl fmt::Debug for EmailFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Email({})", self.0.connect)
    }
}

impl OperationFactory for EmailFactory {
    fn create(&self, _runtime: &Runtime, _item: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(EmailOperation { plan: self.0.clone(), tls: None })
    }
}

struct EmailOperation {
    plan: Arc<Plan>,
    /// There once started, unless `security` is `none`.
    tls: Option<Tls>,
}

#[async_trait]
impl BusinessOperation for EmailOperation {
    async fn start(&mut self) -> Result<(), HostFault> {
        if self.plan.security != Security::None {
            self.tls = Some(Tls::new(self.plan.tls.clone())?);
        }
        Ok(())
    }

    async fn on_message(&mut self, cx: &OperationContext) -> Result<Outcome, OperationError> {
        let mail = compose::mail(&self.plan.letter, cx)?;
        let clock = cx.runtime.clock.clone();
        tokio::select! {
            outcome = self.deliver(&mail, cx) => outcome,
            () = clock.sleep(cx.response_timeout) => {
                let text = format!("{} did not take the mail within {:?}", self.plan.connect, cx.response_timeout);
                Err(OperationError::fault("timeout", text))
            }
        }
    }
}

impl EmailOperation {
    async fn deliver(&mut self, mail: &Mail, cx: &OperationContext) -> Result<Outcome, OperationError> {
        let plan = self.plan.clone();
        let Some(oauth) = plan.oauth.as_ref().filter(|_| plan.auth == Auth::Xoauth2) else {
            let password = plan.password.as_ref().map(Secret::reveal).unwrap_or_default();
            let user = plan.username.as_deref().unwrap_or_default();
            let sign_in = match plan.auth {
                Auth::Plain => SignIn::Plain { user, password },
                Auth::Login => SignIn::Login { user, password },
                Auth::None | Auth::Xoauth2 => SignIn::None,
            };
            return outcome(session::send(&plan, self.tls.as_mut(), &sign_in, mail, cx).await, &plan);
        };
        let token = token_of(oauth, cx).await?;
        let result = self.with_token(&token, mail, cx).await;
        if !matches!(&result, Err(Failure::Refused(refused)) if refused.code == 535) {
            return outcome(result, &plan);
        }
        cx.runtime.tokens.rejected(&token);
        let token = token_of(oauth, cx).await?;
        outcome(self.with_token(&token, mail, cx).await, &plan)
    }

    async fn with_token(
        &mut self,
        token: &AccessToken,
        mail: &Mail,
        cx: &OperationContext,
    ) -> Result<String, Failure> {
        let plan = self.plan.clone();
        let user = plan.username.as_deref().unwrap_or(&mail.from);
        session::send(&plan, self.tls.as_mut(), &SignIn::Xoauth2 { user, token: &token.secret }, mail, cx)
            .await
    }
}

/// How long a server may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a session means for the message.
fn outcome(result: Result<String, Failure>, plan: &Plan) -> Result<Outcome, OperationError> {
    let (code, body, fault) = match result {
        Ok(text) => {
            let reply = Record::untyped("Json", json!({ "code": 250, "text": text }));
            ("250".to_owned(), Some(Body::record(reply)), None)
        }
        Err(Failure::Refused(refused)) => {
            let code = format!("{:03}", refused.code);
            let status = refused.status.as_deref().map(|status| format!(" {status}")).unwrap_or_default();
            let text = format!("{} answered {code}{status} to {}", plan.connect, refused.step);
            (code.clone(), None, Some(Fault::new("call", code, text).with_detail(refused.words)))
        }
        Err(Failure::Broken(error)) => return Err(error),
    };
    Ok(Outcome::Replied { code, body, fault, retry_after: None })
}
