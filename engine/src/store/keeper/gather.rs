//! Copying what has gathered in memory into a file's builder, a step at a time: writers never wait long for the
//! lock, under which nothing is read, built or dropped.

use super::{Keeper, STEP};
use crate::store::index::{self, Builder};

impl Keeper {
    /// Everything that transactions up to `last` made and the index does not have. Without `seal`, of the headers
    /// that are not final only those go along that may leave memory.
    pub(super) fn gather(&self, last: u64, seal: bool) -> Result<Builder, index::Error> {
        let mut builder = self.tools.index.builder();
        let state = || self.shared.state();
        in_steps(|from| {
            let (step, names) = {
                let state = state();
                (state.settled(last, from, STEP), state.item_names())
            };
            step.rows.iter().try_for_each(|row| builder.header(&row.header(&names), false))?;
            Ok(step.ended)
        })?;
        in_steps(|from| {
            let (step, names) = {
                let state = state();
                (state.unfinished(last, seal, from, STEP), state.item_names())
            };
            step.rows.iter().try_for_each(|row| builder.header(&row.header(&names), true))?;
            Ok(step.ended)
        })?;
        in_steps(|from| {
            let step = state().fresh_events(last, from, STEP);
            step.rows.iter().try_for_each(|event| builder.event(event))?;
            Ok(step.ended)
        })?;
        in_steps(|from| {
            let step = state().fresh_bodies(last, from, STEP);
            for (id, place, kind) in self.shared.bodies.places(&step.rows) {
                builder.body(id, &place, &kind);
            }
            Ok(step.ended)
        })?;
        Ok(builder)
    }

    /// What the index has leaves memory.
    pub(super) fn drop_indexed(&self, last: u64, sealed: bool) {
        loop {
            let mut state = self.shared.state();
            let (left, more) = state.indexed(last, sealed, STEP);
            // Before anybody can write one of them again.
            let forgotten = self.shared.bodies.forget(&left.bodies);
            drop(state);
            drop((left, forgotten));
            if !more {
                return;
            }
        }
    }
}

/// Takes step after step from where the one before ended, each with a lock of its own, until one says that it was
/// the last.
fn in_steps(mut step: impl FnMut(usize) -> Result<bool, index::Error>) -> Result<(), index::Error> {
    let mut from = 0;
    while !step(from)? {
        from += STEP;
    }
    Ok(())
}
