//! Checks that every relative link in the Markdown documents leads to a file, and that its `#anchor`
//! is a heading there. Called by test.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Directories that hold nothing of ours.
const SKIPPED_DIRECTORIES: [&str; 2] = ["target", "node_modules"];

pub(crate) fn check() -> Result<()> {
    let mut documents = Vec::new();
    collect(workspace::root(), &mut documents)?;
    documents.sort();
    let mut broken = Vec::new();
    let mut links = 0;
    for document in &documents {
        let text = read(document)?;
        for (line, target) in relative_links(&text) {
            links += 1;
            if let Err(reason) = follow(document, &target) {
                let name = document.strip_prefix(workspace::root()).unwrap_or(document);
                broken.push(format!("{}:{line}: {target}: {reason}", name.display()));
            }
        }
    }
    if !broken.is_empty() {
        bail!("{} broken links\n{}", broken.len(), broken.join("\n"));
    }
    println!("{links} links in {} documents lead somewhere", documents.len());
    Ok(())
}

fn collect(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_str().is_none_or(|name| name.starts_with('.') || SKIPPED_DIRECTORIES.contains(&name));
        if entry.file_type()?.is_dir() {
            if !hidden {
                collect(&path, into)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            into.push(path);
        }
    }
    Ok(())
}

fn follow(document: &Path, target: &str) -> Result<(), String> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => document.to_owned(),
        file => document.parent().unwrap_or(Path::new("")).join(file),
    };
    if !path.exists() {
        return Err("no such file".to_owned());
    }
    if anchor.is_empty() || path.extension().is_none_or(|extension| extension != "md") {
        return Ok(());
    }
    let text = read(&path).map_err(|error| format!("{error:#}"))?;
    if anchors(&text).contains(anchor) { Ok(()) } else { Err("no such heading".to_owned()) }
}

/// Line number and target of each inline link that is not a URL; code is left out.
fn relative_links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in lines_outside_code(text) {
        // Every other piece between backticks is code.
        for prose in line.split('`').step_by(2) {
            for rest in prose.split("](").skip(1) {
                let Some((target, _)) = rest.split_once(')') else { continue };
                // A title may follow the target.
                let target = target.split_whitespace().next().unwrap_or("");
                if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                    links.push((number, target.to_owned()));
                }
            }
        }
        // A link text in backticks, [`name`](target), is split by the loop above into prose that
        // starts with the bracket, and so is found too.
    }
    links
}

/// Anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> HashSet<String> {
    let heading = |line: &str| {
        let title = line.trim_start_matches('#');
        (line.starts_with('#') && title.starts_with(' ')).then(|| anchor_of(title.trim()))
    };
    lines_outside_code(text).filter_map(|(_, line)| heading(line)).collect()
}

fn anchor_of(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter_map(|character| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            _ => character.is_alphanumeric().then_some(character),
        })
        .collect()
}

fn lines_outside_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!in_code && !fence).then_some((index + 1, line))
    })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<String> {
        relative_links(text).into_iter().map(|(_, target)| target).collect()
    }

    #[test]
    fn links_to_files_are_found() {
        let text = "See [maps](docs/maps.md#reading) and [the `lib`](src/lib.rs \"title\"), [`x`](y.rs).";
        assert_eq!(targets(text), ["docs/maps.md#reading", "src/lib.rs", "y.rs"]);
    }

    #[test]
    fn urls_and_code_are_left_out() {
        assert!(targets("[a](https://example.org) [b](mailto:x@example.org) `[c](d)`").is_empty());
        assert!(targets("```\n[a](b)\n```\n").is_empty());
    }

    #[test]
    fn headings_become_anchors() {
        let anchors = anchors("# Weir: the picture\n## `weir services`, explained\n```\n# comment\n```\n");
        assert!(anchors.contains("weir-the-picture"));
        assert!(anchors.contains("weir-services-explained"));
        assert!(!anchors.contains("comment"));
    }
}
