//! People who may sign in: their passwords, and the limit on guessing them. A name that does not exist is
//! answered like one that does, in words, in time and in how often it may be tried.

use std::fmt;

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::Secret;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::grants::{hashed, same};
use super::guesses::Guesses;
use super::settings::UserSettings;

/// Wrong passwords in a row before a name has to wait.
const GUESSES: u32 = 5;
/// Password hashes computed at a time: each takes tens of milliseconds and 19 MiB.
const AT_A_TIME: usize = 2;
/// Sign-ins that wait for their turn at most: whoever hangs up still has one waiting.
const WAITING: usize = 64;
/// Longer passwords are wrong.
const LONGEST: usize = 1024;
/// What a password is judged by where there is no hash: the same work, never right. Of no password anybody
/// knows; argon2id with the usual costs.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c2VwdGV0IG5vYm9keSBhdCBhbGw$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A checked user.
#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    password: Password,
}

#[derive(Clone)]
enum Password {
    /// SHA-256 of one that stands in clear text in the settings.
    Clear(String),
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
        (Some(clear), None) if !clear.reveal().is_empty() => Password::Clear(hashed(clear.reveal())),
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
    /// Too many people at once: not looked at either.
    Busy,
}

/// Lets people in.
pub(super) struct Door {
    guesses: Guesses,
    waiting: Semaphore,
    hashing: Semaphore,
}

impl Door {
    /// For these users.
    pub(super) fn new(users: &[User]) -> Self {
        Door {
            guesses: Guesses::new(users.len(), GUESSES),
            waiting: Semaphore::new(WAITING),
            hashing: Semaphore::new(AT_A_TIME),
        }
    }

    /// Judges a name and a password.
    pub(super) async fn sign_in(&self, users: &[User], name: &str, password: &str, now: i64) -> SignIn {
        let Ok(_waits) = self.waiting.try_acquire() else { return SignIn::Busy };
        let number = users.iter().position(|user| user.name == name);
        let counter = self.guesses.counter(number, name);
        if !self.guesses.may_try(counter, now) {
            return SignIn::TooMany;
        }
        let wanted = number.and_then(|number| users.get(number)).map(|user| &user.password);
        let hash = match wanted {
            Some(Password::Hash(hash)) => hash.clone(),
            _ => Secret::new(NOBODY),
        };
        let by_hash = self.verify(hash, password).await;
        let right = match wanted {
            None => false,
            Some(Password::Clear(clear)) => same(&hashed(password), clear),
            Some(Password::Hash(_)) => by_hash,
        };
        if right && password.len() <= LONGEST {
            self.guesses.right(counter);
            return SignIn::Right;
        }
        SignIn::Wrong
    }

    async fn verify(&self, hash: Secret, password: &str) -> bool {
        let Ok(_turn) = self.hashing.acquire().await else { return false };
        let password: String = password.chars().take(LONGEST).collect();
        let password = Zeroizing::new(password);
        let verified = tokio::task::spawn_blocking(move || {
            PasswordHash::new(hash.reveal())
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        verified.await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_crowd_at_the_door_is_sent_away_rather_than_kept_waiting_in_memory() {
        let door = Door::new(&[]);
        let names: Vec<String> = (0..WAITING + 1).map(|number| format!("name{number}")).collect();
        let tries = names.iter().map(|name| door.sign_in(&[], name, "x", 0));
        let answers = futures_util::future::join_all(tries).await;
        assert_eq!(answers.iter().filter(|answer| **answer == SignIn::Busy).count(), 1);
    }

    #[tokio::test]
    async fn the_hash_of_nobody_costs_what_a_hash_costs_and_is_never_right() {
        assert!(PasswordHash::new(NOBODY).is_ok());
        assert_eq!(Door::new(&[]).sign_in(&[], "ada", "", 0).await, SignIn::Wrong);
    }
}
