//! The kernel programs of Weir. `hooks` has one attach point per file; the decisions are made in proxy-common.
//!
//! On a host target this builds as an empty program, so that clippy and rust-analyzer see the code.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "nothing calls the hooks on the host"))]

mod atomic;
mod config;
mod frame;
mod hooks;
mod icmp_error;
mod maps;
mod record;
mod redirect;
mod reply;
mod rewrite;
mod socket;
mod tables;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this can be reached.
    loop {}
}

/// fib_lookup and others are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
