//! Logs to standard error, and panics among them.

use std::io::IsTerminal;

use nkcluster::config::LogFormat;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, FilterFn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

/// Reads a level or a filter.
pub(super) fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| format!("expected a level (error, warn, info, debug, trace, off) or a filter: {error}"))
}

/// Starts to log, once per process.
pub(super) fn start(filter: EnvFilter, format: LogFormat) {
    tracing_subscriber::registry().with(layer(filter, format, std::io::stderr().is_terminal(), std::io::stderr)).init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("of an unknown kind");
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(place, %backtrace, "panic: {reason}");
    }));
}

/// Whatever the filter says, ractor and ractor_cluster never tell more than `info`: below it they log the messages themselves.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("ractor") || *metadata.level() <= Level::INFO
}

fn layer<S, W>(filter: EnvFilter, format: LogFormat, is_coloured: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let filter = filter.and(FilterFn::new(is_harmless));
    match format {
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => layer.with_ansi(is_coloured).with_filter(filter).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_level_and_a_filter_are_read() {
        assert!(filter("info").is_ok());
        assert!(filter("info,nkcluster::connection=debug").is_ok());
        assert!(filter("info,=,loud").is_err());
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics here").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_between_control_nodes_are_in_no_log_whatever_the_filter_says() {
        for text in ["trace", "info,ractor_cluster=trace", "ractor_cluster::node::node_session=trace"] {
            let lines = Lines::default();
            let writer = lines.clone();
            let layer = layer(filter(text).expect("valid"), LogFormat::Text, false, move || writer.clone());
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                tracing::debug!(target: "ractor_cluster::node::node_session", "a secret");
                tracing::trace!(target: "ractor::actor", "a secret");
                tracing::info!(target: "ractor_cluster::node::node_session", "a session");
            });
            let said = String::from_utf8(lines.0.lock().expect("nobody panics here").clone()).expect("text");
            assert!(said.contains("a session") && !said.contains("a secret"), "{text}: {said}");
        }
    }
}
