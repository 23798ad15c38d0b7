//! A flow on disk: what is live when everything waits becomes bytes, and the bytes the same flow again.

use std::collections::BTreeMap;

use bytes::Bytes;
use rquickjs::{Array, Value};

use super::instance::Stored;
use super::run::Machine;
use crate::scene::MAX_KEPT;
use crate::script::raised::Raised;

/// The format of [`Stored`].
const FORMAT: u32 = 1;

impl<'js> Machine<'_, '_, 'js> {
    pub(super) fn restore(&mut self, instance: &[u8]) -> Result<(), Raised> {
        let unreadable =
            |what: &str| Raised::engine("script", "instance", format!("the stored instance {what}"));
        let stored: Stored = serde_json::from_slice(instance).map_err(|_| unreadable("cannot be read"))?;
        if stored.format != FORMAT {
            return Err(unreadable("has another format"));
        }
        self.scene.restoring(&stored.messages, self.scene.request_message());
        let json = stored.kept.to_string();
        let scene = &*self.scene;
        let values: Vec<Value<'js>> = scene.guarded("instance", || {
            let kept: Array<'js> = scene.helpers.kept_value(&json)?.get()?;
            kept.iter::<Value<'js>>().collect()
        })?;
        let null = Value::new_null(scene.cx.clone());
        let value = |place: usize| values.get(place).cloned().unwrap_or_else(|| null.clone());
        self.scene.context = value(0);
        self.scene.response = value(1);
        let threads = stored.threads.iter();
        self.threads = threads.map(|(id, thread)| (*id, thread.map(&mut |place| value(*place)))).collect();
        self.scene.stage.engine.shared.job.borrow_mut().taken = stored.taken;
        self.calls = stored.calls;
        self.calls_made = stored.calls_made;
        self.timers_made = stored.timers_made;
        self.replied = stored.replied;
        Ok(())
    }

    pub(super) fn store(&mut self) -> Result<Bytes, Raised> {
        let scene = &*self.scene;
        scene.restoring(&[], scene.request_message());
        let mut values = vec![scene.context.clone(), scene.response.clone()];
        let mut threads = BTreeMap::new();
        for (id, thread) in &self.threads {
            let mut keep = |value: &Value<'js>| {
                values.push(value.clone());
                values.len() - 1
            };
            threads.insert(*id, thread.map(&mut keep));
        }
        let json = scene.guarded("context", || {
            let kept = Array::new(scene.cx.clone())?;
            for (place, value) in values.into_iter().enumerate() {
                kept.set(place, value)?;
            }
            scene.helpers.kept_json(kept.into_value())
        })?;
        if json.len() > MAX_KEPT {
            let text = scene.place("context is larger than 1 MiB");
            return Err(Raised::engine("script", "size", text));
        }
        let taken = scene.stage.engine.shared.job.borrow().taken;
        let stored = Stored {
            format: FORMAT,
            taken,
            calls_made: self.calls_made,
            timers_made: self.timers_made,
            replied: self.replied,
            calls: self.calls.clone(),
            threads,
            kept: serde_json::from_str(&json).unwrap_or_default(),
            messages: scene.kept_messages(),
        };
        Ok(Bytes::from(serde_json::to_vec(&stored).unwrap_or_default()))
    }
}
