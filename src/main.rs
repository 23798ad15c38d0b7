//! The `septet` program: its commands, one file each in `commands/`, and nothing of the engine's own logic.

mod commands;
mod composition;
mod logging;
mod output;
mod registry;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use septet_engine::config::settings::Log;

use commands::{
    check, doc, hash_password, items, listen, messages, oauth, replay, resend, run, schema, send, store,
    test, trace,
};

/// The system's allocator suffers where one thread frees what another made, as the journal's does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// HL7 integration engine: nothing lost, order kept, every message traceable and replayable.
///
/// Exit codes: 0 ok; 1 the answer is no; 2 usage or no such file; 3 could not start or reach.
/// The log goes to standard error: SEPTET_LOG=info|debug|…, SEPTET_LOG_FORMAT=text|json.
#[derive(Parser, Debug)]
#[command(name = "septet", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Test(test::Test),
    Send(send::Send),
    Listen(listen::Listen),
    Trace(trace::Trace),
    Messages(messages::Messages),
    Resend(resend::Resend),
    Replay(replay::Replay),
    Items(items::Items),
    Oauth(oauth::Oauth),
    Store(store::Store),
    Schema(schema::Schema),
    Doc(doc::Doc),
    HashPassword(hash_password::HashPassword),
}

/// Could not start.
const COULD_NOT_START: u8 = 3;

fn main() -> ExitCode {
    // One provider for all of TLS; an earlier one (there is none) would stay.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    // A production file may say how to log: `run` starts the log once it has read it.
    if !matches!(cli.command, Command::Run(_)) {
        logging::start(&Log::default());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(format_args!("cannot start: {error}"));
            return ExitCode::from(COULD_NOT_START);
        }
    };
    runtime.block_on(async {
        match cli.command {
            Command::Run(command) => command.run().await,
            Command::Check(command) => command.run().await,
            Command::Test(command) => command.run().await,
            Command::Send(command) => command.run().await,
            Command::Listen(command) => command.run().await,
            Command::Trace(command) => command.run().await,
            Command::Messages(command) => command.run().await,
            Command::Resend(command) => command.run().await,
            Command::Replay(command) => command.run().await,
            Command::Items(command) => command.run().await,
            Command::Oauth(command) => command.run().await,
            Command::Store(command) => command.run().await,
            Command::Schema(command) => command.run().await,
            Command::Doc(command) => command.run().await,
            Command::HashPassword(command) => command.run().await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
