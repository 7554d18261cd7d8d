//! How a frame looks on standard output: a line for people, or the JSON text for programs.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::frame::{Frame, one_line};
use crate::ids;

/// ECMA-48, 8.3.117, "Select graphic rendition".
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// How frames are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The JSON text as it came.
    Json,
    /// Time, number, type and payload.
    Human { colours: bool },
}

impl Format {
    /// For people, with colours where they are wanted (no-color.org).
    pub(super) fn for_stdout() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        Self::Human { colours: io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb }
    }

    /// The line for a frame, with its end. `frame` is `None` where the text is no frame.
    fn line(self, time: &str, text: &str, frame: Option<&Frame<'_>>) -> String {
        let Self::Human { colours } = self else { return format!("{}\n", one_line(text)) };
        let (all, dim, bold, plain) = match (colours, frame.is_some_and(Frame::is_control)) {
            (false, _) => ("", "", "", ""),
            (true, true) => (DIM, "", "", ""),
            (true, false) => ("", DIM, BOLD, PLAIN),
        };
        let (seq, kind, payload) = match frame {
            Some(frame) => (frame.seq, &*frame.kind, frame.payload.map_or("", |payload| payload.get())),
            None => (None, "?", text),
        };
        let mut line = format!("{all}{dim}{time}{plain}  ");
        let _ = match seq {
            Some(seq) => write!(line, "#{seq}"),
            None => write!(line, "-"),
        };
        let _ = write!(line, "  {bold}{}{plain}  {}", printable(kind), printable(&one_line(payload)));
        line.truncate(line.trim_end().len());
        line.push_str(if all.is_empty() { "\n" } else { "\x1b[0m\n" });
        line
    }
}

/// The text without characters that steer a terminal or reorder what stands around them; inside a JSON string the
/// escape that takes their place is the same value.
fn printable(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if ids::check(character.encode_utf8(&mut [0; 4])).is_ok() {
            out.push(character);
        } else {
            // Every one of them is in the basic plane: one escape of four digits.
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
    }
    out.into()
}

/// Prints frames.
pub(super) struct Printer<W> {
    out: W,
    format: Format,
}

impl<W: AsyncWrite + Unpin> Printer<W> {
    pub(super) fn new(out: W, format: Format) -> Self {
        Self { out, format }
    }

    /// Prints a frame and hands it on at once. When cancelled, a part of the line may be written.
    ///
    /// # Errors
    /// When the output takes no more.
    pub(super) async fn print(&mut self, text: &str, frame: Option<&Frame<'_>>) -> io::Result<()> {
        let time = jiff::Zoned::now().strftime("%H:%M:%S%.3f").to_string();
        self.out.write_all(self.format.line(&time, text, frame).as_bytes()).await?;
        self.out.flush().await
    }
}

/// Says on standard error what happens to the connection.
pub(super) fn status(text: &str) {
    // Nobody may be there to read it; that is no reason to end.
    let _ = writeln!(io::stderr(), "notifier: {}", printable(&one_line(text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "12:03:04.123";
    const HUMAN: Format = Format::Human { colours: false };

    fn line(format: Format, text: &str) -> String {
        format.line(TIME, text, Frame::parse(text).as_ref())
    }

    #[test]
    fn a_line_for_people_has_time_number_type_and_payload() {
        let durable = r#"{"target":"101","type":"update_channel","payload":{"channel":999},"seq":12}"#;
        assert_eq!(line(HUMAN, durable), "12:03:04.123  #12  update_channel  {\"channel\":999}\n");
        let transient = r#"{"target":"101","type":"typing","payload":"a"}"#;
        assert_eq!(line(HUMAN, transient), "12:03:04.123  -  typing  \"a\"\n");
        let without_payload = r#"{"type":"$later"}"#;
        assert_eq!(line(HUMAN, without_payload), "12:03:04.123  -  $later\n");
        assert_eq!(line(HUMAN, "no frame"), "12:03:04.123  -  ?  no frame\n");
    }

    #[test]
    fn control_frames_are_dimmed_as_a_whole() {
        let colours = Format::Human { colours: true };
        let bye = line(colours, r#"{"type":"$bye","payload":{}}"#);
        assert_eq!(bye, "\x1b[2m12:03:04.123  -  $bye  {}\x1b[0m\n");
        let notification = line(colours, r#"{"type":"t","payload":1,"seq":2}"#);
        assert_eq!(notification, "\x1b[2m12:03:04.123\x1b[0m  #2  \x1b[1mt\x1b[0m  1\n");
    }

    #[test]
    fn json_is_what_came_on_one_line() {
        let text = "{\"type\":\"t\",\"payload\":{\"a\":\n1.50,\"b\":\"\u{9b}\"},\"unknown\":[ ]}";
        assert_eq!(line(Format::Json, text), format!("{}\n", text.replace('\n', " ")));
        assert_eq!(line(Format::Json, r#"{"type":"$bye","payload":{}}"#), "{\"type\":\"$bye\",\"payload\":{}}\n");
    }

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        let text = "{\"type\":\"\\u001b[2J\",\"payload\":\"\u{9b}2J\u{7f}\u{202e}é\n\"}".replace('\n', "");
        assert_eq!(line(HUMAN, &text), "12:03:04.123  -  \\u001b[2J  \"\\u009b2J\\u007f\\u202eé\"\n");
    }
}
