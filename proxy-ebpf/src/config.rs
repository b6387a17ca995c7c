//! CONFIG, set by the loader before the programs are verified.

use aya_ebpf::Global;
use proxy_common::abi::Config;

// `used` and a symbol of its own: LLVM merges equal constants, and an override would change both.
#[used]
#[unsafe(no_mangle)]
static CONFIG: Global<Config> = Global::new(Config::DEFAULT);

/// The configuration in place. The verifier knows its values and removes what is switched off.
#[inline(always)]
pub(crate) fn config() -> &'static Config {
    let address = core::hint::black_box((&raw const CONFIG).cast::<Config>());
    // SAFETY: `Global<Config>` is a transparent wrapper of an initialised `Config`; the loader replaces it before any
    // program runs, and the map is frozen afterwards. The black box keeps LLVM from reading the default at compile time.
    unsafe { &*address }
}
