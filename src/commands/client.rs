//! What the commands that talk to a running Septet have in common: where it is, who asks, how answers and
//! problems are shown.

use std::process::ExitCode;
use std::sync::OnceLock;

use bytes::Bytes;
use clap::Args;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use crate::output;

/// Where the admin API is and how to sign in.
#[derive(Args, Debug, Clone)]
pub(crate) struct Client {
    /// The admin API.
    #[arg(long, env = "SEPTET_URL", default_value = "http://127.0.0.1:8700")]
    url: String,
    /// A token of `[admin.tokens.*]`.
    #[arg(long, env = "SEPTET_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print the API's JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Why there is no answer to show.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody answers there.
    Unreachable(String),
    /// There is no such thing (any more).
    Missing(String),
    /// It is there and cannot be read: the engine or its disk has a fault.
    Broken(String),
    /// The API cannot read what it was asked for: a filter that is none, a time that is none.
    Usage(String),
    /// The API said no.
    Refused(String),
}

impl Failure {
    /// Says it on stderr; 3 for unreachable, 2 for what cannot be asked, 1 for a no.
    pub(crate) fn report(self) -> ExitCode {
        let (text, code) = match self {
            Failure::Unreachable(text) => (text, 3),
            Failure::Usage(text) => (text, 2),
            Failure::Missing(text) | Failure::Broken(text) | Failure::Refused(text) => (text, 1),
        };
        output::error(text);
        ExitCode::from(code)
    }
}

impl Client {
    /// Takes a flag of its own that stood among the filters of a command; `false` if it is none.
    pub(crate) fn take(
        &mut self,
        name: &str,
        value: impl FnOnce() -> Result<String, String>,
    ) -> Result<bool, String> {
        match name {
            "json" => self.json = true,
            "url" => self.url = value()?,
            "token" => self.token = Some(value()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str, query: &[(String, String)]) -> Result<Value, Failure> {
        self.ask(Method::GET, path, query, None).await
    }

    /// POST of a JSON body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, &[], Some(body)).await
    }

    /// GET of bytes; with their content type.
    pub(crate) async fn bytes(&self, path: &str) -> Result<(String, Bytes), Failure> {
        let answer = self.answer(Method::GET, path, &[], None).await?;
        let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or("").to_owned();
        Ok((content_type, answer.bytes().await.map_err(broken)?))
    }

    /// GET of an answer that is read piece by piece.
    pub(crate) async fn stream(&self, path: &str) -> Result<Response, Failure> {
        self.answer(Method::GET, path, &[], None).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(String, String)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let text = self.answer(method, path, query, body).await?.text().await.map_err(broken)?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// A positive answer; anything else is a failure with the API's reason.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        query: &[(String, String)],
        body: Option<&Value>,
    ) -> Result<Response, Failure> {
        static HTTP: OnceLock<Result<reqwest::Client, String>> = OnceLock::new();
        let http = HTTP.get_or_init(|| {
            let built = reqwest::Client::builder().no_proxy().build();
            built.map_err(|error| error.to_string())
        });
        let http = http.as_ref().map_err(|error| Failure::Unreachable(error.clone()))?;
        let mut request =
            http.request(method, format!("{}{path}", self.url.trim_end_matches('/'))).query(query);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|_| {
            Failure::Unreachable(format!(
                "{} does not answer; is a production with [admin] running there? (--url)",
                self.url
            ))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if status == StatusCode::UNAUTHORIZED {
            let text = "the API wants an account: give --token or SEPTET_TOKEN";
            return Err(Failure::Refused(text.to_owned()));
        }
        let text = answer.text().await.map_err(broken)?;
        let problem: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let detail = problem.get("detail").and_then(Value::as_str).unwrap_or("no reason given");
        let text = format!("{status}: {detail}");
        Err(match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Failure::Missing(text),
            StatusCode::INTERNAL_SERVER_ERROR => Failure::Broken(text),
            StatusCode::BAD_REQUEST => Failure::Usage(text),
            _ => Failure::Refused(text),
        })
    }
}

/// The answer broke off.
pub(crate) fn broken(error: reqwest::Error) -> Failure {
    Failure::Unreachable(error.without_url().to_string())
}

/// A field as text; absent and null are empty.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> std::borrow::Cow<'a, str> {
    match value.get(name) {
        None | Some(Value::Null) => "".into(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(other) => other.to_string().into(),
    }
}

/// Prints rows under their heads, each column as wide as it needs.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heads.get(column).map(|head| head.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        output::line(padded.join("  ").trim_end());
    };
    line(&mut heads.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// Pretty JSON, as the API gave it.
pub(crate) fn print_json(value: &Value) {
    output::line(serde_json::to_string_pretty(value).unwrap_or_default());
}
