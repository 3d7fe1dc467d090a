//! What the transmitters that write tunnel headers themselves share: the fields that differ from packet to
//! packet, sequence numbers, and UTC for time stamps.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use crate::packet::encap::{erspan, source_port, Depends, Inner, OuterFields, Tunnel};
use crate::packet::headers::LinkHeader;
use crate::reason::Reason;
use crate::source::Capture;

/// The sequence numbers of one tunnel (RFC 2890 section 2.2: the first is 0).
///
/// Shared by all workers that send with the same key or session to the same target: a number belongs to
/// one packet, and one that is missing at the receiver is a loss. Between workers the order of numbers is
/// not the order on the wire; a flow has one worker, so within a flow it is.
#[derive(Clone, Debug, Default)]
pub struct Sequence(Arc<AtomicU32>);

impl Sequence {
    /// The next number.
    #[inline]
    fn take(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The packet with this number was not sent. If another worker has taken the next one meanwhile, the
    /// number stays missing, as that of a packet that we dropped.
    #[inline]
    fn give_back(&self, number: u32) {
        let next = number.wrapping_add(1);
        // Refused: somebody took the next number.
        let _ = self
            .0
            .compare_exchange(next, number, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// What to add to CLOCK_MONOTONIC to get UTC, in nanoseconds. Written by control, which follows the
/// steps of the host's clock; read by the workers.
#[derive(Clone, Debug, Default)]
pub struct UtcOffset(Arc<AtomicU64>);

impl UtcOffset {
    /// Replaces the offset.
    pub fn set(&self, nanoseconds: u64) {
        self.0.store(nanoseconds, Ordering::Relaxed);
    }

    /// UTC, nanoseconds since 1970, of a time of CLOCK_MONOTONIC.
    #[inline]
    pub(super) fn utc(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.wrapping_add(self.0.load(Ordering::Relaxed))
    }
}

/// Knows the fields of one target's headers.
#[derive(Clone, Debug)]
pub struct Wrapping {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Number of outer UDP source ports.
    pub source_ports: u16,
    /// Its sequence numbers, if it has any.
    pub sequence: Sequence,
    /// For the time stamps of ERSPAN III.
    pub utc: UtcOffset,
}

/// The fields of one packet's headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wrapped {
    /// For the template.
    pub fields: OuterFields,
    /// Bytes at the packet's front that are not carried.
    pub skip: usize,
}

impl Wrapping {
    /// Everything but the sequence number.
    ///
    /// # Errors
    /// [`Reason::NotIp`]: the tunnel cannot carry this packet.
    #[inline]
    pub(super) fn wrap(
        &self,
        flow_hash: u32,
        link: impl FnOnce() -> LinkHeader,
        capture: impl FnOnce() -> Capture,
    ) -> Result<Wrapped, Reason> {
        let mut fields = OuterFields {
            source_port: source_port(flow_hash, self.source_ports),
            // DF is set, so the ID is never used for reassembly (RFC 6864 section 4.1).
            identification: 0,
            // Equal paths would bring numbered packets out of order.
            flow_label: if self.tunnel.is_numbered() {
                0
            } else {
                flow_hash
            },
            ..OuterFields::default()
        };
        let depends = self.tunnel.depends();
        if depends == Depends::Nothing {
            return Ok(Wrapped { fields, skip: 0 });
        }
        let link = link();
        fields.ethertype = link.ethertype;
        fields.tci = link.tci;
        if depends == Depends::Capture {
            let capture = capture();
            fields.timestamp = erspan::timestamp(self.utc.utc(capture.timestamp_ns));
            fields.direction = capture.direction;
        }
        if self.tunnel.inner() == Inner::Ip && !link.is_ip() {
            return Err(Reason::NotIp);
        }
        Ok(Wrapped {
            fields,
            skip: self.tunnel.stripped(link.length),
        })
    }

    /// Gives the packet its number: the last thing before it is sent.
    #[inline]
    pub(super) fn number(&self, fields: &mut OuterFields) {
        if self.tunnel.is_numbered() {
            fields.sequence = self.sequence.take();
        }
    }

    /// The packet was not sent after all.
    #[inline]
    pub(super) fn unnumber(&self, fields: &OuterFields) {
        if self.tunnel.is_numbered() {
            self.sequence.give_back(fields.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_once_and_given_back_unless_another_has_gone_on() {
        let one = Sequence::default();
        let other = one.clone();
        assert_eq!((one.take(), other.take(), one.take()), (0, 1, 2));
        one.give_back(2);
        assert_eq!(other.take(), 2);
        let mine = one.take();
        let theirs = other.take();
        one.give_back(mine);
        assert_eq!(
            one.take(),
            theirs + 1,
            "a number in use is never given out again"
        );
        let last = Sequence::default();
        last.0.store(u32::MAX, Ordering::Relaxed);
        assert_eq!((last.take(), last.take()), (u32::MAX, 0));
        last.give_back(0);
        assert_eq!(last.take(), 0);
    }

    #[test]
    fn numbers_of_many_workers_are_all_different_and_none_is_missing() {
        let sequence = Sequence::default();
        let take = |count: usize| {
            let sequence = sequence.clone();
            std::thread::spawn(move || (0..count).map(|_| sequence.take()).collect::<Vec<_>>())
        };
        let workers: Vec<_> = (0..4).map(|_| take(10_000)).collect();
        let mut all = Vec::new();
        for worker in workers {
            let numbers = worker.join().unwrap();
            assert!(
                numbers.windows(2).all(|pair| pair[0] < pair[1]),
                "order of a worker"
            );
            all.extend(numbers);
        }
        all.sort_unstable();
        assert!(all.into_iter().eq(0..40_000));
    }

    #[test]
    fn only_ip_goes_where_only_ip_can() {
        let wrapping = |inner| Wrapping {
            tunnel: Tunnel::Gre {
                key: None,
                sequence: false,
                inner,
            },
            source_ports: 1,
            sequence: Sequence::default(),
            utc: UtcOffset::default(),
        };
        let arp = || LinkHeader {
            ethertype: 0x0806,
            tci: None,
            length: 14,
        };
        let tagged = || LinkHeader {
            ethertype: 0x86dd,
            tci: Some(5),
            length: 18,
        };
        let ip = wrapping(Inner::Ip);
        assert_eq!(
            ip.wrap(1, arp, Capture::default).unwrap_err(),
            Reason::NotIp
        );
        let found = ip.wrap(1, tagged, Capture::default).unwrap();
        assert_eq!((found.skip, found.fields.ethertype), (18, 0x86dd));
        let all = wrapping(Inner::Ethernet);
        assert_eq!(all.wrap(1, arp, Capture::default).unwrap().skip, 0);
    }
}
