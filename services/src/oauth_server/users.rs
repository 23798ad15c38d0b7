//! People who may sign in: their passwords, and the limit on guessing them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::Secret;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::UserSettings;
use super::grants::same;

/// Wrong passwords in a row before a name has to wait.
const GUESSES: u32 = 5;
/// How long it has to wait then (seconds).
const WAIT: i64 = 60;
/// Password hashes computed at a time: each takes tens of milliseconds and 19 MiB.
const AT_A_TIME: usize = 2;

/// A checked user.
#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    password: Password,
}

#[derive(Clone)]
enum Password {
    Clear(Secret),
    /// An argon2id PHC string.
    Hash(Secret),
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({})", self.name)
    }
}

/// Checks the settings of one user; reports every problem.
pub(super) fn check(build: &mut Build<'_>, name: &str, settings: &UserSettings) -> Option<User> {
    let here = [At::Key("users"), At::Key(name)];
    let password = match (&settings.password, &settings.password_hash) {
        (Some(clear), None) if !clear.reveal().is_empty() => Password::Clear(clear.clone()),
        (None, Some(hash)) if PasswordHash::new(hash.reveal()).is_ok() => Password::Hash(hash.clone()),
        (None, Some(_)) => {
            let place = [At::Key("users"), At::Key(name), At::Key("password_hash")];
            let suggestion = Some("septet hash-password prints one".to_owned());
            build.error("S0502", &place, "this is no password hash", suggestion);
            return None;
        }
        _ => {
            let text = format!("user {name} needs either password or password_hash");
            build.error("S0501", &here, text, None);
            return None;
        }
    };
    Some(User { name: name.to_owned(), password })
}

/// How an attempt to sign in ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignIn {
    Right,
    Wrong,
    /// Too many wrong passwords: not looked at.
    TooMany,
}

/// Lets people in.
pub(super) struct Door {
    /// Wrong passwords in a row, and the end of the wait, by the name of a user there is.
    guesses: Mutex<HashMap<String, (u32, i64)>>,
    hashing: Semaphore,
}

impl Default for Door {
    fn default() -> Self {
        Door { guesses: Mutex::default(), hashing: Semaphore::new(AT_A_TIME) }
    }
}

impl Door {
    /// Judges a name and a password. A name that does not exist takes as long as a wrong password would.
    pub(super) async fn sign_in(&self, users: &[User], name: &str, password: &str, now: i64) -> SignIn {
        let user = users.iter().find(|user| user.name == name);
        if user.is_some() && !self.may_try(name, now) {
            return SignIn::TooMany;
        }
        let judged = user.or(users.first());
        let right = match judged.map(|user| &user.password) {
            None => false,
            Some(Password::Clear(clear)) => {
                let hash = |text: &str| super::grants::hashed(text);
                same(&hash(password), &hash(clear.reveal()))
            }
            Some(Password::Hash(hash)) => self.verify(hash, password).await,
        };
        match user {
            Some(_) if right => {
                self.guesses().remove(name);
                SignIn::Right
            }
            _ => SignIn::Wrong,
        }
    }

    /// Counts an attempt; a right password takes the count back. So parallel guesses count too.
    fn may_try(&self, name: &str, now: i64) -> bool {
        let mut guesses = self.guesses();
        let (count, until) = guesses.entry(name.to_owned()).or_default();
        if *count >= GUESSES {
            if now < *until {
                return false;
            }
            *count = 0;
        }
        *count += 1;
        *until = now.saturating_add(WAIT);
        true
    }

    fn guesses(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u32, i64)>> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn verify(&self, hash: &Secret, password: &str) -> bool {
        let Ok(_turn) = self.hashing.acquire().await else { return false };
        let (hash, password) = (hash.clone(), Zeroizing::new(password.to_owned()));
        let verified = tokio::task::spawn_blocking(move || {
            PasswordHash::new(hash.reveal())
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        verified.await.unwrap_or(false)
    }
}
