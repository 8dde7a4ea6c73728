//! What people and scripts read: tables and sentences, or JSON.
//!
//! Nothing here panics when the reader goes away. Colour and progress appear only on a terminal.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use nkcluster::types::NodeStatus;
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Tables and sentences.
    People,
    /// One JSON document, or one per line where the output is a stream.
    Json,
}

impl Form {
    /// Whether a script reads.
    pub(crate) fn is_json(self) -> bool {
        self == Form::Json
    }

    /// Prints the document, or the text for people.
    pub(crate) fn print<T: Serialize + ?Sized>(self, document: &T, text: impl FnOnce() -> String) -> Outcome {
        match self {
            Form::Json => self.document(document),
            Form::People => self.line(text()),
        }
    }

    /// Prints one JSON document.
    pub(crate) fn document<T: Serialize + ?Sized>(self, document: &T) -> Outcome {
        let line = serde_json::to_string(document).map_err(|error| Failure::new("internal", format!("the result is not JSON: {error}")))?;
        self.line(line)
    }

    /// Prints a line; nothing for an empty one.
    pub(crate) fn line(self, line: impl AsRef<str>) -> Outcome {
        let line = line.as_ref();
        if line.is_empty() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(line.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Unread,
            _ => Failure::io("cannot write to standard output", &error),
        })
    }
}

/// Writes a line to standard error; when even that is closed, nobody can be told.
pub(crate) fn to_stderr(line: &str) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "{line}");
}

/// The text on one line: a message of another program may have several.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A table without borders.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    table.set_header(header.map(|name| Cell::new(name.to_uppercase())));
    table
}

/// The text of a table, without the blanks that pad its last column.
pub(crate) fn text_of(table: &Table) -> String {
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    let indent = lines.iter().map(|line| line.len() - line.trim_start_matches(' ').len()).min().unwrap_or(0);
    lines.iter().map(|line| &line[indent..]).collect::<Vec<_>>().join("\n")
}

/// A status with its colour.
pub(crate) fn status_cell(status: NodeStatus) -> Cell {
    let cell = Cell::new(status);
    match status {
        NodeStatus::Ready => cell.fg(Color::Green),
        NodeStatus::NotConnected => cell.fg(Color::Red),
        _ => cell.fg(Color::Yellow),
    }
}

/// `-` for what is not known.
pub(crate) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// A time of day in UTC, from milliseconds since 1970.
pub(crate) fn clock(time_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(time_ms);
    humantime::format_rfc3339_millis(time).to_string()
}

/// Bytes for people, in powers of 1024.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(one_line("a\n  b\t c\n"), "a b c");
    }

    #[test]
    fn a_table_starts_at_the_margin_and_pads_nothing() {
        let mut table = table(["id", "status"]);
        table.add_row(["dev1", "ready"]);
        assert_eq!(text_of(&table), "ID    STATUS\ndev1  ready");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(clock(0), "1970-01-01T00:00:00.000Z");
    }
}
