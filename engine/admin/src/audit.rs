//! Who looked at patient data: one record per user, target and minute, readable as soon as the answer that
//! it is about is sent.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use septet_engine::director::Engine;
use septet_engine::event::{Level, NewEvent};
use septet_engine::header::Header;
use septet_engine::store::{Class, Op, Transaction};

/// How long an answer waits for its record where the disk takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Remembers what was recorded in the current minute.
pub(crate) struct Audit {
    engine: Engine,
    recent: Mutex<Minute>,
}

/// One minute's records: who, kind, target. An export looks at thousands of messages a second, so of each record
/// there are only two hashes, of which an accident does not make the same twice.
#[derive(Default)]
struct Minute {
    number: i64,
    records: HashSet<(u64, u64)>,
    hashes: (RandomState, RandomState),
}

impl Minute {
    /// Whether there has been no such record in this minute.
    fn enter(&mut self, minute: i64, record: &(Option<&str>, &str, &str)) -> bool {
        if self.number != minute {
            *self = Minute { number: minute, ..Minute::default() };
        }
        self.records.insert((self.hashes.0.hash_one(record), self.hashes.1.hash_one(record)))
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audit")
    }
}

impl Audit {
    pub(crate) fn new(engine: Engine) -> Self {
        Audit { engine, recent: Mutex::default() }
    }

    /// Somebody saw a body or a detail of this message.
    pub(crate) async fn viewed(&self, who: Option<&str>, header: &Header) {
        if self.first_this_minute(who, "message.viewed", &header.id.to_string()) {
            let text = format!("message {} was viewed", header.id);
            self.log(
                who,
                NewEvent::new(Level::Info, "message.viewed", text).message(header.session, header.id),
            )
            .await;
        }
    }

    /// Somebody saw the details of a session's trace.
    pub(crate) async fn viewed_session(&self, who: Option<&str>, first: &Header) {
        if self.first_this_minute(who, "message.viewed", &format!("session {}", first.session)) {
            let text = format!("the trace of session {} was viewed", first.session);
            self.log(
                who,
                NewEvent::new(Level::Info, "message.viewed", text).message(first.session, first.id),
            )
            .await;
        }
    }

    /// Somebody saw the detail of an event that belongs to no message.
    pub(crate) async fn viewed_event(&self, who: Option<&str>, id: u64) {
        if self.first_this_minute(who, "message.viewed", &format!("event {id}")) {
            self.log(who, NewEvent::new(Level::Info, "message.viewed", format!("event {id} was viewed")))
                .await;
        }
    }

    /// Somebody saw the server's words about an OAuth client.
    pub(crate) async fn viewed_client(&self, who: Option<&str>, client: &str) {
        if self.first_this_minute(who, "message.viewed", &format!("oauth {client}")) {
            let text = format!("the last error of OAuth client {client} was viewed");
            self.log(who, NewEvent::new(Level::Info, "message.viewed", text)).await;
        }
    }

    /// Somebody searched by keys or listed them. The names of the keys, never their values.
    pub(crate) async fn searched(&self, who: Option<&str>, keys: &[(String, String)]) {
        let names: Vec<_> = keys.iter().map(|(name, _)| name.as_str()).collect();
        let target = if names.is_empty() { "listed search keys".to_owned() } else { names.join(", ") };
        if self.first_this_minute(who, "messages.searched", &target) {
            let text = if names.is_empty() { target } else { format!("messages were searched by {target}") };
            self.log(who, NewEvent::new(Level::Info, "messages.searched", text)).await;
        }
    }

    /// Somebody copied files of the store: everything in it.
    pub(crate) async fn copied(&self, who: Option<&str>) {
        let text = "files of the store were copied";
        if self.first_this_minute(who, "store.copied", "") {
            self.log(who, NewEvent::new(Level::Info, "store.copied", text)).await;
        }
    }

    /// On disk before the answer leaves; a full disk holds an answer up for a while, not for ever.
    async fn log(&self, who: Option<&str>, event: NewEvent) {
        let event = match who {
            Some(who) => event.who(who),
            None => event,
        };
        let store = self.engine.store();
        let written = async {
            let Ok(permit) = store.reserve(Class::Completion, 0).await else { return };
            let event = Transaction::new(vec![Op::Event(event)]);
            if let Ok(committed) = store.submit(permit, event) {
                // A store that has failed says so itself.
                let _ = store.durable(committed.sequence).await;
            }
        };
        tokio::select! {
            () = written => {}
            () = store.clock().sleep(PATIENCE) => {}
        }
    }

    fn first_this_minute(&self, who: Option<&str>, kind: &str, target: &str) -> bool {
        let minute = self.engine.store().clock().now().as_second().div_euclid(60);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.enter(minute, &(who, kind, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_made_once_for_each_user_target_and_minute() {
        let mut minute = Minute::default();
        let anna = (Some("anna"), "message.viewed", "7");
        assert!(minute.enter(1, &anna) && !minute.enter(1, &anna));
        for other in [(None, anna.1, anna.2), (anna.0, "messages.searched", anna.2), (anna.0, anna.1, "8")] {
            assert!(minute.enter(1, &other) && !minute.enter(1, &other));
        }
        assert!(minute.enter(2, &anna) && !minute.enter(2, &anna));
    }
}
