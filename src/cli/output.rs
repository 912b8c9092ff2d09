//! What commands print: tables and progress for people, JSON for programs.

use std::io::{IsTerminal, Write};

/// Standard output and standard error, with colour where a terminal shows it.
pub struct Output {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    colour: bool,
    progress: bool,
}

/// How a piece of text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A heading.
    Bold,
    /// Something went well.
    Good,
    /// Something to look at.
    Bad,
    /// An aside.
    Dim,
}

impl Output {
    /// The process's own streams.
    #[must_use]
    pub fn standard() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let progress = std::io::stderr().is_terminal();
        Self { out: Box::new(std::io::stdout()), err: Box::new(std::io::stderr()), colour, progress }
    }

    /// Prints nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self { out: Box::new(std::io::sink()), err: Box::new(std::io::sink()), colour: false, progress: false }
    }

    /// A line of result. A reader that has gone away is no error: there is nobody left to tell.
    pub fn line(&mut self, text: impl std::fmt::Display) {
        let _gone = writeln!(self.out, "{text}");
        let _gone = self.out.flush();
    }

    /// A line for standard error.
    pub fn error(&mut self, text: &str) {
        let _gone = writeln!(self.err, "turnpike: {text}");
    }

    /// What is being done, on one line of a terminal's standard error that the next one takes the place of; an empty
    /// text clears it. Shown nowhere else.
    pub fn progress(&mut self, step: &str) {
        if self.progress {
            let _gone = write!(self.err, "\r\u{1b}[2K{step}");
            let _gone = self.err.flush();
        }
    }

    /// Text that stands out on a terminal.
    #[must_use]
    pub fn styled(&self, style: Style, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => "1",
            Style::Good => "32",
            Style::Bad => "31",
            Style::Dim => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// A step that is done.
    pub fn done(&mut self, text: impl std::fmt::Display) {
        let mark = self.styled(Style::Good, "✓");
        self.line(format_args!("  {mark} {text}"));
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        let text = self.styled(Style::Bold, text);
        self.line(format_args!("\n{text}"));
    }

    /// A table: the first row is its heading; columns that hold only numbers stand to the right.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        let Some(heading) = rows.first() else { return };
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..heading.len()).map(width).collect();
        let numeric = |column: usize| {
            rows.iter().skip(1).filter_map(|row| row.get(column)).all(|cell| {
                cell.chars().next().is_none_or(|c| c.is_ascii_digit() || c == '-')
                    && cell.chars().all(|c| c.is_ascii_digit() || " .,-+%".contains(c))
            })
        };
        let numeric: Vec<_> = (0..heading.len()).map(numeric).collect();
        for (index, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).zip(&numeric).map(|((cell, width), numeric)| {
                if *numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            let text = cells.collect::<Vec<_>>().join("  ");
            let text = text.trim_end();
            let text = if index == 0 { self.styled(Style::Dim, text) } else { text.to_owned() };
            self.line(format_args!("  {text}"));
        }
    }
}

/// A count with its thousands apart.
#[must_use]
pub fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
