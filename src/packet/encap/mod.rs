//! Tunnel headers around the copies: VXLAN, Geneve, GRE and ERSPAN over IPv4 and IPv6.
//!
//! Only writes and reads bytes; routes, neighbours and sockets are the transmitters'. [`OuterTemplate`]
//! is for the one that sends whole frames (AF_XDP); a raw socket needs [`Tunnel::header`], a UDP socket
//! the tunnel's own header alone. [`decapsulate`] is for the collector and for tests.

mod decapsulate;
pub mod erspan;
pub mod geneve;
pub mod gre;
mod outer;
mod tunnel;
pub mod vxlan;

pub use super::headers::Version as IpVersion;
pub use decapsulate::{decapsulate, Decapsulated, TunnelPorts};
pub use outer::{Marking, OuterAddresses, OuterTemplate, MAX_OUTER};
pub use tunnel::{
    ip_header, Depends, Inner, OuterFields, Signature, Tunnel, MAX_TUNNEL_HEADER, UDP_HEADER,
};

/// First outer UDP source port: above Linux's ephemeral range (32768 to 60999).
pub const FIRST_SOURCE_PORT: u16 = 61000;
/// How many outer source ports are used unless told otherwise.
pub const DEFAULT_SOURCE_PORTS: u16 = 64;
/// How many there are from the first one to 65535.
pub const MAX_SOURCE_PORTS: u16 = u16::MAX - FIRST_SOURCE_PORT + 1;

/// Outer UDP source port for a flow, of `ports` ports; a number beyond 1..=[`MAX_SOURCE_PORTS`] counts
/// as the nearest possible.
#[inline]
pub const fn source_port(flow_hash: u32, ports: u16) -> u16 {
    let ports = match ports {
        0 => 1,
        MAX_SOURCE_PORTS.. => MAX_SOURCE_PORTS,
        ports => ports,
    };
    FIRST_SOURCE_PORT + (flow_hash % ports as u32) as u16
}

#[cfg(test)]
mod tests;
