//! The log: to standard error, as `SEPTET_LOG` and `SEPTET_LOG_FORMAT` say, else as `[log]` of the production
//! file says, else `info` as text. A log that cannot be written never stops the engine: errors of writing,
//! also to a closed standard error, are ignored.

use std::io::{self, IsTerminal as _, Write};

use septet_engine::config::settings::{Log, LogFormat};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging, once per process.
pub(crate) fn start(log: &Log) {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let level = variable("SEPTET_LOG").or_else(|| log.level.clone()).unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&level).unwrap_or_else(|_| {
        crate::output::error(format_args!("{level:?} is no log level; info is used"));
        EnvFilter::new("info")
    });
    let json = match variable("SEPTET_LOG_FORMAT").as_deref() {
        Some("json") => true,
        Some("text") => false,
        _ => log.format == Some(LogFormat::Json),
    };
    let registry = tracing_subscriber::registry().with(filter);
    // A second start (there is none) would leave the first in place.
    let _ = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(|| Quiet(io::stderr()))).try_init()
    } else {
        let colours = io::stderr().is_terminal();
        registry.with(fmt::layer().with_ansi(colours).with_writer(|| Quiet(io::stderr()))).try_init()
    };
}

/// A writer whose errors do not matter.
struct Quiet<W>(W);

impl<W: Write> Write for Quiet<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_error() {
        let mut log = Quiet(Closed);
        assert_eq!(log.write(b"line\n").unwrap(), 5);
        assert!(log.flush().is_ok());
    }
}
