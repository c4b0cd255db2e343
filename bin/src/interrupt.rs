//! Ctrl-C and `kill`: no half file is left, and how far the work came is said.
//!
//! A file is written under a name of its own and renamed at the end, so that what an interrupted
//! command leaves is at most that. A thread waits for the signal, takes it away and ends the program
//! with the code that shells give: 130 for Ctrl-C, 143 for SIGTERM.

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use indicatif::ProgressBar;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What an interruption would have to clear away and to tell.
struct Work {
    /// The file that is being written, under its name until then, and its name after.
    file: Option<(PathBuf, PathBuf)>,
    /// The bar that counts the events done, and how many there are.
    bar: Option<(ProgressBar, Option<u64>)>,
}

static WORK: Mutex<Work> = Mutex::new(Work { file: None, bar: None });

fn work() -> MutexGuard<'static, Work> {
    // What it holds is whole at every instant, whatever happened to a thread that held it.
    WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a signal from here on. Where that cannot be done, a signal ends the program as it ends
/// any other.
pub fn watch() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    let waits = move || {
        if let Some(signal) = signals.forever().next() {
            end(signal);
        }
    };
    // Without the thread nobody would answer: the handlers go with the iterator.
    let _ = thread::Builder::new().name("signals".to_owned()).spawn(waits);
}

/// A file is written as `temporary` and will be `target`.
pub fn writes(temporary: &Path, target: &Path) {
    work().file = Some((temporary.to_owned(), target.to_owned()));
}

/// It has its name, or is gone.
pub fn wrote() {
    work().file = None;
}

/// This bar counts what is done of so many events.
pub fn counts(bar: &ProgressBar, events: Option<u64>) {
    work().bar = Some((bar.clone(), events));
}

fn end(signal: i32) -> ! {
    let work = work();
    let mut told = String::from("interrupted");
    if let Some((temporary, target)) = &work.file {
        // It has its name already where there is nothing to take away.
        if std::fs::remove_file(temporary).is_ok() {
            told += &format!(": {} is not written", target.display());
        }
    }
    if let Some((bar, events)) = &work.bar {
        let done = bar.position();
        bar.finish_and_clear();
        let of = events.map_or(String::new(), |events| format!(" of {events}"));
        told += &format!("; {done}{of} events were done");
    }
    let _ = writeln!(stderr(), "{told}");
    std::process::exit(128 + signal)
}
