//! One xtee an interface: a second one is refused, for its copies would not be excluded by the first.
//!
//! The lock is an abstract UNIX socket: it belongs to the network namespace, as the interface does,
//! needs no file, and the kernel releases it when the process dies, however it dies.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::bail;

use crate::host::namespace::number;

/// Held as long as the interface is ours.
#[derive(Debug)]
pub struct InterfaceLock {
    _socket: UnixListener,
}

/// Takes the lock of an interface in the network namespace with the number `namespace`. The socket is made
/// in this thread's namespace all the same: in the other it would keep that alive.
///
/// # Errors
/// Another xtee has it.
pub fn lock(interface: &str, ifindex: u32, namespace: u64) -> anyhow::Result<InterfaceLock> {
    let name = match namespace == number() {
        true => format!("xtee/interface/{ifindex}"),
        false => format!("xtee/interface/{namespace}/{ifindex}"),
    };
    let address = SocketAddr::from_abstract_name(name)?;
    match UnixListener::bind_addr(&address) {
        Ok(socket) => Ok(InterfaceLock { _socket: socket }),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "another xtee mirrors {interface} already; give both targets to one xtee (several --to or [[target]]), or stop the other"
        ),
        Err(error) => Err(error.into()),
    }
}
