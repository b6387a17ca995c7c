//! Atomic instructions of BPF (Linux 5.12): rustc's target for it has no atomics. On the host they are plain reads and writes, which nothing
//! calls.

/// Adds, and returns what was there.
///
/// # Safety
/// `word` points to eight bytes of a map element, aligned to eight.
#[inline(always)]
pub(crate) unsafe fn fetch_add_u64(word: *mut u64, change: u64) -> u64 {
    let was: u64;
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, on memory that the caller vouches for.
    unsafe {
        core::arch::asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) change => was,
        );
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller's promise.
    unsafe {
        was = word.read();
        word.write(was.wrapping_add(change));
    }
    was
}

/// Adds.
///
/// # Safety
/// `word` points to four bytes of a map element, aligned to four.
#[inline(always)]
pub(crate) unsafe fn add_u32(word: *mut u32, change: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, on memory that the caller vouches for.
    unsafe {
        core::arch::asm!(
            "lock *(u32 *)({word} + 0) += {value}",
            word = in(reg) word,
            value = in(wreg) change,
        );
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller's promise.
    unsafe {
        word.write(word.read().wrapping_add(change));
    }
}

/// Writes `is` if `was` is there. False if something else is.
///
/// # Safety
/// `word` points to eight bytes of a map element, aligned to eight.
#[inline(always)]
pub(crate) unsafe fn compare_and_swap_u64(word: *mut u64, was: u64, is: u64) -> bool {
    let found: u64;
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, on memory that the caller vouches for.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {is})",
            word = in(reg) word,
            is = in(reg) is,
            inout("r0") was => found,
        );
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller's promise.
    unsafe {
        found = word.read();
        if found == was {
            word.write(is);
        }
    }
    found == was
}
