//! AF_XDP: one memory of frames ([`Umem`]), their owners ([`Pool`]) and the sockets that
//! exchange them with the kernel ([`RxPort`], [`TxPort`]).
//!
//! This is the only module that names `xsk_rs`. It must not know what is in a frame, decide
//! anything about it, or log; opening and closing may block, the rest never blocks, allocates
//! or locks. `source` receives here and `transmit` sends here; `control` opens the ports, puts
//! their descriptors into the XSKMAP and reads the statistics.
//!
//! A frame is at every moment in exactly one hand: a pool, a token ([`FreeFrame`],
//! [`ReceivedFrame`], [`ToSendFrame`]; they cannot be copied), or the kernel, where the port that
//! gave it away keeps it booked. [`Umem::balance`] shows that nothing went missing.

pub mod error;
pub mod frame;
pub mod pool;
pub mod port;
pub mod stats;
pub mod umem;

mod descriptor;
mod gather;
mod held;
mod socket;

pub use error::XskError;
pub use frame::{lost_frames, FreeFrame, ReceivedFrame, ToSendFrame};
pub use pool::Pool;
pub use port::{open_both, Kick, Refused, RxPort, TxPort};
pub use socket::{BusyPoll, Mode, Obtained, PortConfig};
pub use stats::Statistics;
pub use umem::{Balance, Umem, UmemConfig, FRAME_SIZE};
