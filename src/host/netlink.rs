//! A blocking rtnetlink socket: one request, its answer; a dump; a change with its acknowledgement.
//!
//! Must not interpret what the answers say, and must not be used by a worker: every call may wait.
//! Called by link, route, neighbour, hooks and watch. The socket belongs to the network namespace of
//! the thread that opens it, wherever it is used later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

use super::sys;

/// Why rtnetlink gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened or used.
    #[error("netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel answered the request with an error.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked for, in words.
        what: String,
        /// The kernel's errno.
        source: io::Error,
    },
    /// The kernel's answer could not be read.
    #[error("{what}: answer not understood: {detail}")]
    Malformed {
        /// What was asked for, in words.
        what: String,
        /// The decoder's words.
        detail: String,
    },
    /// No answer came, although rtnetlink answers before the request's send returns.
    #[error("{what}: the kernel gave no answer")]
    Silent {
        /// What was asked for, in words.
        what: String,
    },
}

impl NetlinkError {
    /// The errno of a refusal, if it is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Longest answer accepted. The kernel sizes dump messages by the reader's buffer, up to 32 KiB; a
/// link with many virtual functions needs more than a page.
const BUFFER: usize = 64 * 1024;
/// rtnetlink queues the answer before `send` returns; the wait only covers a very slow dump.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often an interrupted dump (the table changed underneath) is started again.
const DUMP_ATTEMPTS: usize = 3;

/// One rtnetlink socket for requests.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Sends a request that has exactly one answer, and returns it. `what` goes into the error.
    pub fn ask(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        self.send(message, NLM_F_REQUEST)?;
        let mut answer = None;
        self.receive(what, |_, payload| {
            answer = Some(payload);
            true
        })?;
        match answer {
            Some(Ok(message)) => Ok(message),
            Some(Err(detail)) => Err(NetlinkError::Malformed {
                what: what.to_owned(),
                detail,
            }),
            None => Err(NetlinkError::Silent {
                what: what.to_owned(),
            }),
        }
    }

    /// Returns all messages of a table. Entries that cannot be decoded are left out: one device of
    /// an unknown sort must not hide all others. A table that changes during the dump is read again.
    pub fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut found = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            found.clear();
            let mut interrupted = false;
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            self.receive(what, |header, payload| {
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                if let Ok(message) = payload {
                    found.push(message);
                }
                false
            })?;
            if !interrupted {
                break;
            }
        }
        Ok(found)
    }

    /// Asks for a change and waits for its acknowledgement. `flags` are added to REQUEST and ACK.
    pub fn change(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(what, |_, _| false)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket
            .send_to(&bytes, &SocketAddr::new(0, 0), 0)
            .map_err(NetlinkError::Socket)?;
        Ok(())
    }

    /// Reads until the request is finished: by DONE, an acknowledgement, an error, or because `each`
    /// returns true. Left-overs of an earlier request are told apart by their sequence number.
    fn receive(
        &mut self,
        what: &str,
        mut each: impl FnMut(&NetlinkHeader, Result<RouteNetlinkMessage, String>) -> bool,
    ) -> Result<(), NetlinkError> {
        loop {
            let [ready] =
                sys::wait_readable([self.as_fd()], Some(PATIENCE)).map_err(NetlinkError::Socket)?;
            if !ready {
                return Err(NetlinkError::Silent {
                    what: what.to_owned(),
                });
            }
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(NetlinkError::Socket(error)),
            }
            for bytes in messages(&self.buffer) {
                let sequence = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
                if sequence != self.sequence {
                    continue;
                }
                let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                    Ok(message) => message,
                    Err(error) => {
                        if each(&NetlinkHeader::default(), Err(error.to_string())) {
                            return Ok(());
                        }
                        continue;
                    }
                };
                let finished = match message.payload {
                    NetlinkPayload::Done(_) => true,
                    NetlinkPayload::Error(error) if error.code.is_none() => true,
                    NetlinkPayload::Error(error) => {
                        return Err(NetlinkError::Refused {
                            what: what.to_owned(),
                            source: error.to_io(),
                        })
                    }
                    NetlinkPayload::InnerMessage(inner) => each(&message.header, Ok(inner)),
                    _ => false,
                };
                if finished {
                    return Ok(());
                }
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.socket)
    }
}

/// Borrows the descriptor of a netlink socket (netlink-sys offers only the raw number).
pub(super) fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open as long as `socket`, whose borrow the result carries.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Cuts one datagram into netlink messages (RFC 3549, 2.3.2: each padded to 4 bytes). A length that
/// does not fit ends the walk.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    const HEADER: usize = 16;
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        if length < HEADER || length > rest.len() {
            return None;
        }
        let message = &rest[..length];
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, fill: usize) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.resize(fill, 0);
        bytes
    }

    #[test]
    fn cuts_a_datagram_into_padded_messages() {
        let mut datagram = message(18, 20);
        datagram.extend(message(16, 16));
        let lengths: Vec<usize> = messages(&datagram).map(<[u8]>::len).collect();
        assert_eq!(lengths, [18, 16]);
    }

    #[test]
    fn stops_at_lengths_that_do_not_fit() {
        assert_eq!(messages(&message(15, 16)).count(), 0);
        assert_eq!(messages(&message(17, 16)).count(), 0);
        assert_eq!(messages(&[1, 0]).count(), 0);
        assert_eq!(messages(&message(u32::MAX, 32)).count(), 0);
    }

    #[test]
    fn the_kernel_answers_requests_dumps_and_refusals() {
        use netlink_packet_route::link::LinkMessage;
        let mut netlink = Netlink::open().unwrap();
        let links = netlink
            .dump(
                "links",
                RouteNetlinkMessage::GetLink(LinkMessage::default()),
            )
            .unwrap();
        assert!(links
            .iter()
            .all(|message| matches!(message, RouteNetlinkMessage::NewLink(_))));
        assert!(!links.is_empty(), "every namespace has lo");
        let mut wanted = LinkMessage::default();
        wanted.header.index = i32::MAX as u32;
        let error = netlink
            .ask("link 2147483647", RouteNetlinkMessage::GetLink(wanted))
            .unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
    }
}
