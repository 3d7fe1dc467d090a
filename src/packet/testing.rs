//! Packets for the tests: described field by field, built from scratch with etherparse, slowly.
//!
//! It shares no code with what it tests: lengths and checksums come from etherparse or from a sum byte
//! by byte.

use etherparse::{
    IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader,
};

mod strategies;

pub use strategies::any_spec;

/// An IP header with what follows it up to the next layer.
#[derive(Clone, Debug)]
pub enum IpSpec {
    V4 {
        source: [u8; 4],
        destination: [u8; 4],
        identification: u16,
        dont_fragment: bool,
        /// In units of 4 bytes, at most 10.
        options: u8,
    },
    V6 {
        source: [u8; 16],
        destination: [u8; 16],
        extensions: Vec<Extension>,
    },
}

/// An IPv6 extension header.
#[derive(Clone, Debug)]
pub enum Extension {
    /// Kind and units of 8 bytes beyond the first 8.
    Padding { kind: u8, units: u8 },
    /// A segment routing header with one segment that is still to be visited.
    Route { last: [u8; 16] },
}

#[derive(Clone, Debug)]
pub enum TunnelKind {
    Vxlan { port: u16, checksum: bool },
    Geneve { options: u8, checksum: bool },
    Gre { key: bool, checksum: bool },
    GreIp,
    IpInIp,
}

#[derive(Clone, Debug)]
pub struct TunnelSpec {
    pub kind: TunnelKind,
    pub outer: IpSpec,
    pub inner_tag: Option<(u16, u16)>,
}

#[derive(Clone, Debug)]
pub enum TransportSpec {
    Tcp {
        sequence: u32,
        flags: u8,
        urgent: u16,
        /// In units of 4 bytes, at most 10.
        options: u8,
    },
    Udp {
        checksum: bool,
    },
}

/// A whole packet. Tags: protocol and control information, outermost first.
#[derive(Clone, Debug)]
pub struct Spec {
    pub tags: Vec<(u16, u16)>,
    pub tunnel: Option<TunnelSpec>,
    pub ip: IpSpec,
    pub transport: TransportSpec,
    pub ports: (u16, u16),
    pub payload: Vec<u8>,
}

/// A built packet and where things are in it.
pub struct Built {
    pub bytes: Vec<u8>,
    pub transport: usize,
    pub payload: usize,
}

/// RFC 1071 as it is written there, word by word.
pub fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u32::from(low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl IpSpec {
    fn ethertype(&self) -> u16 {
        match self {
            IpSpec::V4 { .. } => 0x0800,
            IpSpec::V6 { .. } => 0x86dd,
        }
    }

    fn protocol_in_ip(&self) -> u8 {
        match self {
            IpSpec::V4 { .. } => 4,
            IpSpec::V6 { .. } => 41,
        }
    }

    /// Puts the IP header before `payload`.
    fn wrap(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self {
            IpSpec::V4 {
                source,
                destination,
                identification,
                dont_fragment,
                options,
            } => {
                let mut header =
                    Ipv4Header::new(0, 64, IpNumber(protocol), *source, *destination).unwrap();
                let options = vec![1u8; usize::from(*options) * 4];
                header.options = Ipv4Options::try_from(options.as_slice()).unwrap();
                header.set_payload_len(payload.len()).unwrap();
                header.identification = *identification;
                header.dont_fragment = *dont_fragment;
                header.header_checksum = header.calc_header_checksum();
                [header.to_bytes().as_slice(), payload].concat()
            }
            IpSpec::V6 {
                source,
                destination,
                extensions,
            } => {
                let mut next = protocol;
                let mut body = payload.to_vec();
                for extension in extensions.iter().rev() {
                    let (kind, bytes) = extension.build(next);
                    body.splice(0..0, bytes);
                    next = kind;
                }
                let header = Ipv6Header {
                    traffic_class: 3,
                    flow_label: Ipv6FlowLabel::try_new(0x12345).unwrap(),
                    payload_length: body.len().try_into().unwrap(),
                    next_header: IpNumber(next),
                    hop_limit: 61,
                    source: *source,
                    destination: *destination,
                };
                [header.to_bytes().as_slice(), &body].concat()
            }
        }
    }

    /// Destination address that the transport's checksum covers.
    fn final_destination(&self) -> Vec<u8> {
        match self {
            IpSpec::V4 { destination, .. } => destination.to_vec(),
            IpSpec::V6 {
                destination,
                extensions,
                ..
            } => {
                let mut last = *destination;
                for extension in extensions {
                    if let Extension::Route { last: visited } = extension {
                        last = *visited;
                    }
                }
                last.to_vec()
            }
        }
    }

    fn source(&self) -> Vec<u8> {
        match self {
            IpSpec::V4 { source, .. } => source.to_vec(),
            IpSpec::V6 { source, .. } => source.to_vec(),
        }
    }

    /// The sum of the pseudo-header, as an unfinished field holds it.
    pub fn pseudo(&self, protocol: u8, length: usize) -> u16 {
        let mut bytes = self.source();
        bytes.extend(self.final_destination());
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend([0, protocol]);
        slow_sum(&bytes)
    }

    fn count(&mut self, index: usize) {
        if let IpSpec::V4 { identification, .. } = self {
            *identification = identification.wrapping_add(index as u16);
        }
    }
}

impl Extension {
    fn build(&self, next: u8) -> (u8, Vec<u8>) {
        match self {
            Extension::Padding { kind, units } => {
                let length = usize::from(*units) * 8 + 4;
                let mut bytes = vec![next, *units, 1, length as u8];
                bytes.resize(length + 4, 0);
                (*kind, bytes)
            }
            Extension::Route { last } => {
                let mut bytes = vec![next, 2, 4, 1, 0, 0, 0, 0];
                bytes.extend(last);
                (43, bytes)
            }
        }
    }
}

impl Spec {
    pub fn protocol(&self) -> u8 {
        match self.transport {
            TransportSpec::Tcp { .. } => 6,
            TransportSpec::Udp { .. } => 17,
        }
    }

    /// The packet, every length and checksum right.
    pub fn build(&self) -> Built {
        let (header, segment) = self.build_transport();
        let inner = self.ip.wrap(self.protocol(), &segment);
        let (ethertype, packet) = match &self.tunnel {
            None => (self.ip.ethertype(), inner),
            Some(tunnel) => (tunnel.outer.ethertype(), tunnel.wrap(&self.ip, &inner)),
        };
        let bytes = ethernet(&self.tags, ethertype, &packet);
        Built {
            transport: bytes.len() - segment.len(),
            payload: bytes.len() - segment.len() + header,
            bytes,
        }
    }

    fn build_transport(&self) -> (usize, Vec<u8>) {
        let source = self.ip.source();
        let destination = self.ip.final_destination();
        match self.transport {
            TransportSpec::Tcp {
                sequence,
                flags,
                urgent,
                options,
            } => {
                let mut tcp = TcpHeader::new(self.ports.0, self.ports.1, sequence, 0x1234);
                tcp.acknowledgment_number = 0x0bad_cafe;
                tcp.urgent_pointer = urgent;
                tcp.fin = flags & 0x01 != 0;
                tcp.psh = flags & 0x08 != 0;
                tcp.ack = true;
                tcp.urg = flags & 0x20 != 0;
                tcp.ece = flags & 0x40 != 0;
                tcp.cwr = flags & 0x80 != 0;
                tcp.set_options_raw(&vec![1; usize::from(options) * 4])
                    .unwrap();
                tcp.checksum = match (source.len(), &self.payload) {
                    (4, payload) => tcp.calc_checksum_ipv4_raw(
                        source.try_into().unwrap(),
                        destination.try_into().unwrap(),
                        payload,
                    ),
                    (_, payload) => tcp.calc_checksum_ipv6_raw(
                        source.try_into().unwrap(),
                        destination.try_into().unwrap(),
                        payload,
                    ),
                }
                .unwrap();
                let header = tcp.to_bytes();
                (header.len(), [header.as_slice(), &self.payload].concat())
            }
            TransportSpec::Udp { checksum } => (
                8,
                udp(&source, &destination, self.ports, checksum, &self.payload),
            ),
        }
    }

    /// What must be on the wire as packet `index` of `count` of this super-packet.
    pub fn piece(&self, index: usize, count: usize, gso_size: usize) -> Spec {
        let mut piece = self.clone();
        let start = index * gso_size;
        let end = self.payload.len().min(start + gso_size);
        piece.payload = self.payload[start..end].to_vec();
        piece.ip.count(index);
        if let Some(tunnel) = &mut piece.tunnel {
            tunnel.outer.count(index);
        }
        if let TransportSpec::Tcp {
            sequence, flags, ..
        } = &mut piece.transport
        {
            *sequence = sequence.wrapping_add(start as u32);
            if index > 0 {
                *flags &= !0x80;
            }
            if index + 1 < count {
                *flags &= !0x09;
            }
        }
        piece
    }

    /// Place of the checksum in the transport header.
    pub fn checksum_offset(&self) -> usize {
        match self.transport {
            TransportSpec::Tcp { .. } => 16,
            TransportSpec::Udp { .. } => 6,
        }
    }

    /// The packet as Linux leaves it to a NIC: the checksum field holds the pseudo-header's sum.
    pub fn build_unfinished(&self) -> Built {
        let mut built = self.build();
        let length = built.bytes.len() - built.transport;
        let pseudo = self.ip.pseudo(self.protocol(), length);
        let at = built.transport + self.checksum_offset();
        built.bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        built
    }
}

impl TunnelSpec {
    fn udp_payload(&self, ip: &IpSpec, inner: &[u8]) -> Vec<u8> {
        let tags: Vec<_> = self.inner_tag.into_iter().collect();
        let frame = ethernet(&tags, ip.ethertype(), inner);
        let header = match self.kind {
            TunnelKind::Geneve { options, .. } => {
                let mut header = vec![options, 0, 0x65, 0x58, 0, 0, 7, 0];
                header.resize(8 + usize::from(options) * 4, 0x5a);
                header
            }
            _ => vec![8, 0, 0, 0, 0, 0, 7, 0],
        };
        [header, frame].concat()
    }

    fn wrap(&self, ip: &IpSpec, inner: &[u8]) -> Vec<u8> {
        match self.kind {
            TunnelKind::Vxlan { port, checksum } => self.wrap_udp(ip, inner, port, checksum),
            TunnelKind::Geneve { checksum, .. } => self.wrap_udp(ip, inner, 6081, checksum),
            TunnelKind::Gre { key, checksum } => {
                let tags: Vec<_> = self.inner_tag.into_iter().collect();
                let mut packet = vec![0, 0, 0x65, 0x58];
                if checksum {
                    packet[0] |= 0x80;
                    packet.extend([0; 4]);
                }
                if key {
                    packet[0] |= 0x20;
                    packet.extend([0, 0, 0, 9]);
                }
                packet.extend(ethernet(&tags, ip.ethertype(), inner));
                if checksum {
                    let sum = !slow_sum(&packet);
                    packet[4..6].copy_from_slice(&sum.to_be_bytes());
                }
                self.outer.wrap(47, &packet)
            }
            TunnelKind::GreIp => {
                let mut packet = vec![0, 0];
                packet.extend(ip.ethertype().to_be_bytes());
                packet.extend(inner);
                self.outer.wrap(47, &packet)
            }
            TunnelKind::IpInIp => self.outer.wrap(ip.protocol_in_ip(), inner),
        }
    }

    fn wrap_udp(&self, ip: &IpSpec, inner: &[u8], port: u16, checksum: bool) -> Vec<u8> {
        let datagram = udp(
            &self.outer.source(),
            &self.outer.final_destination(),
            (61007, port),
            checksum,
            &self.udp_payload(ip, inner),
        );
        self.outer.wrap(17, &datagram)
    }
}

fn udp(
    source: &[u8],
    destination: &[u8],
    ports: (u16, u16),
    checksum: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = UdpHeader {
        source_port: ports.0,
        destination_port: ports.1,
        length: (8 + payload.len()).try_into().unwrap(),
        checksum: 0,
    };
    if checksum {
        header.checksum = match source.len() {
            4 => header.calc_checksum_ipv4_raw(
                source.try_into().unwrap(),
                destination.try_into().unwrap(),
                payload,
            ),
            _ => header.calc_checksum_ipv6_raw(
                source.try_into().unwrap(),
                destination.try_into().unwrap(),
                payload,
            ),
        }
        .unwrap();
    }
    [header.to_bytes().as_slice(), payload].concat()
}

/// An Ethernet frame around `packet`.
pub fn ethernet(tags: &[(u16, u16)], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (protocol, tci) in tags {
        frame.extend(protocol.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}
