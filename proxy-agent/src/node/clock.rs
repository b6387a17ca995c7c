//! The clock by which the programs note times in the maps.

/// CLOCK_MONOTONIC, as bpf_ktime_get_ns.
pub fn seconds_since_boot() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec().try_into().unwrap_or(u32::MAX))
}
