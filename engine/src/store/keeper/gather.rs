//! Copying what has gathered in memory into a file's builder, a step at a time: writers never wait long for the
//! lock.

use super::{Keeper, STEP};
use crate::store::index::{self, Builder};
use crate::store::state::Step;

impl Keeper {
    /// Everything that transactions up to `last` made and the index does not have. Without `seal`, of the headers
    /// that are not final only those go along that may leave memory.
    pub(super) fn gather(&self, last: u64, seal: bool) -> Result<Builder, index::Error> {
        let mut builder = self.tools.index.builder();
        let state = || self.shared.state();
        in_steps(
            |from| state().settled(last, from, STEP),
            |rows| rows.iter().try_for_each(|header| builder.header(header, false)),
        )?;
        in_steps(
            |from| state().unfinished(last, seal, from, STEP),
            |rows| rows.iter().try_for_each(|header| builder.header(header, true)),
        )?;
        in_steps(
            |from| state().fresh_events(last, from, STEP),
            |rows| rows.iter().try_for_each(|event| builder.event(event)),
        )?;
        in_steps(
            |from| state().fresh_bodies(last, from, STEP),
            |ids| {
                for (id, place, kind) in self.shared.bodies.places(&ids) {
                    builder.body(id, &place, &kind);
                }
                Ok(())
            },
        )?;
        Ok(builder)
    }

    /// What the index has leaves memory.
    pub(super) fn drop_indexed(&self, last: u64, sealed: bool) {
        loop {
            let (released, more) = self.shared.state().indexed(last, sealed, STEP);
            self.shared.bodies.forget(&released);
            if !more {
                return;
            }
        }
    }
}

/// Takes step after step from where the one before ended, each with a lock of its own, until there is no more.
fn in_steps<T>(
    mut step: impl FnMut(usize) -> Step<T>,
    mut each: impl FnMut(Vec<T>) -> Result<(), index::Error>,
) -> Result<(), index::Error> {
    let mut from = 0;
    loop {
        let Step { rows, ended } = step(from);
        each(rows)?;
        if ended {
            return Ok(());
        }
        from += STEP;
    }
}
