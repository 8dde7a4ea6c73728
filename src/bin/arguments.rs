//! Values of the command line that are not types of the library.

use std::time::Duration;

use nkcluster::types::NodeUri;

use crate::exit;
use crate::failure::Failure;
use crate::output::{self, Form};
use std::process::ExitCode;

/// Addresses separated by commas.
#[derive(Clone, Debug)]
pub(crate) struct Uris(pub(crate) Vec<NodeUri>);

/// Reads a list of addresses with at least one.
pub(crate) fn uris(text: &str) -> Result<Uris, String> {
    let uris = NodeUri::parse_list(text).map_err(|error| format!("{}: {error}", error.code()))?;
    match uris.is_empty() {
        true => Err("expected at least one address such as nkcluster://127.0.0.1:15001;transport=tcp".to_owned()),
        false => Ok(Uris(uris)),
    }
}

/// Reads `30s`, `500ms`, `1m 30s`, or seconds without a unit; more than nothing, at most a week.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
    let duration = match text.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("expected a duration such as 30s or 500ms: {error}"))?,
    };
    match duration {
        Duration::ZERO => Err("expected more than 0".to_owned()),
        duration if duration > MAX => Err("expected at most 7 days".to_owned()),
        duration => Ok(duration),
    }
}

/// Ends a command line that could not be used: help and version on standard output, an error in one line on standard error.
pub(crate) fn tell_usage(error: &clap::Error, form: Form) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Who closed the pipe has read enough of the help.
            let _ = error.print();
            ExitCode::from(exit::DONE)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if !form.is_json() => {
            let _ = error.print();
            ExitCode::from(exit::USAGE)
        }
        _ => Failure::usage("invalid_usage", usage_line(&error.render().to_string())).tell(form),
    }
}

/// Whether a command line that may be wrong asks for JSON.
pub(crate) fn asks_for_json() -> Form {
    let asks = std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if asks { Form::Json } else { Form::People }
}

/// clap's message in one line: the reason, the tip, the usage.
fn usage_line(rendered: &str) -> String {
    let rendered = rendered.strip_prefix("error: ").unwrap_or(rendered);
    let paragraphs = rendered.split("\n\n").map(output::one_line).filter(|text| !text.is_empty());
    paragraphs
        .collect::<Vec<_>>()
        .join("; ")
        .replace("Usage: ", "usage: ")
        .replace("For more information, try", "for more information, try")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_or_are_seconds() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("0").is_err());
        assert!(duration("8days").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(uris("nkcluster://a:1, nkcluster://b:2").map(|uris| uris.0.len()), Ok(2));
        assert!(uris("").is_err());
        assert!(uris("http://a").is_err_and(|reason| reason.starts_with("invalid_scheme")));
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  <NODE>\n\nUsage: nkcluster info <NODE>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered),
            "the following required arguments were not provided: <NODE>; usage: nkcluster info <NODE>; for more information, try '--help'."
        );
    }
}
