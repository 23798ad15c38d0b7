//! An OAuth client as operators see it: its health, never a token.

use jiff::Timestamp;
use septet_engine::fault::Sensitive;

/// The state of a client, as `GET /api/v1/oauth` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// It has no token, and nothing is wrong.
    None,
    /// It has one that has not expired.
    Valid,
    /// Its token has expired, and nobody has asked for another.
    Expired,
    /// It has no valid token, and the last fetch failed.
    Failing,
}

impl ClientState {
    /// `none`, `valid`, `expired`, `failing`.
    pub fn as_str(self) -> &'static str {
        match self {
            ClientState::None => "none",
            ClientState::Valid => "valid",
            ClientState::Expired => "expired",
            ClientState::Failing => "failing",
        }
    }
}

/// A client, as the admin API shows it. Never a token.
#[derive(Clone, Debug)]
pub struct ClientView {
    /// Its name.
    pub name: String,
    /// Its grant.
    pub grant: String,
    /// Its token endpoint; of a discovered one only once it is known.
    pub token_url: Option<String>,
    /// Its state.
    pub state: ClientState,
    /// When its token ends.
    pub expires_at: Option<Timestamp>,
    /// When its last token was fetched; kept over restarts.
    pub fetched_at: Option<Timestamp>,
    /// Tokens fetched in all; kept over restarts.
    pub fetches: u64,
    /// When its refresh token ends, where that is known.
    pub refresh_ends_at: Option<Timestamp>,
    /// The scopes of its token: those the server gave, else those asked for.
    pub scope: Option<String>,
    /// When a peer last refused its token with a 401.
    pub last_401: Option<Timestamp>,
    /// When the last fetch failed, if it did.
    pub failed_at: Option<Timestamp>,
    /// Where a person signs in, for grant authorization_code.
    pub connect_url: Option<String>,
    /// `code: text` of the last fetch, if that failed.
    pub last_error: Option<String>,
    /// The server's words about it: detail, shown under body access only.
    pub last_error_detail: Option<Sensitive>,
    /// Items that use it: as configured, and those that asked.
    pub used_by: Vec<String>,
}
