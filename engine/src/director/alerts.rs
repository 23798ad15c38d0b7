//! Alerts: something a person should look at. Each is an event of kind `alert`, and a typed message `Alert`
//! to every item in `production.alerts`, in a session of its own, in the same transaction as its cause.

use serde_json::{Map, Value, json};

use crate::body::Body;
use crate::clock::rfc3339;
use crate::director::Engine;
use crate::director::core::Core;
use crate::director::exchange::{Draft, Leg};
use crate::event::{Level, NewEvent};
use crate::header::{Header, ReplyTo};
use crate::id::{ItemName, MessageId, SessionId};
use crate::record::Record;
use crate::store::Class;

/// One alert.
#[derive(Clone, Debug)]
pub(super) struct Alert<'a> {
    pub(super) level: Level,
    /// What happened: `item.faulted`, `queue_age`, …
    pub(super) kind: &'static str,
    /// The item it is about.
    pub(super) item: Option<&'a ItemName>,
    /// The message it is about.
    pub(super) about: Option<(SessionId, MessageId)>,
    /// Engine-authored.
    pub(super) text: String,
    /// Script-authored; stays in the event.
    pub(super) detail: Option<String>,
}

impl<'a> Alert<'a> {
    /// About an item.
    pub(super) fn item(
        level: Level,
        kind: &'static str,
        item: &'a ItemName,
        text: impl Into<String>,
    ) -> Self {
        Alert { level, kind, item: Some(item), about: None, text: text.into(), detail: None }
    }

    /// Caused by a message.
    pub(super) fn message(mut self, header: &Header) -> Self {
        self.about = Some((header.session, header.id));
        self
    }
}

impl Draft<'_> {
    /// Raises an alert with this transaction.
    pub(super) fn alert(&mut self, alert: Alert<'_>) {
        tracing::warn!(item = alert.item.map(ItemName::as_str), kind = alert.kind, "{}", alert.text);
        let mut event = NewEvent::new(alert.level, "alert", alert.text.clone());
        event.item = alert.item.cloned();
        (event.session, event.message_id) = alert.about.unzip();
        if let Some(detail) = &alert.detail {
            event = event.detail(detail.clone());
        }
        self.event(event);
        let directory = self.directory.clone();
        let nobody = ItemName::new(&*directory.runtime.production);
        let known = |item: &&ItemName| directory.get(item.as_str()).is_some();
        for target in directory.plan.production.alerts.iter().filter(known) {
            if Some(target) == alert.item {
                continue;
            }
            let leg = Leg {
                session: None,
                caused_by: alert.about.map(|(_, message)| message),
                source: alert.item.unwrap_or(&nobody),
                target: Some(target),
                control_id: "".into(),
                reply_to: ReplyTo::Nobody,
            };
            let mut header = self.leg(leg, None);
            let placed = self.body(self.record(&alert, header.id));
            header.type_name = placed.body.shared_type_name();
            header.body_id = Some(placed.id);
            header.size = placed.body.size() as u64;
            self.header(header);
        }
    }

    fn record(&self, alert: &Alert<'_>, id: MessageId) -> Body {
        let mut fields = Map::new();
        fields.insert("id".into(), json!(id));
        fields.insert("at".into(), json!(rfc3339(self.now)));
        fields.insert("level".into(), json!(alert.level));
        fields.insert("kind".into(), json!(alert.kind));
        if let Some(item) = alert.item {
            fields.insert("item".into(), json!(item));
        }
        fields.insert("text".into(), json!(alert.text));
        if let Some((session, message)) = alert.about {
            fields.insert("session".into(), json!(session));
            fields.insert("message_id".into(), json!(message));
        }
        Body::record(Record::untyped("Alert", Value::Object(fields)))
    }
}

impl Engine {
    /// Raises an alert about something that is no item: an OAuth client whose sign-in ends, for example.
    pub async fn alert(&self, level: Level, kind: &'static str, text: String) {
        let alert = Alert { level, kind, item: None, about: None, text, detail: None };
        self.0.core.raise(alert, Vec::new()).await;
    }
}

impl Core {
    /// Raises an alert, with events that belong to it, in a transaction of its own. A store that takes
    /// nothing takes no alert either; the log line is all that is left then.
    pub(super) async fn raise(&self, alert: Alert<'_>, events: Vec<NewEvent>) {
        let mut draft = Draft::new(self);
        for event in events {
            draft.event(event);
        }
        draft.alert(alert);
        if let Err(failed) = draft.commit(Class::Completion).await {
            tracing::error!(error = %failed, "an alert could not be stored");
        }
    }
}
