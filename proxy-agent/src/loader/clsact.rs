//! tc attachment for kernels before 6.6, which have no tcx links: a filter below the clsact qdisc. Its priority and handle are
//! fixed, so that it is found again, replaced in place and removed. The program is pinned beside the links to mark it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        Link as _, Program, ProgramError, SchedClassifier, TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
};
use aya_obj::generated::bpf_attach_type;
use futures::TryStreamExt as _;
use netlink_packet_route::tc::TcHandle as NetlinkTcHandle;

use super::{
    LoaderError,
    attach::Attached,
    hooks::{Hook, TC_HOOKS},
    pin_error,
    pins::Pins,
    sys::Order,
};

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TcBackend {
    /// tcx where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    Tcx,
    Clsact,
}

/// End of the file names of pins that stand for a filter.
pub const CLSACT_MARK: &str = "clsact";

/// "WEIR".
const HANDLE: TcHandle = TcHandle::new(0x5745, 0x4952);

const FIRST: u16 = 1;
/// Behind those that the kernel numbers by itself, which start at 49152 and go down.
const LAST: u16 = 50_000;

fn priority(hook: &Hook, order: Order) -> u16 {
    if order.is_first(hook.attach_type) { FIRST } else { LAST }
}

fn attach_type(hook: &Hook) -> TcAttachType {
    if hook.attach_type == bpf_attach_type::BPF_TCX_INGRESS { TcAttachType::Ingress } else { TcAttachType::Egress }
}

/// `PROGRAM-IFINDEX-clsact`.
pub(super) fn pin_name(hook: Hook, index: u32) -> String {
    format!("{}-{index}-{CLSACT_MARK}", hook.program)
}

/// A pin that says: the qdisc was added by us.
fn qdisc_mark(index: u32) -> String {
    format!("qdisc-{index}-{CLSACT_MARK}")
}

pub(super) fn is_pin(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(CLSACT_MARK))
}

pub(super) fn attach(
    ebpf: &mut Ebpf,
    hook: &Hook,
    index: u32,
    name: &str,
    pins: &Pins,
    order: Order,
) -> Result<Attached, LoaderError> {
    let Some(Program::SchedClassifier(program)) = ebpf.program_mut(hook.program) else {
        return Err(LoaderError::NoProgram(hook.program));
    };
    let failed = |error| LoaderError::Clsact { program: hook.program, interface: name.to_owned(), error };
    // EEXIST if somebody else has added it; any other error shows again in the next step.
    let added = qdisc_add_clsact(name).is_ok();
    let path = pins.link(&pin_name(*hook, index));
    let priority = priority(hook, order);
    let how = match replace(program, hook, name, priority) {
        Ok(()) => Attached::Replaced,
        Err(_) => {
            create(program, hook, name, priority).map_err(failed)?;
            // Of an agent with another order.
            remove_filter(hook, name, FIRST + LAST - priority);
            Attached::New
        }
    };
    if path.exists() {
        fs::remove_file(&path).map_err(pin_error("unpin", &path))?;
    }
    pin(program, path)?;
    if added {
        pin(program, pins.link(&qdisc_mark(index)))?;
    }
    Ok(how)
}

fn pin(program: &mut SchedClassifier, path: PathBuf) -> Result<(), LoaderError> {
    program.pin(&path).map_err(|error| pin_error("pin a program at", path)(io::Error::other(error)))
}

fn create(program: &mut SchedClassifier, hook: &Hook, name: &str, priority: u16) -> Result<(), ProgramError> {
    let options = NlOptions { priority, handle: HANDLE, classid: None };
    let id = program.attach_with_options(name, attach_type(hook), TcAttachOptions::Netlink(options))?;
    // The filter stays when this process ends.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn replace(program: &mut SchedClassifier, hook: &Hook, name: &str, priority: u16) -> Result<(), ProgramError> {
    let link = filter(hook, name, priority)?;
    let id = program.attach_to_link(link)?;
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn filter(hook: &Hook, name: &str, priority: u16) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, attach_type(hook), priority, HANDLE, None)
}

/// Does nothing where there is none.
fn remove_filter(hook: &Hook, name: &str, priority: u16) {
    if let Ok(link) = filter(hook, name, priority) {
        let _ = link.detach();
    }
}

/// Removes the filter (whichever order it was attached with) and the pin; with the last one also the qdisc, if it was added by
/// us and nobody else uses it.
pub(super) fn remove(path: &Path, hook: Hook, index: u32) -> io::Result<()> {
    if let Ok(name) = nix::net::if_::if_indextoname(index) {
        let name = name.to_string_lossy();
        for priority in [FIRST, LAST] {
            remove_filter(&hook, &name, priority);
        }
    }
    fs::remove_file(path)?;
    let links = path.parent().unwrap_or(path);
    let mark = links.join(qdisc_mark(index));
    let others = TC_HOOKS.iter().any(|hook| links.join(pin_name(*hook, index)).exists());
    if mark.exists() && !others {
        // With an interface its qdiscs went, too.
        if nix::net::if_::if_indextoname(index).is_ok() {
            remove_qdisc(index);
        }
        fs::remove_file(mark)?;
    }
    Ok(())
}

/// On a thread of its own, in the same network namespace: the caller may or may not run inside an asynchronous runtime.
fn remove_qdisc(index: u32) {
    let removal = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(delete_unused_qdisc(index.cast_signed()))
    });
    match removal.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(ifindex = index, %error, "the clsact qdisc stays"),
        Err(_) => tracing::warn!(ifindex = index, "the clsact qdisc stays: its removal panicked"),
    }
}

async fn delete_unused_qdisc(index: i32) -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut filters = handle.traffic_filter(index);
    let ingress: Vec<_> = filters.get().ingress().execute().try_collect().await.map_err(io::Error::other)?;
    let egress: Vec<_> = filters.get().egress().execute().try_collect().await.map_err(io::Error::other)?;
    if ingress.is_empty() && egress.is_empty() {
        let mut request = handle.qdisc().del(index);
        request.message_mut().header.parent = NetlinkTcHandle::CLSACT;
        request.message_mut().header.handle = NetlinkTcHandle { major: 0xffff, minor: 0 };
        request.execute().await.map_err(io::Error::other)?;
    }
    connection.abort();
    Ok(())
}
