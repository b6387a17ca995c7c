//! Reads of packet bytes in place.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use core::mem::MaybeUninit;
use proxy_common::net::Bytes;

/// The verifier follows packet offsets only up to 65,535; no header that Weir reads starts beyond this.
const MAX_OFFSET: usize = 0x3fff;

/// The linear part of a packet. Must not be used after a call that may move packet data.
pub(crate) struct Frame {
    skb: *mut __sk_buff,
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: `skb` is the program's context; volatile, so that a later `of` reads the pointers anew.
        let (start, end) =
            unsafe { ((&raw const (*skb).data).read_volatile(), (&raw const (*skb).data_end).read_volatile()) };
        Self { skb, start: start as usize, end: end as usize }
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn load<T: bytemuck::Pod>(&self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET {
            return None;
        }
        // SAFETY: of the frame's own start and end.
        unsafe { load_at(self.start + offset, self.end) }
    }

    #[inline(always)]
    fn peek(&self, offset: usize) -> Option<u8> {
        let mut byte = 0u8;
        // SAFETY: context; one byte is written. The helper checks the offset, and moves nothing.
        let done = unsafe { bpf_skb_load_bytes(self.skb.cast(), offset as u32, (&raw mut byte).cast(), 1) };
        if done == 0 { Some(byte) } else { None }
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        // SAFETY: context.
        unsafe { (*self.skb).len as usize }
    }

    #[inline(always)]
    fn is_large_segment(&self) -> bool {
        // SAFETY: context.
        unsafe { (*self.skb).gso_size != 0 }
    }
}

/// A frame read at offsets that hang on several fields of the packet. LLVM would compute the bound and the pointer apart from
/// another, and the verifier could not tell that they belong together.
pub(crate) struct Deep(pub Frame);

impl Bytes for Deep {
    #[inline(always)]
    fn load<T: bytemuck::Pod>(&self, offset: usize) -> Option<T> {
        let offset = core::hint::black_box(offset);
        if offset > MAX_OFFSET {
            return None;
        }
        // SAFETY: of the frame's own start and end.
        unsafe { load_at(core::hint::black_box(self.0.start + offset), self.0.end) }
    }

    #[inline(always)]
    fn peek(&self, offset: usize) -> Option<u8> {
        self.0.peek(offset)
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.0.frame_len()
    }

    #[inline(always)]
    fn is_large_segment(&self) -> bool {
        self.0.is_large_segment()
    }
}

/// # Safety
/// `from` must be the start of a packet plus at most 65,535 and `end` its end.
#[inline(always)]
unsafe fn load_at<T: bytemuck::Pod>(from: usize, end: usize) -> Option<T> {
    if from + size_of::<T>() > end {
        return None;
    }
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `from..from + size_of::<T>()` was just checked to lie in the packet; `T` is plain bytes of that size.
    // The words are read as aligned: network headers are (NET_IP_ALIGN), and the kernels that load this allow others.
    unsafe { copy_words(from as *const u8, value.as_mut_ptr().cast(), size_of::<T>()) };
    // SAFETY: all bytes were written, and any bit pattern is a `T`.
    Some(unsafe { value.assume_init() })
}

/// Copies by words instead of by bytes, which is what LLVM would do for packet data.
///
/// # Safety
/// `from..from + len` must be readable, `to..to + len` writable.
#[inline(always)]
unsafe fn copy_words(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    while at + 4 <= len {
        // SAFETY: in bounds by the caller's promise.
        unsafe { to.add(at).cast::<u32>().write_unaligned(*from.add(at).cast::<u32>()) };
        at += 4;
    }
    while at + 2 <= len {
        // SAFETY: as above.
        unsafe { to.add(at).cast::<u16>().write_unaligned(*from.add(at).cast::<u16>()) };
        at += 2;
    }
    while at < len {
        // SAFETY: as above.
        unsafe { *to.add(at) = *from.add(at) };
        at += 1;
    }
}
