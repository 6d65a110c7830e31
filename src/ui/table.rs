//! Tables with a heading, columns as wide as they have to be.

use super::style::{Style, clean, paint};

/// Lays out rows under headings; the last column is not padded. Two blanks stand between columns.
pub fn lay_out<const N: usize>(headings: [&str; N], rows: &[[String; N]], coloured: bool) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| clean(cell))).collect();
    let widths: [usize; N] = std::array::from_fn(|at| {
        rows.iter().map(|row| row[at].chars().count()).chain([headings[at].chars().count()]).max().unwrap_or(0)
    });
    let mut text = line(&headings.map(str::to_owned), &widths, |_, cell| paint(cell, Style::Strong, coloured));
    for row in &rows {
        text += &line(row, &widths, |at, cell| match at {
            0 => paint(cell, Style::Strong, coloured),
            _ => cell.to_owned(),
        });
    }
    text
}

fn line<const N: usize>(cells: &[String; N], widths: &[usize; N], paint: impl Fn(usize, &str) -> String) -> String {
    let mut text = String::new();
    for (at, cell) in cells.iter().enumerate() {
        text += &paint(at, cell);
        if at + 1 < N {
            // Padding is counted without the colours.
            text += &" ".repeat(widths[at] - cell.chars().count() + 2);
        }
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["M0301".to_owned(), "pid 7".to_owned()], ["M1".to_owned(), "näme\x1b[2J".to_owned()]];
        assert_eq!(lay_out(["CODE", "OBJECT"], &rows, false), "CODE   OBJECT\nM0301  pid 7\nM1     näme\u{fffd}[2J\n");
    }
}
