//! Programs of `cargo xtask bench packet`, in an object of their own (`target/ebpf/bench.o`): the product carries none of them.
//!
//! `drive_*` makes the next packet and tail-calls what is measured. `nothing` is what the test run and the driver cost by
//! themselves; `floor_*` is the least that a translation costs.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics), allow(internal_features))]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "nothing calls the programs on the host"))]

mod drive;
mod floor;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this can be reached.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
