//! Keeps our own outer flows out of the host's connection tracking, by an nftables table that is ours alone.
//!
//! What sockets send passes the OUTPUT hook, and conntrack would hold an entry for each outer flow. A chain before
//! it (priority raw) marks those packets as not tracked: UDP by addresses and ports, GRE by the address alone. It does
//! not look into the tunnel's header: `nft list` of Debian 12 aborts on matches behind the ports that it knows no
//! name for, and an operator has to be able to list the rules. The table belongs to our netlink socket
//! (`NFT_TABLE_F_OWNER`, kernel 5.12): the kernel removes it when the process ends, however it ends, and nobody
//! else can change it. Made only where conntrack holds entries, for the chain costs each packet that the host
//! sends a few comparisons; never loads conntrack. One of the few things in `host` that change something.
//! Called by control.

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netlink_sys::{protocols::NETLINK_NETFILTER, Socket, SocketAddr};

// linux/netfilter/nfnetlink.h, nf_tables.h
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const TABLE_OWNER: u32 = 2;
const FAMILY_INET: u8 = 1;
const HOOK_OUTPUT: u32 = 3;
const PRIORITY_RAW: i32 = -300;
const CHAIN: &str = "output";
const REGISTER: u32 = 1;
const META_PROTOCOL_FAMILY: u32 = 15;
const META_L4_PROTOCOL: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const EQUAL: u32 = 0;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const ACKNOWLEDGE: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16 | ACKNOWLEDGE;
const APPEND: u16 = CREATE | libc::NLM_F_APPEND as u16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// One of our outer flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Outer destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source ports and destination port, where there are ports.
    pub ports: Option<(RangeInclusive<u16>, u16)>,
}

/// Whether conntrack holds entries in the network namespace of the calling thread.
#[must_use]
pub fn conntrack_is_in_use() -> bool {
    // Where the module is not loaded there is no such file.
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|count| count.trim() != "0")
}

/// A table that stands as long as this value.
#[derive(Debug)]
pub struct Untracked {
    _owner: Socket,
}

impl Untracked {
    /// Makes the table in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refused: it is older than 5.12 (EOPNOTSUPP, EINVAL), has no nf_tables, or CAP_NET_ADMIN is
    /// missing. Nothing is left then.
    pub fn new(flows: &[Flow]) -> io::Result<Untracked> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let address = socket.bind_auto()?;
        // Port numbers of netlink sockets are unique in a namespace.
        let table = format!("xtee-{}", address.port_number());
        let batch = batch(&table, flows);
        socket.send_to(&batch, &SocketAddr::new(0, 0), 0)?;
        // The answers were queued before `send_to` returned.
        loop {
            let mut answers = Vec::with_capacity(32 << 10);
            match socket.recv(&mut answers, libc::MSG_DONTWAIT) {
                Ok(_) => refusal(&answers)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Untracked { _owner: socket })
    }
}

/// The first error among the answers.
fn refusal(mut answers: &[u8]) -> io::Result<()> {
    const HEADER: usize = 16;
    while let Some(length) = answers
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes) as usize)
    {
        if length < HEADER {
            break;
        }
        let kind = answers
            .get(4..6)
            .map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        let code = answers.get(HEADER..).and_then(|rest| rest.first_chunk());
        if let (Some(2), Some(code)) = (kind, code) {
            let code = i32::from_ne_bytes(*code);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
        }
        answers = answers.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(())
}

fn batch(table: &str, flows: &[Flow]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sequence = 0;
    let mut message = |kind: u16, flags: u16, attributes: &[u8]| {
        let (family, resource) = match kind {
            BATCH_BEGIN | BATCH_END => (0, SUBSYSTEM),
            _ => (FAMILY_INET, 0),
        };
        let start = bytes.len();
        let length = (16 + 4 + attributes.len()) as u32;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
        bytes.extend(u32::to_ne_bytes(sequence));
        bytes.extend([0; 4]);
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        bytes.extend(attributes);
        bytes.resize((start + length as usize).next_multiple_of(4), 0);
        sequence += 1;
    };
    message(BATCH_BEGIN, 0, &[]);
    let owned = [text(1, table), number(2, TABLE_OWNER)].concat();
    message(NEW_TABLE, CREATE, &owned);
    let hook = [number(1, HOOK_OUTPUT), number(2, PRIORITY_RAW as u32)].concat();
    let chain = [
        text(1, table),
        text(3, CHAIN),
        nested(4, &hook),
        text(7, "filter"),
    ];
    message(NEW_CHAIN, CREATE, &chain.concat());
    for flow in flows {
        let rule = [
            text(1, table),
            text(2, CHAIN),
            nested(4, &expressions(flow)),
        ];
        message(NEW_RULE, APPEND, &rule.concat());
    }
    message(BATCH_END, 0, &[]);
    bytes
}

/// The rule of one flow: what has to match, then `notrack`.
fn expressions(flow: &Flow) -> Vec<u8> {
    let (family, offset, address) = match flow.destination {
        IpAddr::V4(address) => (libc::AF_INET, 16, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 24, address.octets().to_vec()),
    };
    let mut all = vec![
        meta(META_PROTOCOL_FAMILY),
        compare(EQUAL, &[family as u8]),
        payload(BASE_NETWORK, offset, address.len() as u32),
        compare(EQUAL, &address),
        meta(META_L4_PROTOCOL),
        compare(EQUAL, &[flow.protocol]),
    ];
    if let Some((sources, destination)) = &flow.ports {
        all.extend([
            payload(BASE_TRANSPORT, 2, 2),
            compare(EQUAL, &destination.to_be_bytes()),
            payload(BASE_TRANSPORT, 0, 2),
            compare(AT_LEAST, &sources.start().to_be_bytes()),
            compare(AT_MOST, &sources.end().to_be_bytes()),
        ]);
    }
    all.push(nested(1, &text(1, "notrack")));
    all.concat()
}

fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)].concat())
}

fn payload(base: u32, offset: u32, length: u32) -> Vec<u8> {
    let data = [
        number(1, REGISTER),
        number(2, base),
        number(3, offset),
        number(4, length),
    ];
    expression("payload", &data.concat())
}

fn compare(operation: u32, value: &[u8]) -> Vec<u8> {
    let value = nested(3, &attribute(1, value));
    let data = [number(1, REGISTER), number(2, operation), value];
    expression("cmp", &data.concat())
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)].concat())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// All numbers of nf_tables are in network order.
fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn nested(kind: u16, inner: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, inner)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_messages_are_padded_to_four_bytes() {
        assert_eq!(text(1, "cmp"), [8, 0, 1, 0, b'c', b'm', b'p', 0]);
        assert_eq!(attribute(2, &[7]), [5, 0, 2, 0, 7, 0, 0, 0]);
        assert_eq!(number(3, 5), [8, 0, 3, 0, 0, 0, 0, 5]);
        let flow = Flow {
            destination: [203, 0, 113, 2].into(),
            protocol: 17,
            ports: Some((61000..=61063, 4789)),
        };
        let batch = batch("xtee-1", &[flow]);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < batch.len() {
            let length = u32::from_ne_bytes(batch[at..at + 4].try_into().unwrap()) as usize;
            kinds.push(u16::from_ne_bytes([batch[at + 4], batch[at + 5]]));
            at += length.next_multiple_of(4);
        }
        assert_eq!(at, batch.len());
        assert_eq!(
            kinds,
            [BATCH_BEGIN, NEW_TABLE, NEW_CHAIN, NEW_RULE, BATCH_END]
        );
    }

    #[test]
    fn the_first_refusal_counts_and_acknowledgements_do_not() {
        let answer = |code: i32| {
            let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        refusal(&[answer(0), answer(0)].concat()).unwrap();
        let error = refusal(&[answer(0), answer(-1), answer(-22)].concat()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        refusal(&[1, 2, 3]).unwrap();
        refusal(&[0; 64]).unwrap();
    }
}
