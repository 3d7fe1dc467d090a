//! A UDP sender for benchmarks: one packet a system call, from one CPU, as fast as it goes.
//!
//! `flood ADDRESS:PORT PAYLOAD_BYTES SECONDS` prints `packets nanoseconds`. Used by `perf/tap_cost.py` in
//! network namespaces; bounded in time.

use std::net::UdpSocket;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match flood(&arguments) {
        Ok((packets, elapsed)) => {
            println!("{packets} {}", elapsed.as_nanos());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("flood: {error} (flood ADDRESS:PORT PAYLOAD_BYTES SECONDS)");
            ExitCode::from(2)
        }
    }
}

fn flood(arguments: &[String]) -> Result<(u64, Duration), Box<dyn std::error::Error>> {
    let [target, payload, seconds] = arguments else {
        return Err("three arguments are needed".into());
    };
    let payload = vec![0x55; payload.parse()?];
    let limit = Duration::from_secs_f64(seconds.parse()?);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target)?;
    let start = Instant::now();
    let mut packets = 0;
    loop {
        for _ in 0..64 {
            // A refused datagram (an ICMP error came back) is no packet; the next one is.
            packets += u64::from(socket.send(&payload).is_ok());
        }
        let elapsed = start.elapsed();
        if elapsed >= limit {
            return Ok((packets, elapsed));
        }
    }
}
