//! The Containerfile says the same as the image that `cargo xtask image` packs. No engine is needed to see that.

use clap::Parser as _;
use serde_json::Value;

use super::archive::{ENTRYPOINT, LABELS};
use crate::{Cli, workspace};

/// Instructions and their arguments, with lines joined that end in a backslash.
fn instructions() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(workspace::root().join("Containerfile")).expect("Containerfile");
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |line: &str| {
        let (name, rest) = line.split_once(' ').expect("an instruction with arguments");
        (name.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    lines.map(split).collect()
}

fn last_stage(all: &[(String, String)]) -> &[(String, String)] {
    let start = all.iter().rposition(|(name, _)| name == "FROM").expect("FROM");
    &all[start..]
}

fn only<'a>(stage: &'a [(String, String)], wanted: &str) -> &'a str {
    let found: Vec<_> = stage.iter().filter(|(name, _)| name == wanted).collect();
    assert_eq!(found.len(), 1, "{wanted}");
    &found[0].1
}

#[test]
fn the_last_stage_is_the_image() {
    let all = instructions();
    let stage = last_stage(&all);
    assert_eq!(only(stage, "FROM"), "scratch");
    assert_eq!(only(stage, "COPY"), "--from=build /weir /weir");
    let entrypoint: Value = serde_json::from_str(only(stage, "ENTRYPOINT")).expect("the exec form");
    assert_eq!(entrypoint, serde_json::json!([ENTRYPOINT]));
    let labels: Vec<_> = stage.iter().filter(|(name, _)| name == "LABEL").map(|(_, rest)| rest.clone()).collect();
    assert_eq!(labels, LABELS.map(|(key, value)| format!("{key}=\"{value}\"")));
    assert_eq!(stage.len(), 3 + LABELS.len(), "an instruction that no other image has");
}

#[test]
fn the_build_stage_calls_a_command_that_exists() {
    let all = instructions();
    let command = all.iter().filter(|(name, _)| name == "RUN").map(|(_, rest)| rest.as_str());
    let line = command.filter_map(|line| line.split_once("cargo xtask ")).next_back().expect("RUN ... cargo xtask").1;
    let words = std::iter::once("xtask").chain(line.split_whitespace());
    if let Err(error) = Cli::try_parse_from(words) {
        panic!("{error}");
    }
}
