//! The moment at which the script running on this thread must end.
//!
//! QuickJS asks its interrupt handler only once in ten thousand jumps and calls; a loop over a slow native
//! function would run on for seconds. So the native functions that may be slow ask as well ([`check`]): they
//! throw, and should the script catch that, it gets to the next real interrupt all the sooner.

use std::cell::Cell;
use std::time::Instant;

use rquickjs::{Ctx, Exception, Result};

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
    static TRIPPED: Cell<bool> = const { Cell::new(false) };
}

/// Sets the deadline of what runs next on this thread.
pub(crate) fn set(deadline: Option<Instant>) {
    DEADLINE.set(deadline);
    TRIPPED.set(false);
}

/// No script runs any more; whether the one that ran was stopped.
pub(crate) fn clear() -> bool {
    DEADLINE.set(None);
    TRIPPED.replace(false)
}

/// Whether the deadline has passed: the script is to be stopped.
pub(crate) fn passed() -> bool {
    let late = DEADLINE.get().is_some_and(|deadline| Instant::now() >= deadline);
    if late {
        TRIPPED.set(true);
    }
    late
}

/// Throws where the deadline has passed.
pub(crate) fn check(cx: &Ctx<'_>) -> Result<()> {
    if passed() { Err(Exception::throw_internal(cx, "interrupted")) } else { Ok(()) }
}
