//! Reads the section names of the kernel object, to prove that it is a BPF object with type
//! information before anything embeds it. Called by build_ebpf.

use anyhow::{Context, Result, ensure};

/// `e_machine` of BPF objects (linux/elf-em.h).
const EM_BPF: u16 = 247;
/// Size of a section header in ELF64.
const SECTION_HEADER_SIZE: usize = 64;

/// The names of all sections of a 64-bit little-endian BPF object.
pub(crate) fn section_names(object: &[u8]) -> Result<Vec<String>> {
    ensure!(object.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let machine = u16_at(object, 18)?;
    ensure!(machine == EM_BPF, "ELF machine {machine}, expected {EM_BPF} (BPF)");
    let headers = usize::try_from(u64_at(object, 40)?)?;
    let count = usize::from(u16_at(object, 60)?);
    let names_index = usize::from(u16_at(object, 62)?);

    let header = |index: usize| headers + index * SECTION_HEADER_SIZE;
    let names_start = usize::try_from(u64_at(object, header(names_index) + 24)?)?;
    let names = object.get(names_start..).context("section names lie beyond the end")?;
    (0..count)
        .map(|index| {
            let offset = usize::try_from(u32_at(object, header(index))?)?;
            let name = names.get(offset..).context("a section name lies beyond the end")?;
            let end = name.iter().position(|byte| *byte == 0).context("a section name does not end")?;
            Ok(String::from_utf8_lossy(&name[..end]).into_owned())
        })
        .collect()
}

fn bytes_at<const N: usize>(object: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = object.get(at..at + N).with_context(|| format!("the file ends before offset {}", at + N))?;
    Ok(bytes.try_into()?)
}

fn u16_at(object: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes_at(object, at)?))
}

fn u32_at(object: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes_at(object, at)?))
}

fn u64_at(object: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes_at(object, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of two section headers (null and the name table), names at the end.
    fn tiny_object(machine: u16) -> Vec<u8> {
        let mut object = vec![0; 64 + 2 * SECTION_HEADER_SIZE];
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        object[18..20].copy_from_slice(&machine.to_le_bytes());
        object[40..48].copy_from_slice(&64u64.to_le_bytes());
        object[60..62].copy_from_slice(&2u16.to_le_bytes());
        object[62..64].copy_from_slice(&1u16.to_le_bytes());
        let names_header = 64 + SECTION_HEADER_SIZE;
        let names_at = object.len() as u64;
        object[names_header..names_header + 4].copy_from_slice(&1u32.to_le_bytes());
        object[names_header + 24..names_header + 32].copy_from_slice(&names_at.to_le_bytes());
        object.extend_from_slice(b"\0.BTF\0");
        object
    }

    #[test]
    fn names_are_read() {
        assert_eq!(section_names(&tiny_object(EM_BPF)).expect("valid"), ["", ".BTF"]);
    }

    #[test]
    fn other_machines_are_refused() {
        let error = section_names(&tiny_object(62)).expect_err("x86-64");
        assert_eq!(error.to_string(), "ELF machine 62, expected 247 (BPF)");
    }

    #[test]
    fn a_cut_file_is_an_error_at_every_length() {
        let object = tiny_object(EM_BPF);
        for length in 0..object.len() - 1 {
            assert!(section_names(&object[..length]).is_err(), "length {length}");
        }
    }
}
