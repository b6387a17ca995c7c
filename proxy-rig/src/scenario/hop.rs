//! One packet at one hook, with its expectation; and the hops of a journey. Called by run.rs.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use proxy_common::{
    abi::Reason,
    net::{ETH_LEN, ICMP, ICMPV6, SCTP, TCP, TCP_ACK, TCP_SYN},
};

use super::{
    expect::{Expectation, Outcome},
    file::{JourneySpec, SinglePacket},
    frame::{build, describe, l4_offset, tuple_of},
    notation::{Extras, PacketSpec, TuplePattern, icmp_error, socket_address},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

/// Where a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub interface: String,
    pub hook: Hook,
    /// At egress: made by a socket of the node.
    pub own: bool,
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (interface, hook, own) = match words[..] {
            [interface, "ingress"] => (interface, Hook::Ingress, false),
            [interface, "egress"] => (interface, Hook::Egress, false),
            [interface, "egress", "own"] => (interface, Hook::Egress, true),
            _ => bail!("at: expected `INTERFACE ingress`, `INTERFACE egress` or `INTERFACE egress own`, got {text:?}"),
        };
        Ok(Self { interface: interface.to_owned(), hook, own })
    }

    fn of(interface: &str, hook: Hook) -> Self {
        Self { interface: interface.to_owned(), hook, own: false }
    }

    pub fn in_words(&self) -> String {
        let hook = if self.hook == Hook::Ingress { "ingress" } else { "egress" };
        format!("{} {hook}{}", self.interface, if self.own { " own" } else { "" })
    }
}

/// One run of a hook.
#[derive(Clone, Debug)]
pub struct Hop {
    pub place: Place,
    pub frame: Vec<u8>,
    pub expectation: Expectation,
    pub backend: Option<String>,
}

impl Hop {
    /// A packet of a scenario. `last` is the frame that left the hop before.
    pub(super) fn of_packet(packet: &SinglePacket, last: Option<&[u8]>, nth: u16) -> Result<Self> {
        let frame = match (&packet.send, &packet.hex) {
            (Some(text), None) => frame_of(text, last, nth).with_context(|| format!("send: {text}"))?,
            (None, Some(hex)) => bytes_of_hex(hex).with_context(|| format!("hex: {hex}"))?,
            _ => bail!("a packet has either `send` or `hex`"),
        };
        Ok(Self {
            place: Place::parse(&packet.at)?,
            frame,
            expectation: Expectation::parse(&packet.expect, packet.reason.as_deref())?,
            backend: packet.backend.clone(),
        })
    }

    /// A packet of which nothing is expected beforehand.
    pub(crate) fn bare(place: Place, frame: Vec<u8>) -> Self {
        Self { place, frame, expectation: Expectation::pass(None, None), backend: None }
    }

    /// Says what is wrong with the outcome.
    pub fn check(&self, outcome: &Outcome) -> Result<()> {
        self.expectation.check(&self.frame, outcome)?;
        if let Some(wanted) = &self.backend {
            let got = outcome.backend.as_deref().unwrap_or("none");
            ensure!(got == wanted, "expected backend {wanted}, got {got}");
        }
        Ok(())
    }

    pub fn in_words(&self) -> String {
        format!("{:<16} {}", self.place.in_words(), describe(&self.frame))
    }
}

fn frame_of(text: &str, last: Option<&[u8]>, nth: u16) -> Result<Vec<u8>> {
    let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
    let last = || last.context("no packet went out before");
    match first {
        // Exactly as it left.
        "that" if rest.is_empty() => Ok(last()?.to_vec()),
        "that" => continued(last()?, false, rest),
        "reply" => continued(last()?, true, rest),
        "error" => error_about(last()?, rest),
        _ => {
            let mut spec: PacketSpec = text.parse()?;
            spec.src.set_port(spec.src.port().wrapping_add(nth));
            Ok(build(&spec))
        }
    }
}

/// A packet with the tuple of `frame`, or with its inverse.
fn continued(frame: &[u8], inverse: bool, words: &str) -> Result<Vec<u8>> {
    let (protocol, src, dst) = tuple_of(frame).context("the last packet has no tuple")?;
    let (src, dst) = if inverse { (dst, src) } else { (src, dst) };
    let tcp_flags = if protocol == TCP { TCP_ACK } else { 0 };
    let mut spec = PacketSpec { protocol, src, dst, tcp_flags, extras: Extras::default() };
    for word in words.split_whitespace() {
        spec.add(word)?;
    }
    Ok(build(&spec))
}

/// An ICMP error about `frame`: `FROM KIND [quote=N] [words]`, N being how many bytes behind the network header it quotes.
fn error_about(frame: &[u8], text: &str) -> Result<Vec<u8>> {
    let mut words = text.split_whitespace();
    let from = socket_address(words.next().context("who sends the error?")?)?;
    let kind = words.next().context("what kind of error?")?;
    let (_, about, _) = tuple_of(frame).context("the last packet has no tuple")?;
    let v4 = from.is_ipv4();
    let mut extras = Extras { icmp: Some(icmp_error(kind, v4)?), ..Extras::default() };
    let mut quote = 8;
    let mut others = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("quote", number)) => quote = number.parse()?,
            _ => others.push(word),
        }
    }
    let l4 = l4_offset(frame).context("the last packet has no transport header")?.0;
    extras.payload = Some(frame[ETH_LEN..frame.len().min(l4 + quote)].to_vec());
    let dst = SocketAddr::new(about.ip(), 0);
    let protocol = if v4 { ICMP } else { ICMPV6 };
    let mut spec = PacketSpec { protocol, src: from, dst, tcp_flags: 0, extras };
    for word in others {
        spec.add(word)?;
    }
    Ok(build(&spec))
}

fn bytes_of_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    ensure!(digits.len().is_multiple_of(2), "an odd number of digits");
    let mut frame = Vec::with_capacity(digits.len() / 2);
    for pair in digits.chunks(2) {
        frame.push(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    }
    ensure!(frame.len() >= ETH_LEN, "a frame has at least {ETH_LEN} bytes");
    Ok(frame)
}

/// The stages of a journey. Each stage starts from the frame that left the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Request,
    Forwarded,
    Reply,
    Back,
    /// The client's next packet: the flow is known now.
    Next,
    NextForwarded,
}

pub(super) const STAGES: [Stage; 6] =
    [Stage::Request, Stage::Forwarded, Stage::Reply, Stage::Back, Stage::Next, Stage::NextForwarded];

pub(super) fn journey_hop(journey: &JourneySpec, stage: Stage, last: Option<&[u8]>) -> Result<Hop> {
    let mut client: PacketSpec = journey.client.parse()?;
    let tcp = client.protocol == TCP;
    let sctp = client.protocol == SCTP;
    if tcp {
        client.tcp_flags = TCP_SYN;
    } else if sctp {
        client.add("init")?;
    }
    let last = || last.context("the journey ended early");
    let source = match journey.source {
        None => client.src.to_string(),
        Some(address) => format!("{}:*", SocketAddr::new(address, 0).to_string().trim_end_matches(":0")),
    };
    let protocol = client.protocol;
    let expect = |src: &str, dst: &str| TuplePattern::new(protocol, src, dst).map(Some);
    let (client_text, vip, backend) = (client.src.to_string(), client.dst.to_string(), journey.backend.to_string());
    let answer = match client.protocol {
        TCP => "synack",
        SCTP => "init-ack",
        _ => "len=4",
    };
    // Between the hooks the client's port is another one if a second flow of the client has the same backend.
    let inside = format!("{}:*", client_text.rsplit_once(':').map_or(client_text.as_str(), |(address, _)| address));
    let reason = |first, later| Some(if journey.source.is_some() { first } else { later });
    let (place, frame, expectation) = match stage {
        Stage::Request => (
            Place::of(&journey.from, Hook::Ingress),
            build(&client),
            Expectation::pass(expect(&inside, &backend)?, Some(Reason::NewFlow)),
        ),
        Stage::Forwarded | Stage::NextForwarded => (
            Place::of(&journey.to, Hook::Egress),
            last()?.to_vec(),
            Expectation::pass(expect(&source, &backend)?, reason(Reason::Snat, Reason::NoTranslation)),
        ),
        Stage::Reply => (
            Place::of(&journey.to, Hook::Ingress),
            continued(last()?, true, answer)?,
            Expectation::pass(expect(&backend, &inside)?, reason(Reason::SnatReply, Reason::NotOurs)),
        ),
        Stage::Back => {
            let tuple = expect(&vip, &client_text)?;
            let (by, expectation) = match &journey.back_by {
                Some(by) => (by, Expectation::redirect(&journey.from, tuple)),
                None => (&journey.from, Expectation::pass(tuple, Some(Reason::Reply))),
            };
            (Place::of(by, Hook::Egress), last()?.to_vec(), expectation)
        }
        Stage::Next => {
            if tcp {
                client.tcp_flags = TCP_ACK;
            } else if sctp {
                client.add("cookie-echo")?;
            }
            let expectation = Expectation::pass(expect(&inside, &backend)?, Some(Reason::Forward));
            (Place::of(&journey.from, Hook::Ingress), build(&client), expectation)
        }
    };
    Ok(Hop { place, frame, expectation, backend: None })
}
