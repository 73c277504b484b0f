//! A progress bar on standard error, when a person looks on.

#![forbid(unsafe_code)]

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Redrawn at most this often.
const PERIOD: Duration = Duration::from_millis(100);

/// The bar; nothing at all when standard error is no terminal.
pub struct Progress {
    bar: Option<ProgressBar>,
    bytes: Arc<AtomicU64>,
    last: Instant,
    calls: u32,
}

impl Progress {
    /// Bytes done are read from `bytes`; `total` bytes, when that is known.
    #[must_use]
    pub fn new(quiet: bool, total: Option<u64>, bytes: Arc<AtomicU64>) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = match total {
                Some(_) => "{bar:30} {bytes} of {total_bytes}, {msg}, {bytes_per_sec}, {eta} left",
                None => "{spinner} {bytes}, {msg}, {bytes_per_sec}, {elapsed}",
            };
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, bytes, last: Instant::now(), calls: 0 }
    }

    /// Says how far the work is.
    pub fn tick(&mut self, files: u64) {
        let Some(bar) = &self.bar else { return };
        // The clock costs a little; not for each file.
        self.calls = self.calls.wrapping_add(1);
        if self.calls.is_multiple_of(16) && self.last.elapsed() >= PERIOD {
            self.last = Instant::now();
            bar.set_message(format!("{files} files"));
            bar.set_position(self.bytes.load(Ordering::Relaxed));
        }
    }

    /// Takes the bar away.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
