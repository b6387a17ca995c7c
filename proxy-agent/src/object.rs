//! The kernel object that the build script embedded. The loader calls `embedded`.

use thiserror::Error;

/// Empty where the agent was built before the kernel programs were. Aligned, as the ELF parser asks.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir.o"));

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ObjectError {
    #[error(
        "this binary was built without the kernel programs: run `cargo xtask build-ebpf`, then build the agent again"
    )]
    NotEmbedded,
}

/// The kernel programs and maps of this build, as one ELF object.
pub fn embedded() -> Result<&'static [u8], ObjectError> {
    if OBJECT.is_empty() { Err(ObjectError::NotEmbedded) } else { Ok(OBJECT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_aligned_and_elf_or_its_absence_says_how_to_mend_it() {
        match embedded() {
            Ok(object) => {
                assert!(object.starts_with(b"\x7fELF"));
                assert_eq!(object.as_ptr().align_offset(8), 0);
            }
            Err(error) => assert!(error.to_string().contains("cargo xtask build-ebpf")),
        }
    }
}
