//! Logs to standard error, and panics among them.

use std::io::IsTerminal;

use nkcluster::config::LogFormat;
use tracing_subscriber::EnvFilter;

/// Reads a level or a filter.
pub(super) fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| format!("expected a level (error, warn, info, debug, trace, off) or a filter: {error}"))
}

/// Starts to log, once per process.
pub(super) fn start(filter: EnvFilter, format: LogFormat) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("of an unknown kind");
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(place, %backtrace, "panic: {reason}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_and_a_filter_are_read() {
        assert!(filter("info").is_ok());
        assert!(filter("info,nkcluster::connection=debug").is_ok());
        assert!(filter("info,=,loud").is_err());
    }
}
