//! CPU time and memory of processes.

use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// User and system time of all threads.
    pub(crate) cpu: Duration,
    pub(crate) max_rss_kb: u64,
}

#[cfg(unix)]
pub(crate) fn usage() -> Usage {
    use nix::sys::resource::{getrusage, UsageWho};
    use nix::sys::time::TimeValLike;

    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    // macOS reports bytes, other systems KiB.
    let unit = if cfg!(target_vendor = "apple") {
        1024
    } else {
        1
    };
    Usage {
        cpu: Duration::from_micros(micros.unsigned_abs()),
        max_rss_kb: usage.max_rss().unsigned_abs() / unit,
    }
}

#[cfg(not(unix))]
pub(crate) fn usage() -> Usage {
    Usage {
        cpu: Duration::ZERO,
        max_rss_kb: 0,
    }
}

/// The CPU time that a process has used so far; `None` without `/proc`.
pub(crate) fn cpu_of(pid: u32) -> Option<Duration> {
    /// 10 ms on every Linux, whatever the kernel's own tick is.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state …"; the name can contain blanks and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * ticks()?.checked_add(ticks()?)?)
}

/// The resident memory of this process in bytes; `None` without `/proc`.
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
