//! The tap program of one interface: load, rules, rings, attach to ingress and egress.
//!
//! Control plane: made, changed and dropped by the supervisor. A worker gets a ring's descriptor and
//! its sleep flag, nothing else.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType, Object};

use super::attach::{self, Attachment, Hook};
use super::clsact::{self, ClsactAttachment};
use super::counters::CounterReader;
use super::error::Error;
use super::needs::Needs;
use super::object;
use super::own_flows::ControlWords;
use super::policy::{bytes_of, from_bytes, PolicyMaps};
use super::skel::{Counters, OwnFlow, Sleeper, TapSettings, MAX_RINGS, TAP_OBJECT};
use crate::mirror::tables::Tables;
use crate::packet::link::{synthetic_macs, LinkType, MacPair};
use crate::source::mapped::MappedArray;

const NAME: &str = "tap";

/// Which devices a tap can be attached to. Each sort costs the verifier's time at the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// What their packets begin with.
    pub types: Vec<LinkType>,
    /// Addresses of the synthetic Ethernet headers, by direction.
    pub macs: [MacPair; 2],
}

impl Links {
    /// For a source of this name on devices of these types.
    #[must_use]
    pub fn new(source: &str, types: &[LinkType]) -> Links {
        Links {
            types: types.to_vec(),
            macs: synthetic_macs(source),
        }
    }
}

/// What holds the two programs on the hooks of one interface; dropping it takes them off. What clsact
/// holds has to be dropped in the interface's network namespace.
#[derive(Debug)]
pub struct Hold(Way);

#[derive(Debug)]
enum Way {
    Tcx { links: [Attachment; 2] },
    Clsact { _filters: [ClsactAttachment; 2] },
}

impl Hold {
    /// Whether the interface is still there, as far as the hold knows: clsact does not.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        match &self.0 {
            Way::Tcx { links } => links.iter().all(Attachment::is_attached),
            Way::Clsact { .. } => true,
        }
    }
}

/// The two programs of a loaded tap for one sort of devices.
#[derive(Clone, Copy, Debug)]
pub struct TapPrograms<'t> {
    ingress: BorrowedFd<'t>,
    egress: BorrowedFd<'t>,
}

impl TapPrograms<'_> {
    /// Attaches to both directions of an interface of this thread's network namespace by tcx links, first
    /// in the chain.
    ///
    /// # Errors
    /// EINVAL where the kernel has no tcx.
    pub fn attach_tcx(&self, ifindex: u32, interface: &str) -> Result<Hold, Error> {
        let ingress = attach::attach(self.ingress, ifindex, interface, Hook::TcxIngress)?;
        let egress = attach::attach(self.egress, ifindex, interface, Hook::TcxEgress)?;
        let links = [ingress, egress];
        Ok(Hold(Way::Tcx { links }))
    }

    /// The same by clsact, replacing a stale tap.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn attach_clsact(&self, ifindex: u32, interface: &str) -> Result<Hold, Error> {
        let ingress = clsact::attach(self.ingress, ifindex, interface, true)?;
        let egress = clsact::attach(self.egress, ifindex, interface, false)?;
        Ok(Hold(Way::Clsact {
            _filters: [ingress, egress],
        }))
    }

    /// Removes the clsact filters that a killed tap left behind.
    pub fn remove_stale_filters(&self, ifindex: u32) {
        clsact::remove_stale(self.ingress, ifindex);
    }
}

/// A loaded tap.
pub struct Tap {
    object: Object,
    counters: CounterReader,
    rings: Vec<MapHandle>,
    sleepers: MapHandle,
    policy: PolicyMaps,
    words: ControlWords,
    needs: Needs,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tap")
            .field("rings", &self.rings.len())
            .finish_non_exhaustive()
    }
}

impl Tap {
    /// Loads the program with `rings` rings of `ring_size` bytes each (a power of two, whole pages).
    /// `needs`: what rule sets that are published later may ask for.
    ///
    /// # Errors
    /// The verifier or the kernel's limits; the error says which and what helps.
    pub fn load(rings: usize, ring_size: u32, links: &Links, needs: Needs) -> Result<Tap, Error> {
        let rings = rings.clamp(1, MAX_RINGS);
        let mut open = object::open(NAME, TAP_OBJECT)?;
        needs.set_streams(NAME, &mut open)?;
        object::set_settings(NAME, &mut open, |bytes| {
            if let Some(mut settings) = from_bytes::<TapSettings>(bytes) {
                settings.ring_count = u32::try_from(rings).unwrap_or(1);
                settings.synthetic_macs = links.macs.map(words);
                let source = bytes_of(&settings);
                bytes[..source.len()].copy_from_slice(source);
            }
        })?;
        for link in [LinkType::Ethernet, LinkType::Ip] {
            if !links.types.contains(&link) {
                object::leave_out(&mut open, &programs(link));
            }
        }
        let object = object::load(NAME, open)?;
        let ring_array = object::map(NAME, &object, "rings")?;
        let rings = make_rings(&ring_array, rings, ring_size)?;
        let words = ControlWords::map(&object::map(NAME, &object, ".bss")?)?;
        Ok(Tap {
            counters: CounterReader::new(object::map(NAME, &object, "counters")?),
            sleepers: object::map(NAME, &object, "sleepers")?,
            policy: PolicyMaps::of(NAME, &object)?,
            rings,
            words,
            needs,
            object,
        })
    }

    /// Puts a rule set in force.
    ///
    /// # Errors
    /// A failed map operation, or rules that ask for more than the program was loaded with; the old rule set
    /// stays in force.
    pub fn publish(
        &mut self,
        tables: &Tables,
        allow_credential_endpoints: bool,
    ) -> Result<u32, Error> {
        self.needs.check(tables)?;
        self.policy
            .publish(&self.words, tables, allow_credential_endpoints)
    }

    /// Says which outer flows are our own copies.
    ///
    /// # Errors
    /// More flows than fit.
    pub fn set_own_flows(&self, flows: &[OwnFlow]) -> Result<(), Error> {
        self.words.set_own_flows(flows)
    }

    /// The same while the programs run; see [`ControlWords::change_own_flows`].
    ///
    /// # Errors
    /// More flows than fit.
    pub fn change_own_flows(&self, flows: &[OwnFlow]) -> Result<(), Error> {
        self.words.change_own_flows(flows)
    }

    /// The programs for devices whose packets begin with this.
    ///
    /// # Errors
    /// They were not loaded.
    pub fn programs(&self, link: LinkType) -> Result<TapPrograms<'_>, Error> {
        let [ingress, egress] = programs(link);
        Ok(TapPrograms {
            ingress: self.program(ingress)?,
            egress: self.program(egress)?,
        })
    }

    /// A reader of the counters that outlives the program.
    ///
    /// # Errors
    /// The descriptor table is full.
    pub fn counter_reader(&self) -> Result<CounterReader, Error> {
        self.counters.try_clone()
    }

    /// What was counted, summed over the CPUs.
    ///
    /// # Errors
    /// A failed map look-up.
    pub fn counters(&self) -> Result<Counters, Error> {
        self.counters.read()
    }

    /// A ring's descriptor, for its worker.
    ///
    /// # Errors
    /// The descriptor table is full.
    pub fn ring(&self, index: usize) -> Result<OwnedFd, Error> {
        let ring = self.rings.get(index).ok_or_else(|| Error::Map {
            what: "hand out a ring",
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        })?;
        ring.as_fd()
            .try_clone_to_owned()
            .map_err(Error::map_io("duplicate a ring's descriptor"))
    }

    /// The sleep flags, mapped; a ring's flag stands at its index times [`Tap::SLEEPER_SIZE`].
    ///
    /// # Errors
    /// What mmap(2) said.
    pub fn sleepers(&self) -> Result<MappedArray, Error> {
        MappedArray::new(self.sleepers.as_fd(), Self::SLEEPER_SIZE, MAX_RINGS)
            .map_err(Error::map_io("map the sleep flags"))
    }

    /// Bytes between two rings' sleep flags.
    pub const SLEEPER_SIZE: usize = std::mem::size_of::<Sleeper>();

    /// A program's descriptor, for attaching and for BPF_PROG_TEST_RUN.
    ///
    /// # Errors
    /// No such program.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        let raw = object::program_fd(NAME, &self.object, name)?;
        // SAFETY: the object keeps the program's descriptor open for as long as `self` is borrowed.
        Ok(unsafe { BorrowedFd::borrow_raw(raw) })
    }
}

/// The programs of both directions for what a device's packets begin with.
const fn programs(link: LinkType) -> [&'static str; 2] {
    match link {
        LinkType::Ethernet => ["xtee_ingress", "xtee_egress"],
        LinkType::Ip => ["xtee_ingress_ip", "xtee_egress_ip"],
    }
}

/// As the program has them: words of 16 bits in network order.
fn words(pair: MacPair) -> [u16; 6] {
    std::array::from_fn(|word| u16::from_ne_bytes([pair[2 * word], pair[2 * word + 1]]))
}

/// Ring buffers in the configured size, put into the program's array.
fn make_rings(array: &MapHandle, count: usize, size: u32) -> Result<Vec<MapHandle>, Error> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: std::mem::size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..libbpf_sys::bpf_map_create_opts::default()
    };
    let mut rings = Vec::with_capacity(count);
    for index in 0..count {
        let ring = MapHandle::create(MapType::RingBuf, Some("xtee_ring"), 0, 0, size, &options)
            .map_err(Error::map(
                "make a ring (its size is a power of two, at least a page)",
            ))?;
        let key = u32::try_from(index).unwrap_or(0).to_ne_bytes();
        array
            .update(&key, &ring.as_fd().as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .map_err(Error::map("give the program its ring"))?;
        rings.push(ring);
    }
    Ok(rings)
}
