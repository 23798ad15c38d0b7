//! What a transaction must pass before it is folded: its guards, and the places that only the state can fill.

use jiff::Timestamp;

use super::State;
use crate::header::Status;
use crate::store::api::{Conflict, Guard};
use crate::store::change::{Change, Settling};

impl State {
    /// Checks every guard of a transaction, in order, against the state as it would be then.
    pub(in crate::store) fn check(&self, changes: &[Settling]) -> Result<(), Conflict> {
        for (index, settling) in changes.iter().enumerate() {
            let (change, guard) = match (&settling.change, settling.guard) {
                (Change::Move(change), Some(guard)) => (change, guard),
                (Change::Header(header), _) => {
                    if let Some(original) = header.resent_from
                        && self.dead.contains_key(&header.session.0)
                    {
                        // Purged since it was looked at: its body is gone, or about to go.
                        return Err(Conflict::Unknown(original));
                    }
                    continue;
                }
                _ => continue,
            };
            let id = change.id;
            let earlier = changes.iter().take(index).rev().find_map(|settling| settling.change.makes(id));
            let stored = self.rows.get(&id.0).map(|row| row.status);
            let status = earlier.or(stored).ok_or(Conflict::Unknown(id))?;
            match guard {
                Guard::Lease(lease) => {
                    if lease.id != id || self.leases.get(&id.0) != Some(&lease.generation) {
                        return Err(Conflict::Lease(id));
                    }
                }
                Guard::Status(expected) if expected != status => return Err(Conflict::Status { id, status }),
                Guard::Status(_) => {}
            }
            if !status.may_become(change.to) {
                return Err(Conflict::Status { id, status });
            }
        }
        Ok(())
    }

    /// Fills what only the state knows: queue positions, and how often a message was given that is leaving
    /// its delivery (`take` counts in memory only), and how those stand that are suspended.
    pub(in crate::store) fn place(&mut self, changes: &mut Vec<Settling>, at: Timestamp) {
        for settling in changes.iter_mut() {
            match &mut settling.change {
                Change::Header(header) => {
                    self.next_position += 1;
                    header.position = self.next_position;
                }
                Change::Move(change) if change.attempts.is_none() => {
                    let row = self.rows.get(&change.id.0).filter(|row| row.status == Status::Delivered);
                    change.attempts = row.map(|row| row.attempts);
                }
                _ => {}
            }
        }
        let stands = self.stands(changes, at);
        changes.extend(stands);
    }
}
