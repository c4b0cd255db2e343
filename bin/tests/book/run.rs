//! Runs a page.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::page::{Block, Step, blocks, fits, renewed};
use crate::{read, root};

/// What is wrong with a page.
pub fn page(page: &Path, overwrite: bool) -> Vec<String> {
    let text = read(page);
    let mut run = Run::new(page);
    for block in blocks(&text) {
        run.block(&block);
    }
    if overwrite && !run.printed.is_empty() {
        fs::write(root().join(page), run.rewritten(&text)).unwrap();
    }
    run.faults
}

/// What a command printed that is not what its page shows: the lines of the page that it replaces.
struct Printed {
    from: usize,
    shown: usize,
    lines: Vec<String>,
}

struct Run {
    page: PathBuf,
    folder: tempfile::TempDir,
    path: String,
    /// The exit code of the command before.
    code: i32,
    printed: Vec<Printed>,
    faults: Vec<String>,
}

impl Run {
    fn new(page: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink(root().join("testdata"), folder.path().join("testdata")).unwrap();
        fs::create_dir(folder.path().join("docs")).unwrap();
        symlink(root().join("docs/ci"), folder.path().join("docs/ci")).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_tlbscope")).parent().unwrap();
        let path = format!("{}:{}", program.display(), env::var("PATH").unwrap_or_default());
        let (printed, faults) = (Vec::new(), Vec::new());
        Self { page: page.to_owned(), folder, path, code: 0, printed, faults }
    }

    fn fault(&mut self, line: usize, what: &str) {
        self.faults.push(format!("{}:{line}: {what}", self.page.display()));
    }

    fn block(&mut self, block: &Block) {
        let marker = block.marker.as_str();
        if let Some(name) = marker.strip_prefix("file: ") {
            fs::write(self.folder.path().join(name), block.lines.join("\n") + "\n").unwrap();
        } else if block.language == "console" {
            self.console(block);
        } else if let Some(check) = Check::of(marker) {
            self.check(block, &check);
        } else if block.language != "text" {
            let why = "a block that nothing checks: mark it as a file or with what checks it";
            self.fault(block.line, why);
        }
    }

    fn console(&mut self, block: &Block) {
        for step in block.steps() {
            if block.marker.starts_with("not run: ") {
                self.parse(&step);
                continue;
            }
            if step.command == "echo $?" {
                let code = std::mem::take(&mut self.code);
                self.compare(&step, vec![code.to_string()]);
                continue;
            }
            if self.code != 0 {
                let why = format!("exit code {} of the command before is not shown", self.code);
                self.fault(step.line, &why);
            }
            let (code, printed) = self.shell(&step.command);
            self.code = code;
            if block.marker == "output not compared" {
                assert!(step.shown.is_empty());
            } else {
                self.compare(&step, printed);
            }
        }
        if self.code != 0 {
            let why = format!("ends with exit code {}, which is not shown", self.code);
            self.fault(block.line, &why);
            self.code = 0;
        }
    }

    /// Runs a command line; its exit code and the lines that it prints.
    fn shell(&self, command: &str) -> (i32, Vec<String>) {
        let output = Command::new("sh")
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(self.folder.path())
            .env("PATH", &self.path)
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap_or(-1), text.lines().map(str::to_owned).collect())
    }

    /// Only looks whether the command and its options exist.
    fn parse(&mut self, step: &Step) {
        let command = step.command.trim_start_matches("sudo ");
        let Some(words) = command.strip_prefix("tlbscope ") else { return };
        let words = words.split(['>', '|', '#']).next().unwrap();
        let (code, printed) = self.shell(&format!("tlbscope {words} --help"));
        if code != 0 {
            self.fault(step.line, &printed.join("\n"));
        }
    }

    fn compare(&mut self, step: &Step, printed: Vec<String>) {
        // Empty lines at the end of a block are for the reader.
        let mut shown = step.shown.clone();
        while shown.last().is_some_and(String::is_empty) {
            shown.pop();
        }
        let printed: Vec<String> = printed.iter().map(|line| line.trim_end().to_owned()).collect();
        let end = printed.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
        if fits(&shown, &printed[..end]) {
            return;
        }
        let lines = printed[..end].to_vec();
        let why = format!("`{}` printed\n{}", step.command, lines.join("\n"));
        self.fault(step.line, &why);
        let count = shown.len();
        let lines = renewed(&shown, lines);
        self.printed.push(Printed { from: step.line + step.height, shown: count, lines });
    }

    fn rewritten(&self, text: &str) -> String {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for new in self.printed.iter().rev() {
            lines.splice(new.from - 1..new.from - 1 + new.shown, new.lines.iter().cloned());
        }
        lines.join("\n") + "\n"
    }

    fn check(&mut self, block: &Block, check: &Check) {
        let text = format!("{}{}\n{}", check.before, block.lines.join("\n"), check.after);
        fs::write(self.folder.path().join(check.file), text).unwrap();
        let (code, printed) = self.shell(check.command);
        if code != 0 {
            self.fault(block.line, &printed.join("\n"));
        }
    }
}

/// How a snippet is checked.
struct Check {
    file: &'static str,
    /// What a snippet leaves out.
    before: &'static str,
    /// What a snippet leaves out at its end.
    after: &'static str,
    command: &'static str,
}

impl Check {
    fn of(marker: &str) -> Option<Self> {
        let of = |file, before, command| Some(Self { file, before, after: "", command });
        let part = "name = \"part\"\nabout = \"A part.\"\nextends = \"kvm-7.3\"\n";
        match marker {
            "policy" => of("snippet.toml", "", "tlbscope policy check snippet.toml"),
            "policy, a part" => of("snippet.toml", part, "tlbscope policy check snippet.toml"),
            "scenario" => of("snippet.toml", "", "tlbscope scenarios snippet.toml"),
            "scenario: a machine" => Some(Self {
                file: "snippet.toml",
                before: "name = 'part'\nabout = 'A part.'\nsource = 'The book.'\nevents = 'v0 clts'\n",
                after: "[expect.never]\nmissed = []\n",
                command: "tlbscope scenarios snippet.toml",
            }),
            "machine" => of("snippet.toml", "", "tlbscope machine show ./snippet.toml"),
            "events" => of("snippet.txt", "", "tlbscope simulate snippet.txt --policy hw-min"),
            _ => None,
        }
    }
}
