//! A reader of pcapng captures that follows the draft's text, to judge what xtee writes.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::common::netns::run;

pub type Options = BTreeMap<u16, Vec<u8>>;

/// A packet of a capture.
#[derive(Clone, Debug)]
pub struct Packet {
    pub interface: u32,
    /// Nanoseconds since 1970, if the interface counts nanoseconds.
    pub time: u64,
    pub original_length: u32,
    pub bytes: Vec<u8>,
    pub options: Options,
}

impl Packet {
    /// epb_flags, bits 0 and 1.
    pub fn direction(&self) -> &'static str {
        match u32::from_le_bytes(self.options[&2][..].try_into().unwrap()) & 3 {
            1 => "in",
            2 => "out",
            other => panic!("direction {other}"),
        }
    }
}

/// A whole capture.
#[derive(Clone, Debug, Default)]
pub struct CaptureFile {
    /// Link type and options of each interface.
    pub interfaces: Vec<(u16, Options)>,
    pub packets: Vec<Packet>,
    /// Interface and options of each statistics block.
    pub statistics: Vec<(u32, Options)>,
}

impl CaptureFile {
    /// Reads a capture of whole blocks; panics at anything that is not as it must be.
    pub fn parse(bytes: &[u8]) -> CaptureFile {
        let (file, rest) = CaptureFile::parse_whole(bytes);
        assert_eq!(rest, 0, "the capture ends within a block");
        file
    }

    /// Reads the whole blocks at the front; returns how many bytes follow.
    pub fn parse_whole(bytes: &[u8]) -> (CaptureFile, usize) {
        let mut file = CaptureFile::default();
        let mut rest = bytes;
        while rest.len() >= 12 {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let length = word(4) as usize;
            assert!(length >= 12 && length % 4 == 0, "a block of {length} bytes");
            if length > rest.len() {
                break;
            }
            assert_eq!(word(length - 4) as usize, length);
            let first = rest.len() == bytes.len();
            assert_eq!(
                word(0) == 0x0a0d_0d0a,
                first,
                "one section header, at the start"
            );
            let body = &rest[8..length - 4];
            match word(0) {
                0x0a0d_0d0a => assert_eq!(body[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]),
                1 => {
                    let link = u16::from_le_bytes(body[..2].try_into().unwrap());
                    let options = options(&body[8..]);
                    assert_eq!(options[&9], [9], "nanoseconds");
                    file.interfaces.push((link, options));
                }
                5 => file.statistics.push((word(8), options(&body[12..]))),
                6 => {
                    let captured = word(20) as usize;
                    assert!((word(8) as usize) < file.interfaces.len());
                    file.packets.push(Packet {
                        interface: word(8),
                        time: u64::from(word(12)) << 32 | u64::from(word(16)),
                        original_length: word(24),
                        bytes: body[20..20 + captured].to_vec(),
                        options: options(&body[20 + captured.next_multiple_of(4)..]),
                    });
                }
                other => panic!("a block of type {other:#x}"),
            }
            rest = &rest[length..];
        }
        (file, rest.len())
    }

    /// A number of the only statistics block of an interface, by option code.
    pub fn statistic(&self, interface: u32, code: u16) -> u64 {
        let mut of = self
            .statistics
            .iter()
            .filter(|(number, _)| *number == interface);
        let (_, options) = of.next().expect("statistics of the interface");
        assert!(of.next().is_none(), "statistics once");
        u64::from_le_bytes(options[&code][..].try_into().unwrap())
    }
}

fn options(mut rest: &[u8]) -> Options {
    let mut found = Options::new();
    loop {
        let half = |at: usize| u16::from_le_bytes(rest[at..at + 2].try_into().unwrap());
        let (code, length) = (half(0), usize::from(half(2)));
        if code == 0 {
            assert_eq!((length, rest.len()), (0, 4));
            return found;
        }
        found.insert(code, rest[4..4 + length].to_vec());
        rest = &rest[4 + length.next_multiple_of(4)..];
    }
}

/// What tshark prints of these fields, a line a packet. Panics when it complains about the file.
pub fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let text = run(&mut command);
    let line = |line: &str| line.split('\t').map(str::to_owned).collect();
    text.lines().map(line).collect()
}
