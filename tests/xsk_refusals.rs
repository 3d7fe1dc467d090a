//! What the AF_XDP layer cannot do, it says: which queue, what was asked, what would help. Against a
//! real kernel, in namespaces.

#[macro_use]
mod common;
#[path = "common/xsk_lab.rs"]
mod lab;
#[path = "common/xdp_program.rs"]
mod program;

use std::time::{Duration, Instant};

use lab::{assert_all_home, config, umem, Lab};
use xtee::xsk::{Mode, PortConfig, TxPort, Umem, UmemConfig, XskError};

#[test]
fn zero_copy_where_there_is_none_is_refused_clearly() {
    require_root!();
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 64);
    let asked = PortConfig {
        mode: Mode::ZeroCopy,
        ..config("a1", 0)
    };
    let error = TxPort::open(&umem, &asked).expect_err("veth has no zero copy");
    let text = error.to_string();
    assert!(
        matches!(&error, XskError::Bind { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP)),
        "{text}"
    );
    assert!(
        text.contains("a1 queue 0") && text.contains("this driver has no AF_XDP zero copy"),
        "{text}"
    );
    // The UMEM can still be used.
    let tx = TxPort::open(&umem, &config("a1", 0)).expect("copy");
    drop(tx);
    assert_all_home(&umem);
}

#[test]
fn a_missing_capability_is_named() {
    require_root!();
    // Capabilities belong to threads; this one ends with them.
    let without = std::thread::spawn(|| {
        drop_capabilities();
        Umem::new(&UmemConfig::default()).map(drop)
    });
    let error = without
        .join()
        .expect("thread")
        .expect_err("needs CAP_NET_RAW");
    assert!(
        error.to_string().contains("AF_XDP needs CAP_NET_RAW"),
        "{error}"
    );
}

fn drop_capabilities() {
    // struct __user_cap_header_struct (version 3, this thread), and both halves of
    // __user_cap_data_struct: nothing effective, permitted or inheritable.
    let header = [0x2008_0522u32, 0];
    let nothing = [0u32; 6];
    // SAFETY: header and data are as large as version 3 of the call wants them.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) };
    assert_eq!(result, 0, "capset: {}", std::io::Error::last_os_error());
}

#[test]
fn wrong_queues_and_interfaces_are_refused_clearly() {
    require_root!();
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 64);
    let fails = |interface, queue| {
        TxPort::open(&umem, &config(interface, queue))
            .expect_err("impossible")
            .to_string()
    };
    assert!(
        fails("a1", 7).contains("the queue does not exist"),
        "{}",
        fails("a1", 7)
    );
    assert!(
        fails("a9", 0).contains("there is no such interface"),
        "{}",
        fails("a9", 0)
    );
    assert!(fails("a\09", 0).contains("there is no such interface"));
    let odd = PortConfig {
        tx_ring: 100,
        ..config("a1", 0)
    };
    let error = TxPort::open(&umem, &odd)
        .expect_err("not a power of two")
        .to_string();
    assert!(error.contains("tx_ring is 100"), "{error}");
}

/// One socket a queue; a queue that was closed can be bound again, though not at once.
#[test]
fn queues_that_are_taken_and_freed() {
    require_root!();
    let lab = Lab::new(2);
    let _here = lab.enter();
    let first = umem(1, 64);
    let second = umem(1, 64);
    let anchor = TxPort::open(&first, &config("a1", 0)).expect("first socket");
    let again = TxPort::open(&first, &config("a1", 0)).expect_err("open already");
    assert!(matches!(again, XskError::QueueOpen { .. }), "{again}");

    let start = Instant::now();
    let taken = TxPort::open(&second, &config("a1", 0)).expect_err("another UMEM has it");
    assert!(
        taken
            .to_string()
            .contains("another AF_XDP socket has this queue"),
        "{taken}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );

    // A further socket of the UMEM, closed and opened again and again.
    for _ in 0..5 {
        drop(TxPort::open(&first, &config("a0", 1)).expect("further socket"));
    }
    let conflict = PortConfig {
        mode: Mode::ZeroCopy,
        ..config("a0", 0)
    };
    let conflict = TxPort::open(&first, &conflict).expect_err("the UMEM is in copy mode");
    assert!(
        matches!(conflict, XskError::ModeConflict { .. }),
        "{conflict}"
    );
    drop(anchor);
    let spent = TxPort::open(&first, &config("a0", 0)).expect_err("nothing holds the UMEM");
    assert!(matches!(spent, XskError::UmemSpent { .. }), "{spent}");
    drop(first);
    drop(TxPort::open(&second, &config("a1", 0)).expect("free again"));
    assert_all_home(&second);
}
