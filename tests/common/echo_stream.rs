//! Numbered datagrams from the client to the instance and back, at a steady rate or as fast as they go:
//! each must arrive and each echo must come back, in order, whatever happens to the mirror.
#![allow(dead_code)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::production::{bind, Production, CLIENT_V4, INSTANCE_V4};

const CLIENT_PORT: u16 = 7102;
const INSTANCE_PORT: u16 = 7101;
/// Holds more than any test sends: a receiver that gets no CPU loses nothing.
const RECEIVE_BUFFER: libc::c_int = 1 << 30;
/// How long the receivers wait for stragglers.
const IDLE: Duration = Duration::from_millis(200);

/// A running stream.
#[derive(Debug)]
pub struct EchoStream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    echo: JoinHandle<Vec<u64>>,
    receiver: JoinHandle<Vec<u64>>,
}

/// What went over the wire.
#[derive(Clone, Debug)]
pub struct Passed {
    pub sent: u64,
    /// Numbers that came to the instance, and numbers that came back, in order of arrival.
    pub arrived: Vec<u64>,
    pub returned: Vec<u64>,
}

impl EchoStream {
    /// Sends `size` bytes every `interval`; without one as fast as it goes.
    pub fn start(production: &Production, size: usize, interval: Option<Duration>) -> EchoStream {
        let client = bind(&production.client, CLIENT_V4, CLIENT_PORT);
        let instance = bind(&production.instance, INSTANCE_V4, INSTANCE_PORT);
        for (socket, peer) in [
            (&client, (INSTANCE_V4, INSTANCE_PORT)),
            (&instance, (CLIENT_V4, CLIENT_PORT)),
        ] {
            socket.connect(peer).expect("connect");
            socket.set_read_timeout(Some(IDLE)).expect("read timeout");
            hold_everything(socket);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let returning = client.try_clone().expect("duplicate a socket");
        let echo = {
            let stop = stop.clone();
            std::thread::spawn(move || receive(&instance, size, &stop, true))
        };
        let receiver = {
            let stop = stop.clone();
            std::thread::spawn(move || receive(&returning, size, &stop, false))
        };
        let sender = {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::spawn(move || send(&client, size, interval, &stop, &sent))
        };
        EchoStream {
            stop,
            sent,
            sender,
            echo,
            receiver,
        }
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Returns once `count` more datagrams were sent.
    pub fn go_on(&self, count: u64) {
        let end = Instant::now() + Duration::from_secs(20);
        let goal = self.sent() + count;
        while self.sent() < goal {
            assert!(Instant::now() < end, "the sender stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops sending and waits for what is under way.
    pub fn stop(self) -> Passed {
        self.stop.store(true, Ordering::Release);
        self.sender.join().expect("sender");
        Passed {
            sent: self.sent.load(Ordering::Acquire),
            arrived: self.echo.join().expect("echo"),
            returned: self.receiver.join().expect("receiver"),
        }
    }
}

impl Passed {
    /// Asserts that production lost, doubled and reordered nothing.
    pub fn assert_nothing_lost(&self) {
        for (what, numbers) in [("to", &self.arrived), ("from", &self.returned)] {
            let wrong = (0..)
                .zip(numbers)
                .find(|(expected, &number)| *expected != number);
            assert!(
                numbers.len() as u64 == self.sent && wrong.is_none(),
                "production is harmed: {} of {} came {what} the instance; expected and found: {wrong:?}",
                numbers.len(),
                self.sent
            );
        }
    }
}

fn hold_everything(socket: &UdpSocket) {
    // SAFETY: the value is a c_int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&RECEIVE_BUFFER).cast(),
            std::mem::size_of::<libc::c_int>() as u32,
        )
    };
    assert_eq!(result, 0, "SO_RCVBUFFORCE: {}", io::Error::last_os_error());
}

fn send(
    socket: &UdpSocket,
    size: usize,
    interval: Option<Duration>,
    stop: &AtomicBool,
    sent: &AtomicU64,
) {
    let mut payload = vec![0x55; size];
    let start = Instant::now();
    for number in 0u64.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        if let Some(interval) = interval {
            let due = interval * u32::try_from(number).expect("a short test");
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        payload[..8].copy_from_slice(&number.to_be_bytes());
        let length = socket.send(&payload).expect("send");
        assert_eq!(length, size);
        sent.store(number + 1, Ordering::Release);
    }
}

/// Reads until the sender has stopped and nothing came for a while; sends each back if it is an echo.
fn receive(socket: &UdpSocket, size: usize, stop: &AtomicBool, echo: bool) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut buffer = [0; 2000];
    loop {
        let stopped = stop.load(Ordering::Acquire);
        match socket.recv(&mut buffer) {
            Ok(length) => {
                assert_eq!(length, size, "a datagram of another size");
                let number = buffer[..8].try_into().expect("8 bytes");
                numbers.push(u64::from_be_bytes(number));
                if echo {
                    socket.send(&buffer[..length]).expect("echo");
                }
            }
            Err(_) if stopped => return numbers,
            Err(_) => {}
        }
    }
}
