//! Hears that interfaces or routes have changed. What has changed is not read: whoever hears looks again,
//! so that a lost event costs nothing but time.
//!
//! Must not wait. Called by the control plane's round, many times a second.

use std::io;

use netlink_sys::{protocols::NETLINK_ROUTE, Socket};

/// RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE of linux/rtnetlink.h.
const LINK: u32 = 1;
const ROUTES: [u32; 2] = [7, 11];
/// Events taken off the socket in one round: a storm of them must not hold the round up.
const AT_ONCE: usize = 4096;

/// A subscription in the network namespace of the thread that made it.
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Events")
    }
}

impl Events {
    /// Changes of interfaces from now on, and of `routes` if wanted.
    ///
    /// # Errors
    /// No socket is to be had.
    pub fn subscribe(routes: bool) -> io::Result<Events> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(LINK)?;
        for group in ROUTES.into_iter().filter(|_| routes) {
            socket.add_membership(group)?;
        }
        Ok(Events {
            socket,
            buffer: Vec::with_capacity(64 * 1024),
        })
    }

    /// Whether anything has changed since the last call.
    pub fn heard(&mut self) -> bool {
        for round in 0..AT_ONCE {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                // Events were lost: something has changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return true,
                Err(_) => return round > 0,
            }
        }
        true
    }
}
