//! Numbers in columns, not wider than 100 characters.

use std::fmt::Write;

use tlbscope_analyze::compare::{Rank, Row};

/// Columns of a line.
const WIDTH: usize = 100;
/// Columns between two numbers, at least.
const GAP: usize = 1;
/// Columns of the marks behind a number.
const MARKS: usize = 2;
/// A part of a policy's name that is longer is broken.
const PIECE_MAX: usize = 20;

/// The layout that all blocks of a comparison share.
pub struct Grid {
    /// Columns of the names of the rows.
    names: usize,
    /// Lines of the heading of each column.
    heads: Vec<Vec<String>>,
    /// Columns of each column, without gap and marks.
    widths: Vec<usize>,
    /// The policies of each block, by number. The first is in each of them.
    blocks: Vec<Vec<usize>>,
    coloured: bool,
}

impl Grid {
    /// A layout for these headings and rows.
    pub fn new<'a>(heads: &[String], rows: impl Iterator<Item = &'a Row>, coloured: bool) -> Self {
        let (mut names, mut digits) = (0, vec![1; heads.len()]);
        for row in rows {
            // Rows of a part are moved in by two.
            names = names.max(row.name.len() + 2);
            for (width, value) in digits.iter_mut().zip(&row.values) {
                *width = (*width).max(value.to_string().len());
            }
        }
        let whole = |head: &String| vec![head.clone()];
        let mut lines: Vec<Vec<String>> = heads.iter().map(whole).collect();
        let mut widths = Self::widths(&lines, &digits);
        if names + widths.iter().map(|w| w + GAP + MARKS).sum::<usize>() > WIDTH {
            let pieces: Vec<Vec<String>> = heads.iter().map(|head| pieces(head)).collect();
            let narrow = Self::widths(&pieces, &digits);
            lines =
                pieces.iter().zip(&narrow).map(|(pieces, width)| fill(pieces, *width)).collect();
            widths = narrow;
        }
        let blocks = blocks(names, &widths);
        Self { names, heads: lines, widths, blocks, coloured }
    }

    /// The columns that headings and numbers need.
    fn widths(heads: &[Vec<String>], digits: &[usize]) -> Vec<usize> {
        let widest = |lines: &Vec<String>| lines.iter().map(|l| l.chars().count()).max();
        heads.iter().zip(digits).map(|(l, d)| widest(l).unwrap_or(0).max(*d)).collect()
    }

    /// Writes rows, each block with its heading.
    pub fn block(&self, out: &mut String, indent: &str, rows: &[Row]) {
        for block in &self.blocks {
            self.heading(out, block);
            for row in rows {
                self.row(out, indent, block, row);
            }
        }
    }

    fn heading(&self, out: &mut String, block: &[usize]) {
        let height = block.iter().map(|column| self.heads[*column].len()).max().unwrap_or(0);
        for line in 0..height {
            let mut text = " ".repeat(self.names);
            for column in block {
                let lines = &self.heads[*column];
                // The last lines stand side by side, above the numbers.
                let piece = (line + lines.len()).checked_sub(height).map(|at| lines[at].as_str());
                let (width, piece) = (self.widths[*column] + GAP, piece.unwrap_or_default());
                let _ = write!(text, "{piece:>width$}{:MARKS$}", "");
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
    }

    fn row(&self, out: &mut String, indent: &str, block: &[usize], row: &Row) {
        let mut text = format!("{:1$}", format!("{indent}{}", row.name), self.names);
        for column in block {
            let value = row.values[*column];
            let differs = value != row.values[0];
            let rank = row.ranks[*column];
            let mark = match rank {
                Some(Rank::Best) => "<",
                Some(Rank::Worst) => ">",
                None => "",
            };
            let marks = format!("{}{mark}", if differs { "*" } else { "" });
            let width = self.widths[*column] + GAP;
            let _ = write!(text, "{}", " ".repeat(width - value.to_string().len()));
            let painted = self.paint(&format!("{value}{marks}"), rank, differs);
            let _ = write!(text, "{painted}{}", " ".repeat(MARKS - marks.len()));
        }
        let _ = writeln!(out, "{}", text.trim_end());
    }

    /// Green is best, red is worst, bold is different.
    fn paint(&self, text: &str, rank: Option<Rank>, differs: bool) -> String {
        let code = match (rank, differs) {
            _ if !self.coloured => return text.to_owned(),
            (Some(Rank::Best), _) => "32",
            (Some(Rank::Worst), _) => "31",
            (None, true) => "1",
            (None, false) => return text.to_owned(),
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A name broken behind its hyphens, and where a piece is too long.
fn pieces(name: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    for piece in name.split_inclusive('-') {
        let letters: Vec<char> = piece.chars().collect();
        pieces.extend(letters.chunks(PIECE_MAX).map(|chunk| chunk.iter().collect::<String>()));
    }
    pieces
}

/// Pieces put together to lines of at most `width`.
fn fill(pieces: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for piece in pieces {
        match lines.last_mut() {
            Some(line) if line.chars().count() + piece.chars().count() <= width => *line += piece,
            _ => lines.push(piece.clone()),
        }
    }
    lines
}

/// As many policies side by side as fit, the first in each block.
fn blocks(names: usize, widths: &[usize]) -> Vec<Vec<usize>> {
    let column = |n: usize| widths[n] + GAP + MARKS;
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut used = 0;
    for n in 0..widths.len() {
        match blocks.last_mut() {
            Some(block) if used + column(n) <= WIDTH || block.len() < 2 && n > 0 => {
                block.push(n);
                used += column(n);
            }
            Some(_) => {
                blocks.push(vec![0, n]);
                used = names + column(0) + column(n);
            }
            None => {
                blocks.push(vec![n]);
                used = names + column(n);
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, values: &[u64]) -> Row {
        let ranks = vec![None; values.len()];
        Row { name, values: values.to_vec(), differs: true, ranks }
    }

    fn text(heads: &[&str], rows: &[Row]) -> String {
        let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
        let mut out = String::new();
        Grid::new(&heads, rows.iter(), false).block(&mut out, "", rows);
        out
    }

    #[test]
    fn what_fits_is_one_block_with_whole_names() {
        // The names take 8 columns, each policy its name, one column before and two for marks.
        let mut cycles = row("cycles", &[48465, 48325]);
        cycles.ranks = vec![Some(Rank::Worst), Some(Rank::Best)];
        let expected = "         kvm-5.17   kvm-patch-v2\ncycles      48465>         48325*<\n";
        assert_eq!(text(&["kvm-5.17", "kvm-patch-v2"], &[cycles]), expected);
    }

    #[test]
    fn nine_policies_fit_a_hundred_columns() {
        let names = [
            "kvm-5.10",
            "kvm-5.17",
            "kvm-patch-v2",
            "kvm-5.17-keep-roots",
            "kvm-patch-v2-18",
            "kvm-5.19",
            "kvm-6.1-lts",
            "kvm-6.12-lts",
            "never!",
        ];
        let small = text(&names, &[row("invvpid-nonglobal", &[54321; 9])]);
        assert!(small.lines().all(|line| line.chars().count() <= 100), "{small}");
        assert_eq!(small.matches("invvpid-nonglobal").count(), 1, "one block:\n{small}");
        let large = text(&names, &[row("cycles", &[12_345_678_901; 9])]);
        assert!(large.lines().all(|line| line.chars().count() <= 100), "{large}");
        // 8 columns of names; 14 columns for each policy: six to a block, the first in both.
        assert_eq!(large.matches("cycles").count(), 2, "{large}");
        assert_eq!(large.matches("12345678901").count(), 10, "{large}");
    }

    #[test]
    fn a_name_without_a_hyphen_is_broken_too() {
        let name = "p".repeat(150);
        let out = text(&["never", &name], &[row("cycles", &[1, 2])]);
        assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
        assert_eq!(out.matches('p').count(), 150);
    }
}
