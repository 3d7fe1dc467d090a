//! The kernel's monotonic clock, the one that the programs stamp records with, and how far UTC is from it.

/// Nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn monotonic() -> u64 {
    nanoseconds(libc::CLOCK_MONOTONIC)
}

/// What to add to CLOCK_MONOTONIC now to get UTC, in nanoseconds. Changes when the host's clock is set.
#[must_use]
pub fn utc_offset() -> u64 {
    let before = monotonic();
    let utc = nanoseconds(libc::CLOCK_REALTIME);
    let after = monotonic();
    utc.wrapping_sub(before + (after - before) / 2)
}

fn nanoseconds(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec, which outlives the call.
    unsafe { libc::clock_gettime(clock, &mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}
