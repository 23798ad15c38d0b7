//! `septet hash-password`: what `[admin.users.NAME] password_hash` takes.

use std::io::BufRead as _;
use std::process::ExitCode;

use argon2::Argon2;
use argon2::password_hash::PasswordHasher as _;
use clap::Args;

use crate::output;

/// Prints the argon2id hash of the line on standard input.
#[derive(Args, Debug)]
pub(crate) struct HashPassword {}

impl HashPassword {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let mut line = String::new();
        if let Err(error) = std::io::stdin().lock().read_line(&mut line) {
            output::error(format_args!("standard input cannot be read: {error}"));
            return ExitCode::from(2);
        }
        let password = line.strip_suffix('\n').unwrap_or(&line);
        let password = password.strip_suffix('\r').unwrap_or(password);
        if password.is_empty() {
            output::error("there is no password on standard input");
            return ExitCode::from(2);
        }
        match Argon2::default().hash_password(password.as_bytes()) {
            Ok(hash) => {
                output::line(hash.to_string());
                ExitCode::SUCCESS
            }
            Err(error) => {
                output::error(error);
                ExitCode::from(3)
            }
        }
    }
}
