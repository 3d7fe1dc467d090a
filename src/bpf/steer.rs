//! The steering program of one span interface: load, rules, sockets, attach to XDP.
//!
//! Control plane. What a full socket dropped is not counted here but by the socket (XDP_STATISTICS).

use std::os::fd::{AsRawFd, BorrowedFd};

use libbpf_rs::{MapCore as _, MapFlags, MapHandle, Object};

use super::attach::{self, Attachment, Hook};
use super::counters::CounterReader;
use super::error::Error;
use super::needs::Needs;
use super::object;
use super::own_flows::ControlWords;
use super::policy::{bytes_of, from_bytes, PolicyMaps};
use super::skel::{Counters, SteerSettings, STEER_OBJECT};
use crate::mirror::tables::Tables;

const NAME: &str = "steer";

/// A loaded steering program.
pub struct Steer {
    object: Object,
    counters: CounterReader,
    sockets: MapHandle,
    policy: PolicyMaps,
    words: ControlWords,
    hold: Option<Attachment>,
    needs: Needs,
}

impl std::fmt::Debug for Steer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Steer")
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

impl Steer {
    /// Loads the program. `room`: bytes that it makes in front of each frame for the outer header.
    /// `needs`: what rule sets that are published later may ask for.
    ///
    /// # Errors
    /// The verifier or the kernel's limits.
    pub fn load(room: u32, needs: Needs) -> Result<Steer, Error> {
        // A kernel before 5.18 refuses a program with fragments.
        Steer::load_with(room, needs, true).or_else(|_| Steer::load_with(room, needs, false))
    }

    fn load_with(room: u32, needs: Needs, fragments: bool) -> Result<Steer, Error> {
        let mut open = object::open(NAME, STEER_OBJECT)?;
        if !fragments {
            object::without_fragments(&mut open);
        }
        needs.set_streams(NAME, &mut open)?;
        object::set_settings(NAME, &mut open, |bytes| {
            if let Some(mut settings) = from_bytes::<SteerSettings>(bytes) {
                settings.room = room;
                settings.notes = u32::from(needs.snaplen);
                settings.multi_buffer = u8::from(fragments);
                let source = bytes_of(&settings);
                bytes[..source.len()].copy_from_slice(source);
            }
        })?;
        let object = object::load(NAME, open)?;
        Ok(Steer {
            counters: CounterReader::new(object::map(NAME, &object, "counters")?),
            sockets: object::map(NAME, &object, "sockets")?,
            policy: PolicyMaps::of(NAME, &object)?,
            words: ControlWords::map(&object::map(NAME, &object, ".bss")?)?,
            hold: None,
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

    /// Attaches by an XDP link.
    ///
    /// # Errors
    /// EBUSY where another program is attached, EOPNOTSUPP where the driver has no native XDP.
    pub fn attach(&mut self, ifindex: u32, interface: &str, native: bool) -> Result<(), Error> {
        let hook = if native {
            Hook::XdpNative
        } else {
            Hook::XdpGeneric
        };
        self.hold = Some(attach::attach(self.program()?, ifindex, interface, hook)?);
        Ok(())
    }

    /// The hook that holds the program now.
    #[must_use]
    pub fn hook(&self) -> Option<Hook> {
        self.hold.as_ref().map(|hold| hold.hook)
    }

    /// Whether the program is on an interface that is still there.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.hold.as_ref().is_some_and(Attachment::is_attached)
    }

    /// Takes the program off the interface.
    pub fn detach(&mut self) {
        self.hold = None;
    }

    /// From now on the queue's matching frames go to this socket.
    ///
    /// # Errors
    /// A failed map update.
    pub fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.sockets
            .update(
                &queue.to_ne_bytes(),
                &socket.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(Error::map("give the program a socket"))
    }

    /// From now on the queue's frames go to the kernel.
    pub fn clear_socket(&self, queue: u32) {
        // A slot that is empty already is what was asked for.
        let _ = self.sockets.delete(&queue.to_ne_bytes());
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

    /// The program's descriptor, for attaching and for BPF_PROG_TEST_RUN.
    ///
    /// # Errors
    /// The object has no such program.
    pub fn program(&self) -> Result<BorrowedFd<'_>, Error> {
        let raw = object::program_fd(NAME, &self.object, "xtee_steer")?;
        // SAFETY: the object keeps the program's descriptor open for as long as `self` is borrowed.
        Ok(unsafe { BorrowedFd::borrow_raw(raw) })
    }
}
