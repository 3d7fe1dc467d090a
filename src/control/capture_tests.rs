//! The writer against files, pipes and a device that is always full.

use std::io::Read as _;
use std::os::fd::FromRawFd as _;

use super::*;
use crate::packet::pcapng::whole_blocks;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("xtee-capture-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

fn interfaces() -> Vec<CapturedInterface> {
    vec![CapturedInterface {
        interface: "eth0".to_owned(),
        source: "tap:eth0".to_owned(),
    }]
}

/// One block of a packet of so many bytes.
fn block(size: usize) -> Vec<u8> {
    let info = pcapng::PacketInfo {
        interface: 0,
        time_ns: 1,
        original_length: size as u32,
        direction: crate::packet::Direction::In,
        lost: 0,
    };
    let mut out = vec![0; pcapng::packet_length(size, false)];
    pcapng::write_packet(&mut out, &info, size, |bytes| Some(bytes.len())).expect("a block");
    out
}

/// Both ends of a pipe: read, write (not waiting).
fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    // SAFETY: new descriptors that nobody else owns.
    ends.map(|end| unsafe { File::from_raw_fd(end) }).into()
}

fn stream(file: File) -> Output {
    Output {
        file,
        ordinary: false,
        good: 0,
        ended: false,
    }
}

#[test]
fn a_capture_that_came_to_nothing_leaves_no_file_and_content_is_not_touched() {
    let folder = folder("files");
    let path = folder.join("a.pcapng");
    let open = OpenCapture::open(&SinkKind::File(path.clone()), &interfaces()).expect("open");
    let head = std::fs::read(&path).expect("the head is there at once");
    assert_eq!(whole_blocks(&head), (2, head.len()));
    drop(open);
    assert!(!path.exists());

    std::fs::write(&path, "precious").expect("write");
    let error = OpenCapture::open(&SinkKind::File(path.clone()), &interfaces()).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error:#}");
    assert_eq!(std::fs::read(&path).expect("read"), b"precious");
    let open = OpenCapture::open(&SinkKind::File("/dev/full".into()), &interfaces());
    let error = format!("{:#}", open.unwrap_err());
    assert!(error.contains("pcap:/dev/full"), "{error}");
    std::fs::remove_dir_all(folder).expect("remove");
}

#[test]
fn a_running_capture_without_a_packet_leaves_no_file_unless_it_ends_in_order() {
    let folder = folder("running");
    let path = folder.join("a.pcapng");
    let start = || {
        OpenCapture::open(&SinkKind::File(path.clone()), &interfaces())
            .expect("open")
            .start(Vec::new(), Arc::default())
            .expect("start")
    };
    drop(start());
    assert!(!path.exists());
    let mut running = start();
    running.finish(vec![FinalCounts::default()]);
    drop(running);
    let bytes = std::fs::read(&path).expect("the file");
    assert_eq!(whole_blocks(&bytes), (3, bytes.len()), "statistics follow");
    std::fs::remove_dir_all(folder).expect("remove");
}

#[test]
fn a_torn_block_is_cut_off_a_file() {
    let folder = folder("torn");
    let path = folder.join("a.pcapng");
    let file = File::create(&path).expect("create");
    let mut output = Output {
        file,
        ordinary: true,
        ..stream(File::open("/dev/null").expect("open"))
    };
    let good = block(100);
    assert!(output.write(&good, &|| false).error.is_none());
    // As a full disk does it: a part is written, then there is an error.
    output.file.write_all(&good[..50]).expect("write");
    output.mend(true);
    assert!(!output.ended);
    let written = output.write(&good, &|| false);
    assert_eq!((written.blocks, written.bytes), (1, good.len()));
    let bytes = std::fs::read(&path).expect("read");
    assert_eq!(whole_blocks(&bytes), (2, 2 * good.len()));
    assert_eq!(bytes.len(), 2 * good.len());
    std::fs::remove_dir_all(folder).expect("remove");
}

#[test]
fn a_stuck_reader_is_given_up_with_what_it_got_and_nothing_follows_a_torn_block() {
    let (mut reader, writer) = pipe();
    let mut output = stream(writer);
    let blocks: Vec<u8> = (0..200).flat_map(|_| block(1000)).collect();
    let written = output.write(&blocks, &|| true);
    assert_eq!(
        written.error.map(|error| error.kind()),
        Some(io::ErrorKind::WouldBlock)
    );
    assert!(
        output.ended,
        "a pipe of 64 KiB holds no whole number of blocks"
    );
    let mut got = vec![0; blocks.len()];
    let count = reader.read(&mut got).expect("read");
    assert_eq!(whole_blocks(&got[..count]).0, written.blocks);
    let again = output.write(&block(10), &|| false);
    assert_eq!((again.blocks, again.bytes), (0, 0));
    assert!(again.error.is_some());
}

#[test]
fn a_slow_reader_gets_everything() {
    let (mut reader, writer) = pipe();
    let mut output = stream(writer);
    let blocks: Vec<u8> = (0..500).flat_map(|_| block(1000)).collect();
    let wanted = blocks.clone();
    let reading = std::thread::spawn(move || {
        let mut got: Vec<u8> = Vec::new();
        let mut part = vec![0; 20_000];
        while got.len() < wanted.len() {
            match reader.read(&mut part) {
                Ok(count) => got.extend(&part[..count]),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        assert!(got == wanted);
    });
    let written = output.write(&blocks, &|| false);
    assert!(written.error.is_none());
    assert_eq!(written.blocks, 500);
    reading.join().expect("the reader");
}

#[test]
fn a_reader_that_goes_away_is_told_once() {
    let (reader, writer) = pipe();
    drop(reader);
    let state = Arc::new(CaptureState::default());
    let mut writer = Writer {
        output: stream(writer),
        channels: Vec::new(),
        started_ns: 0,
        state: state.clone(),
        packets: 0,
    };
    for _ in 0..3 {
        let error = writer.output.write(&block(100), &|| false).error;
        assert_eq!(writer.tell(&error.expect("EPIPE")), Reason::WriteError);
    }
    assert!(state.reader_gone());
    assert_eq!(state.take_news().len(), 1);
    assert!(state.take_news().is_empty());
}
