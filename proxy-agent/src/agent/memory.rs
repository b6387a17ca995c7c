//! Memory that was needed for a moment goes back to the system. The main loop calls this after the first sync.

/// What loading, the first lists and the first sync have freed. glibc keeps it otherwise; musl, of the static build, does not.
pub(super) fn release() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes no pointer, and locks the allocator by itself.
        unsafe { libc::malloc_trim(0) };
    }
}
