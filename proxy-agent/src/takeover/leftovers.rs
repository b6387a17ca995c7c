//! What kube-proxy left on the node, as a plan: each step is one run of a program and names what goes by it.

use std::{fmt, io};

use serde::Serialize;

use super::{
    iptables, ipvs, nft,
    programs::{ProgramError, run},
};

/// One thing of kube-proxy's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// The program that knows it.
    pub by: String,
    pub table: String,
    /// table, chain, jump, interface, server, set
    pub kind: &'static str,
    pub name: String,
}

/// Items that go together: all or none.
#[derive(Debug)]
pub struct Step {
    pub(super) action: Action,
    pub items: Vec<Item>,
}

#[derive(Debug)]
pub(super) enum Action {
    Program {
        name: String,
        args: Vec<&'static str>,
        input: String,
    },
    /// A network interface, by index.
    RemoveLink(u32),
}

#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// What looks like kube-proxy's and stays, and why.
    pub kept: Vec<Kept>,
    /// What is left undone for want of a program.
    pub missing: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    #[serde(flatten)]
    pub item: Item,
    pub why: String,
}

impl Plan {
    /// Looks at everything and changes nothing.
    pub fn look() -> Result<Self, ProgramError> {
        let mut plan = Self::default();
        let nft = nft::look(&mut plan)?;
        // Sets are in use as long as rules name them, so they come last; so do the servers behind the rules.
        iptables::look(&mut plan, &nft)?;
        ipvs::look(&mut plan)?;
        nft::hand_over(&mut plan, &nft);
        Ok(plan)
    }

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.steps.iter().flat_map(|step| &step.items)
    }
}

impl Step {
    pub fn run(&self) -> Result<(), ProgramError> {
        match &self.action {
            Action::Program { name, args, input } => run(name, args, input).map(drop),
            Action::RemoveLink(index) => remove_link(*index)
                .map_err(|error| ProgramError::Run { program: "delete the interface kube-ipvs0".to_owned(), error }),
        }
    }
}

fn remove_link(index: u32) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        handle.link().del(index).execute().await.map_err(io::Error::other)
    })
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)?;
        if self.table.is_empty() { Ok(()) } else { write!(f, " of table {}", self.table) }
    }
}
