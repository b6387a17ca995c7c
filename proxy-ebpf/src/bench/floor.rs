//! The least that a translation with connection tracking costs: parse, one hash look-up, one LRU look-up, and a new destination
//! by the checksum helpers. It knows neither options nor fragments nor states, and keeps no counts.

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR};
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use proxy_common::abi::{FlowKey, ServiceKey, capacity};
use proxy_common::bench::FloorFlow;
use proxy_common::net::{Family, Ipv4, Ipv6, TCP, UDP, V4, V6};

type Frontends<F> = HashMap<ServiceKey<F>, u32, { capacity::SERVICES }>;
type Flows<F> = LruHashMap<FlowKey<F>, FloorFlow<F>, { capacity::CONNTRACK }>;

#[btf_map]
static FLOOR_VIPS_V4: Frontends<V4> = Frontends::new();
#[btf_map]
static FLOOR_VIPS_V6: Frontends<V6> = Frontends::new();
#[btf_map]
static FLOOR_FLOWS_V4: Flows<V4> = Flows::new();
#[btf_map]
static FLOOR_FLOWS_V6: Flows<V6> = Flows::new();

/// The step of `proxy_common::bench::FLOOR_STEPS` that the program ends after; set by the loader.
#[used]
#[unsafe(no_mangle)]
static LAST_STEP: Global<u32> = Global::new(u32::MAX);

const NEXT: i32 = -1;
/// The packet did not take the whole way: the figures would mean nothing.
const MISSED: i32 = 78;

#[classifier]
pub(crate) fn floor_v4(ctx: TcContext) -> i32 {
    floor::<V4>(ctx.skb.skb)
}

#[classifier]
pub(crate) fn floor_v6(ctx: TcContext) -> i32 {
    floor::<V6>(ctx.skb.skb)
}

trait FloorFamily: Family {
    const L4: usize;
    /// Of the destination address.
    const DST: u32;
    fn vips() -> &'static Frontends<Self>;
    fn flows() -> &'static Flows<Self>;
    fn parse(start: usize) -> FlowKey<Self>;
    /// Patches the checksums for another destination address.
    fn replace(skb: *mut __sk_buff, l4_check: u32, from: &Self::Addr, to: &Self::Addr) -> i64;
}

#[inline(always)]
fn floor<F: FloorFamily>(skb: *mut __sk_buff) -> i32 {
    // SAFETY: context.
    let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    if start + F::L4 + 20 > end {
        return MISSED;
    }
    let key = F::parse(start);
    let l4_check = match key.protocol {
        TCP => F::L4 as u32 + 16,
        UDP => F::L4 as u32 + 6,
        _ => return MISSED,
    };
    let last = last_step();
    if last == 0 {
        return NEXT;
    }
    let vip = ServiceKey { addr: key.dst, port: key.dst_port, protocol: key.protocol, zero: 0 };
    // SAFETY: one word is read at once.
    if unsafe { F::vips().get(vip) }.is_none() {
        return MISSED;
    }
    if last == 1 {
        return NEXT;
    }
    // SAFETY: nobody writes while the programs run.
    let Some(flow) = (unsafe { F::flows().get(key) }) else { return MISSED };
    if last == 2 {
        return NEXT;
    }
    let mut failed = F::replace(skb, l4_check, &key.dst, &flow.backend);
    if last > 3 {
        // By way of the stack: the helper copies by bytes, and from an element whose address ends as the packet's does, that takes
        // 90 ns more.
        failed |= store(skb, F::DST, &core::hint::black_box(flow.backend));
    }
    let (from, to) = (key.dst_port.to_be(), flow.backend_port.to_be());
    if last > 4 {
        // SAFETY: context; the helper checks the offset.
        failed |= unsafe { bpf_l4_csum_replace(skb.cast(), l4_check, from.into(), to.into(), 2) };
    }
    if last > 5 {
        failed |= store(skb, F::L4 as u32 + 2, &to);
    }
    if failed == 0 { NEXT } else { MISSED }
}

#[inline(always)]
fn store<T>(skb: *mut __sk_buff, at: u32, value: &T) -> i64 {
    // SAFETY: context; the value is readable for its size.
    unsafe { bpf_skb_store_bytes(skb.cast(), at, core::ptr::from_ref(value).cast(), size_of::<T>() as u32, 0) }
}

#[inline(always)]
fn last_step() -> u32 {
    // SAFETY: `Global<u32>` is a transparent wrapper of an initialised word, which is frozen before any program runs. The black
    // box keeps LLVM from reading the default at compile time.
    unsafe { *core::hint::black_box((&raw const LAST_STEP).cast::<u32>()) }
}

/// # Safety
/// `at..at + size_of::<T>()` must have been checked to lie in the packet.
#[inline(always)]
unsafe fn read<T: Copy>(at: usize) -> T {
    // SAFETY: the caller's promise; packets are read as aligned (NET_IP_ALIGN).
    unsafe { *(at as *const T) }
}

impl FloorFamily for V4 {
    const L4: usize = 34;
    const DST: u32 = 30;
    #[inline(always)]
    fn vips() -> &'static Frontends<V4> {
        &FLOOR_VIPS_V4
    }
    #[inline(always)]
    fn flows() -> &'static Flows<V4> {
        &FLOOR_FLOWS_V4
    }
    #[inline(always)]
    fn parse(start: usize) -> FlowKey<V4> {
        // SAFETY: `floor` has checked as far as the ports.
        let (src, dst, ports, protocol) = unsafe {
            (read::<u32>(start + 26), read::<u32>(start + 30), read::<[u16; 2]>(start + 34), read(start + 23))
        };
        let [src_port, dst_port] = ports.map(u16::from_be);
        FlowKey::new(Ipv4::from_word(src), src_port, Ipv4::from_word(dst), dst_port, protocol)
    }
    #[inline(always)]
    fn replace(skb: *mut __sk_buff, l4_check: u32, from: &Ipv4, to: &Ipv4) -> i64 {
        let (from, to) = (u64::from(from.word()), u64::from(to.word()));
        // SAFETY: context; the helpers check their offsets.
        unsafe {
            bpf_l4_csum_replace(skb.cast(), l4_check, from, to, u64::from(BPF_F_PSEUDO_HDR) | 4)
                | bpf_l3_csum_replace(skb.cast(), 24, from, to, 4)
        }
    }
}

impl FloorFamily for V6 {
    const L4: usize = 54;
    const DST: u32 = 38;
    #[inline(always)]
    fn vips() -> &'static Frontends<V6> {
        &FLOOR_VIPS_V6
    }
    #[inline(always)]
    fn flows() -> &'static Flows<V6> {
        &FLOOR_FLOWS_V6
    }
    #[inline(always)]
    fn parse(start: usize) -> FlowKey<V6> {
        // SAFETY: `floor` has checked as far as the ports.
        let (src, dst, ports, protocol) = unsafe {
            (read::<[u32; 4]>(start + 22), read::<[u32; 4]>(start + 38), read::<[u16; 2]>(start + 54), read(start + 20))
        };
        let [src_port, dst_port] = ports.map(u16::from_be);
        FlowKey::new(Ipv6::from_words(src), src_port, Ipv6::from_words(dst), dst_port, protocol)
    }
    #[inline(always)]
    fn replace(skb: *mut __sk_buff, l4_check: u32, from: &Ipv6, to: &Ipv6) -> i64 {
        let (mut from, mut to) = (from.words(), to.words());
        // SAFETY: two readable blocks of 16 bytes; context; the helper checks the offset.
        unsafe {
            let diff = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0);
            bpf_l4_csum_replace(skb.cast(), l4_check, 0, diff as u64, u64::from(BPF_F_PSEUDO_HDR))
        }
    }
}
