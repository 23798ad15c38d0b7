//! What the commands that talk to a running Septet have in common: where it is, who asks, how answers and
//! problems are shown.

use std::process::ExitCode;

use clap::Args;
use reqwest::{Method, StatusCode};
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
    /// The API said no.
    Refused(String),
}

impl Failure {
    /// Says it on stderr; 3 for unreachable, 1 for a no.
    pub(crate) fn report(self) -> ExitCode {
        let (text, code) = match self {
            Failure::Unreachable(text) => (text, 3),
            Failure::Refused(text) => (text, 1),
        };
        eprintln!("error: {text}");
        ExitCode::from(code)
    }
}

impl Client {
    /// For commands whose own flags swallow these.
    pub(crate) fn set_url(&mut self, url: String) {
        self.url = url;
    }

    /// For commands whose own flags swallow these.
    pub(crate) fn set_token(&mut self, token: String) {
        self.token = Some(token);
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str, query: &[(String, String)]) -> Result<Value, Failure> {
        self.ask(Method::GET, path, query, None).await
    }

    /// POST of a JSON body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, &[], Some(body)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(String, String)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let client = reqwest::Client::builder()
            .no_proxy()
            .build()
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let mut request = client.request(method, &url).query(query);
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
        let text =
            answer.text().await.map_err(|error| Failure::Unreachable(error.without_url().to_string()))?;
        if status == StatusCode::UNAUTHORIZED {
            return Err(Failure::Refused(
                "the API wants an account: give --token or SEPTET_TOKEN".to_owned(),
            ));
        }
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        let detail = value.get("detail").and_then(Value::as_str).unwrap_or("no reason given");
        Err(Failure::Refused(format!("{status}: {detail}")))
    }
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
