//! Makes the next packet out of a template, whatever the last run left of it, and goes on with the program in TARGETS.

use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::generated::bpf_skb_store_bytes;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use proxy_common::bench::{Driver, Field, HEADERS_LEN, NO_TARGET};

#[btf_map]
static DRIVER: Array<Driver, 1> = Array::new();
#[btf_map]
static TARGETS: ProgramArray<1> = ProgramArray::new();

/// Offsets in a frame: low words of source and destination, and the ports behind a header without options.
struct Layout {
    src: usize,
    dst: usize,
    ports: usize,
    len: u32,
}
const V4: Layout = Layout { src: 26, dst: 30, ports: 34, len: HEADERS_LEN as u32 - 20 };
const V6: Layout = Layout { src: 34, dst: 50, ports: 54, len: HEADERS_LEN as u32 };

#[classifier]
pub(crate) fn drive_v4(ctx: TcContext) -> i32 {
    drive(&ctx, &V4)
}

#[classifier]
pub(crate) fn drive_v6(ctx: TcContext) -> i32 {
    drive(&ctx, &V6)
}

/// On with the next program, or with the stack.
#[classifier]
pub(crate) fn nothing(_ctx: TcContext) -> i32 {
    -1
}

#[inline(always)]
fn drive(ctx: &TcContext, layout: &Layout) -> i32 {
    let Some(driver) = DRIVER.get_ptr_mut(0) else { return NO_TARGET };
    // SAFETY: one test run at a time uses the object.
    let driver = unsafe { &mut *driver };
    let flow = (driver.next & driver.wrap).wrapping_mul(driver.scramble) & driver.wrap;
    driver.next = driver.next.wrapping_add(1);
    let ports = value(&driver.src_port, flow) << 16 | value(&driver.dst_port, flow);
    for (at, word) in
        [(layout.src, value(&driver.src, flow)), (layout.dst, value(&driver.dst, flow)), (layout.ports, ports)]
    {
        // SAFETY: constant offsets inside `headers`, each of which is aligned with the IP header.
        unsafe { *driver.headers.as_mut_ptr().add(at).cast::<u32>() = word.to_be() };
    }
    // SAFETY: context; `headers` is at least `len` bytes long.
    unsafe { bpf_skb_store_bytes(ctx.skb.skb.cast(), 0, driver.headers.as_ptr().cast(), layout.len, 0) };
    settle(&raw mut driver.made);
    // SAFETY: context and map.
    unsafe { TARGETS.tail_call(ctx, 0) };
    NO_TARGET
}

#[inline(always)]
fn value(field: &Field, flow: u32) -> u32 {
    field.base.wrapping_add((flow >> (field.shift & 31)) & field.mask)
}

/// An atomic operation: what was written lies in the cache before the program reads it, as a packet from a device does.
/// Otherwise the program would wait for the stores, and the empty one, which is subtracted, would not.
#[inline(always)]
fn settle(count: *mut u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: an aligned word of the driver's element.
    unsafe {
        core::intrinsics::atomic_xadd::<u32, u32, { core::intrinsics::AtomicOrdering::SeqCst }>(count, 1);
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = count;
}
