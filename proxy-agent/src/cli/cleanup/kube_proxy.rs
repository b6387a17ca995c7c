//! `weir cleanup --kube-proxy`: takes away what kube-proxy left on the node. Nothing of Weir's is touched.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::Format;
use crate::{
    cli::{
        output::{Row, print_json, table},
        tables,
    },
    takeover::{Item, Kept, Plan, kube_proxies},
};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct KubeProxyArgs {
    /// Remove kube-proxy's rules instead, of every mode and family, and leave Weir as it is
    #[arg(long, conflicts_with = "drain")]
    pub(super) kube_proxy: bool,
    /// Only say what of kube-proxy's would be removed
    #[arg(long, requires = "kube_proxy")]
    dry_run: bool,
}

/// What was found and what became of it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    dry_run: bool,
    /// With `dry_run`: what would be.
    removed: Vec<Item>,
    kept: Vec<Kept>,
    failed: Vec<String>,
    missing: Vec<String>,
    notes: Vec<String>,
}

pub(super) fn run(pin_root: &Path, args: &KubeProxyArgs, force: bool, output: Format) -> anyhow::Result<()> {
    if !force && !args.dry_run {
        may_go(pin_root)?;
    }
    let plan = Plan::look().context("look for kube-proxy's rules")?;
    let mut report = Report {
        dry_run: args.dry_run,
        kept: plan.kept,
        missing: plan.missing,
        notes: plan.notes,
        ..Report::default()
    };
    for step in plan.steps {
        let done = if args.dry_run { Ok(()) } else { step.run() };
        match done {
            Ok(()) => report.removed.extend(step.items),
            Err(error) => report.failed.push(error.to_string()),
        }
    }
    report.print(output)?;
    match (report.failed.len(), report.missing.len()) {
        (0, 0) => Ok(()),
        (0, _) => bail!("not everything could be looked for: {}", report.missing.join("; ")),
        (_, _) => bail!("not everything could be removed: {}", report.failed.join("; ")),
    }
}

fn may_go(pin_root: &Path) -> anyhow::Result<()> {
    let running = kube_proxies(Path::new("/proc"));
    if !running.is_empty() {
        bail!(
            "kube-proxy runs on this node (process {running:?}) and would write its rules anew; take the node from its \
             DaemonSet first, or give --force"
        );
    }
    let served = tables::pins(pin_root).and_then(|pins| tables::actual(&pins));
    if !served.is_ok_and(|actual| !actual.v4.services.is_empty() || !actual.v6.services.is_empty()) {
        bail!(
            "Weir serves no frontend on this node (by {}): without kube-proxy's rules nobody would. Start the agent first, \
             or give --force",
            pin_root.display()
        );
    }
    Ok(())
}

impl Report {
    fn print(&self, output: Format) -> anyhow::Result<()> {
        if output == Format::Json {
            return print_json(self);
        }
        let verb = if self.dry_run { "would be removed" } else { "removed" };
        if self.removed.is_empty() {
            println!("nothing of kube-proxy's was found");
        } else {
            println!("{verb}:\n{}", table(&rows(&self.removed)));
        }
        for kept in &self.kept {
            println!("stays: {} ({}): {}", kept.item, kept.item.by, kept.why);
        }
        for note in self.notes.iter().chain(&self.missing) {
            println!("note: {note}");
        }
        Ok(())
    }
}

/// The chains of Services are many; one line for all of a kind.
fn rows(items: &[Item]) -> Vec<ItemRow> {
    let mut counts: BTreeMap<ItemRow, usize> = BTreeMap::new();
    for item in items {
        let chain = item.kind == "chain";
        let per_service = chain.then(|| item.name.splitn(3, '-').collect::<Vec<_>>()).filter(|parts| parts.len() == 3);
        let name = match per_service {
            Some(parts) if parts[1].len() == 3 || parts[1] == "FW" => format!("{}-{}-*", parts[0], parts[1]),
            _ => item.name.clone(),
        };
        let row = ItemRow { by: item.by.clone(), table: item.table.clone(), kind: item.kind, name, count: 0 };
        *counts.entry(row).or_default() += 1;
    }
    counts.into_iter().map(|(row, count)| ItemRow { count, ..row }).collect()
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct ItemRow {
    by: String,
    table: String,
    kind: &'static str,
    name: String,
    count: usize,
}

impl Row for ItemRow {
    const COLUMNS: &'static [&'static str] = &["BY", "TABLE", "KIND", "NAME", "COUNT"];

    fn cells(&self) -> Vec<String> {
        let table = if self.table.is_empty() { "-" } else { &self.table };
        vec![self.by.clone(), table.to_owned(), self.kind.to_owned(), self.name.clone(), self.count.to_string()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_services_share_a_line() {
        let item = |name: &str| Item { by: "iptables".into(), table: "nat".into(), kind: "chain", name: name.into() };
        let names =
            ["KUBE-SERVICES", "KUBE-SVC-AAA", "KUBE-SVC-BBB", "KUBE-FW-AAA", "KUBE-PROXY-CANARY", "KUBE-MARK-MASQ"];
        let rows = rows(&names.map(item));
        let lines: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.count)).collect();
        let expected = [
            ("KUBE-FW-*", 1),
            ("KUBE-MARK-MASQ", 1),
            ("KUBE-PROXY-CANARY", 1),
            ("KUBE-SERVICES", 1),
            ("KUBE-SVC-*", 2),
        ];
        assert_eq!(lines, expected);
    }
}
