//! Stores that are purged while they are loaded and killed: on demand, or by age and by size. What is gone was
//! finished: it has been delivered. What is left is left whole, and in the end the disk has its room back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Choices, Store, control_id, delivered_in_order, each, key, message, text};
use crate::support::{Septet, files_below};

/// Who purges a store, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purges {
    Never,
    /// `POST /api/v1/purge`, again and again.
    OnDemand,
    /// `retention` and `max_size` at every start, and on demand as well.
    ByAgeAndSize,
}

impl Purges {
    pub(super) fn choose(choices: &mut Choices) -> Purges {
        match choices.below(4) {
            0 => Purges::OnDemand,
            1 => Purges::ByAgeAndSize,
            _ => Purges::Never,
        }
    }

    /// From the next start on nothing is purged unasked: what is there can be looked at.
    pub(super) fn stop(self, septet: &Septet) {
        let path = septet.path("production.toml");
        let text = std::fs::read_to_string(&path).expect("it was written");
        let kept = text.replace(self.settings(), Purges::Never.settings());
        std::fs::write(path, kept).expect("the folder is ours");
    }

    /// Its part of `[store]`.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Purges::Never | Purges::OnDemand => "retention = \"30d\"",
            Purges::ByAgeAndSize => "retention = \"1s\"\nmax_size = \"3MiB\"",
        }
    }
}

/// Everything that is finished may go.
fn everything(dry_run: bool) -> Value {
    json!({ "before": "2200-01-01T00:00:00Z", "dry_run": dry_run })
}

/// Purges again and again, until nobody answers any more.
pub(super) async fn until_killed(url: String) {
    let client = reqwest::Client::new();
    while client.post(&url).json(&everything(false)).send().await.is_ok_and(|answer| answer.status() == 200) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Store {
    /// Sessions are there as a whole or not at all, with all their bodies; what is not there any more has been
    /// delivered, in the order of each sender. Gives everything that was ever taken.
    pub(super) async fn what_is_left_is_whole(&self, all: &[Value]) -> BTreeSet<String> {
        let mut sessions: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
        for header in all {
            sessions.entry(header["session"].as_u64().expect("an id")).or_default().push(header);
        }
        // Every body begins with MSH: a search for that reads them all.
        assert_eq!(self.messages("&q=MSH%7C").await, all, "messages without their bodies");
        let mut taken = BTreeSet::new();
        for (number, (session, headers)) in sessions.iter().enumerate() {
            if number % (1 + sessions.len() / 20) == 0 {
                self.session_is_as_listed(*session, headers).await;
            }
            let legs: Vec<String> = headers
                .iter()
                .map(|header| {
                    format!("{} {} {}", text(header, "source"), text(header, "target"), header["kind"])
                })
                .collect();
            for leg in ["in router \"request\"", "router out \"request\""] {
                let there = legs.iter().filter(|there| *there == leg).count();
                assert_eq!(there, 1, "{leg} of session {session}: {legs:?}");
            }
            for header in headers {
                assert_eq!(header["status"], "completed", "{header}");
                taken.extend((header["kind"] == "request").then(|| text(header, "control_id")));
            }
        }
        let lives = self.out.lives().await;
        taken.extend(lives.iter().flatten().cloned());
        for id in &taken {
            let sent = self.sent.acknowledged.contains(id) || self.sent.perhaps.contains(id);
            assert!(sent, "{id} was never sent");
        }
        let missing: Vec<_> = self.sent.acknowledged.difference(&taken).collect();
        assert!(missing.is_empty(), "acknowledged, not in the store and not delivered: {missing:?}");
        for body in self.out.bodies.lock().await.iter() {
            assert_eq!(*body, message(control_id(body)), "bytes differ where they were delivered");
        }
        // The list does not have the whole queue any more; what one sender sent stands in it in order.
        let mut senders: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for id in &taken {
            senders.entry(id.rsplit_once('-').expect("a number").0).or_default().push(id.clone());
        }
        for (sender, mut queue) in senders {
            queue.sort_by_key(|id| id.rsplit('-').next().and_then(|number| number.parse::<u64>().ok()));
            let of = |id: &&String| id.rsplit_once('-').is_some_and(|(name, _)| name == sender);
            let lives: Vec<Vec<String>> =
                lives.iter().map(|life| life.iter().filter(of).cloned().collect()).collect();
            delivered_in_order(&queue, &lives, self.by_key);
        }
        assert!(taken.iter().all(|id| key(id).starts_with('K')));
        taken
    }

    async fn session_is_as_listed(&self, session: u64, headers: &[&Value]) {
        let told = self.septet.get(&format!("/api/v1/sessions/{session}")).await;
        let ids: Vec<&Value> = headers.iter().map(|header| &header["id"]).collect();
        let listed: Vec<&Value> = each(&told["messages"]).map(|header| &header["id"]).collect();
        assert_eq!(ids, listed, "session {session} and the list");
        for header in headers.iter().filter(|header| header["kind"] == "request") {
            let url = self.septet.url(&format!("/api/v1/messages/{}/raw", header["id"]));
            let stored = reqwest::get(url).await.expect("it runs").text().await.expect("a body");
            assert_eq!(stored, message(&text(header, "control_id")), "bytes differ in the store");
        }
    }

    /// Everything is finished: a purge leaves nothing of it, and the journal takes no more than what is kept ready.
    pub(super) async fn room_is_given_back(&self) {
        let (status, counted) = self.septet.post("/api/v1/purge", everything(true)).await;
        assert_eq!(status, 200, "{counted}");
        let (status, purged) = self.septet.post("/api/v1/purge", everything(false)).await;
        assert_eq!(status, 200, "{purged}");
        for name in ["messages", "sessions", "carried"] {
            assert_eq!(counted[name], purged[name], "{name} of a dry run, {counted}, and of {purged}");
        }
        let left = self.all_messages().await;
        assert!(left.is_empty(), "{left:?}");
        let events = self.septet.get("/api/v1/events?kind=purge").await;
        let told = each(&events["events"]).next().expect("an event");
        let said = format!("purged {} messages of {} sessions", purged["messages"], purged["sessions"]);
        assert!(text(told, "text").starts_with(&said), "{told} and {purged}");
        let journal = files_below(&self.septet.path("data")).into_iter();
        let size: u64 = journal.filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
        assert!(size < 5 << 20, "{size} bytes are left");
    }
}
