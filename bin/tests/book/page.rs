//! The blocks of a page, and the commands of its console blocks.

/// A fenced block.
pub struct Block {
    /// The line of its fence, from 1.
    pub line: usize,
    /// The word after the fence.
    pub language: String,
    /// What the comment in the line before the fence says.
    pub marker: String,
    /// Its lines.
    pub lines: Vec<String>,
}

/// A command of a console block.
pub struct Step {
    /// Its line in the page, from 1.
    pub line: usize,
    /// What a shell is given.
    pub command: String,
    /// How many lines of the block the command takes.
    pub height: usize,
    /// The lines that the page shows of its output.
    pub shown: Vec<String>,
}

/// The blocks of a page, in order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    let mut before = "";
    for (at, line) in text.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            if !open {
                let marker =
                    before.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
                let marker = marker.unwrap_or_default().to_owned();
                let language = language.to_owned();
                found.push(Block { line: at + 1, language, marker, lines: Vec::new() });
            }
            open = !open;
        } else if open {
            found.last_mut().unwrap().lines.push(line.to_owned());
        }
        before = line;
    }
    found
}

/// The text of a page without its fenced and indented blocks.
pub fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut open = false;
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            open = !open;
        } else if !open && !line.starts_with("    ") {
            lines.push((at + 1, line));
        }
    }
    lines
}

impl Block {
    /// The commands, if this is a console block.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut goes_on = false;
        for (at, line) in self.lines.iter().enumerate() {
            let command = line.strip_prefix("$ ").or(goes_on.then_some(line.as_str()));
            let Some(command) = command else {
                let step = steps.last_mut().expect("a console block begins with a command");
                step.shown.push(line.clone());
                continue;
            };
            if goes_on {
                let step = steps.last_mut().unwrap();
                step.command += "\n";
                step.command += command;
                step.height += 1;
            } else {
                let (line, command) = (self.line + 1 + at, command.to_owned());
                steps.push(Step { line, command, height: 1, shown: Vec::new() });
            }
            goes_on = command.ends_with('\\');
        }
        steps
    }
}

/// Whether the output is what is shown, where a line `...` stands for any lines.
pub fn fits(shown: &[String], printed: &[String]) -> bool {
    let Some((first, rest)) = shown.split_first() else { return printed.is_empty() };
    if first.trim() == "..." {
        return (0..=printed.len()).any(|skipped| fits(rest, &printed[skipped..]));
    }
    printed.split_first().is_some_and(|(line, others)| line == first && fits(rest, others))
}

/// What a page is to show of a new output: what it left out of the old one is left out again, where
/// that is one run of lines.
pub fn renewed(shown: &[String], printed: Vec<String>) -> Vec<String> {
    let elision = |line: &String| line.trim() == "...";
    let Some(head) = shown.iter().position(elision) else { return printed };
    let tail = shown.len() - head - 1;
    let several = shown[head + 1..].iter().any(elision);
    if several || printed.len() <= head + tail {
        return printed;
    }
    let mut lines = printed[..head].to_vec();
    lines.push("...".to_owned());
    lines.extend_from_slice(&printed[printed.len() - tail..]);
    lines
}

#[test]
fn dots_stand_for_any_lines() {
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(fits(&lines("a ... d"), &lines("a b c d")));
    assert!(fits(&lines("a ..."), &lines("a")));
    assert!(!fits(&lines("a ... c"), &lines("a b c d")));
    assert!(!fits(&lines("a b"), &lines("a b c")));
    assert_eq!(renewed(&lines("a ... d"), lines("A b c D")), lines("A ... D"));
    assert_eq!(renewed(&lines("a d"), lines("A b")), lines("A b"));
}
