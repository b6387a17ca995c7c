//! Every BPF program that sees the packets of an interface, Weir's and others', in the order in which they run: first the
//! tcx chain, then the filters of the clsact qdisc.

use std::collections::BTreeMap;

use aya::programs::loaded_programs;
use futures::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::Handle;

use crate::loader::{TC_HOOKS, sys};

#[derive(Clone, Debug, Default)]
pub(super) struct Chains {
    pub(super) ingress: Vec<String>,
    pub(super) egress: Vec<String>,
}

/// The chains of these interfaces of the own network namespace.
pub(super) async fn chains(indexes: impl Iterator<Item = u32>) -> anyhow::Result<BTreeMap<u32, Chains>> {
    let names: BTreeMap<u32, String> = loaded_programs()
        .filter_map(Result::ok)
        .map(|info| (info.id(), info.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut found = BTreeMap::new();
    for index in indexes {
        let [mut ingress, mut egress] = TC_HOOKS.map(|hook| tcx(index, hook.attach_type, &names));
        ingress.extend(filters(&handle, index, true).await);
        egress.extend(filters(&handle, index, false).await);
        found.insert(index, Chains { ingress, egress });
    }
    connection.abort();
    Ok(found)
}

/// Empty where the kernel has no tcx.
fn tcx(index: u32, hook: aya_obj::generated::bpf_attach_type, names: &BTreeMap<u32, String>) -> Vec<String> {
    let chain = sys::tcx_chain(index, hook).unwrap_or_default();
    let name = |id: u32| names.get(&id).filter(|name| !name.is_empty()).map_or("?", String::as_str);
    chain.iter().map(|entry| format!("{}#{}", name(entry.program), entry.program)).collect()
}

/// Empty where there is no clsact qdisc.
async fn filters(handle: &Handle, index: u32, ingress: bool) -> Vec<String> {
    let mut filters = handle.traffic_filter(index.cast_signed());
    let request = if ingress { filters.get().ingress() } else { filters.get().egress() };
    let messages: Vec<TcMessage> = request.execute().try_collect().await.unwrap_or_default();
    messages.iter().filter_map(filter).collect()
}

fn filter(message: &TcMessage) -> Option<String> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let (mut name, mut id) = (None, None);
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name = Some(text.as_str()),
            TcOption::Bpf(TcFilterBpfOption::ProgId(number)) => id = Some(*number),
            _ => {}
        }
    }
    Some(format!("{}#{} (filter)", name.unwrap_or("?"), id?))
}
