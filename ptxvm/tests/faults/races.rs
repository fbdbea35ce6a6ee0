//! Shared memory between barriers: plain accesses, atomics, asynchronous copies.

use ptxvm::{FaultKind, Launch, Options};

use super::{TURN, planted, run, run_with, text};

#[test]
fn a_read_after_a_write_races() {
    // Warp 0 has ended its step before warp 1 begins: warp 1 finds what warp 0 wrote.
    let body = "
st.shared.u32 [%here], %t;
st.shared.u32 [%here+256], %t;
bar.sync 0;
ld.shared.u32 %x, [%there];
ret;";
    // Warp 0 would read what warp 1 has yet to write: that is uninitialised.
    let fault = run(&text(&body.replace("bar.sync 0;", "mov.u32 %y, 0;"))).expect_err("found");
    assert_eq!(fault.kind, FaultKind::Uninitialised, "{fault}");
    let guarded = "
st.shared.u32 [%here], %t;
setp.ge.u32 %p, %t, 32;
bar.sync 0;
@%p ld.shared.u32 %x, [%there];
ret;";
    let detail = &[
        "byte 0 of shared memory that thread 0 wrote",
        "no barrier between",
    ];
    planted(
        guarded,
        ("bar.sync 0;", "mov.u32 %y, 0;"),
        (FaultKind::Race, 4, 0, 32),
        detail,
    );
}

#[test]
fn a_write_after_a_read_races() {
    let body = "
setp.ge.u32 %p, %t, 32;
st.shared.u32 [%here], %t;
bar.sync 0;
@!%p ld.shared.u32 %x, [%here];
bar.sync 1;
@%p st.shared.u32 [%there], %x;
ret;";
    let detail = &[
        "byte 0 of shared memory that thread 0 read",
        "no barrier between",
    ];
    planted(
        body,
        ("bar.sync 1;", "mov.u32 %y, 0;"),
        (FaultKind::Race, 6, 0, 32),
        detail,
    );
}

#[test]
fn a_write_after_a_write_races() {
    let body = "
setp.ge.u32 %p, %t, 32;
@!%p st.shared.u32 [%here], %t;
bar.sync 0;
@%p st.shared.u32 [%there], %t;
ret;";
    let detail = &[
        "byte 0 of shared memory that thread 0 wrote",
        "no barrier between",
    ];
    planted(
        body,
        ("bar.sync 0;", "mov.u32 %y, 0;"),
        (FaultKind::Race, 4, 0, 32),
        detail,
    );
}

#[test]
fn lanes_of_a_warp_race_too() {
    // Lanes of a warp need no barrier of the block, but __syncwarp.
    let body = "
st.shared.u32 [%here], %t;
bar.warp.sync -1;
xor.b32 %y, %t, 1;
mad.lo.u32 %y, %y, 4, 0;
ld.shared.u32 %x, [%y];
ret;";
    let detail = &["byte 4 of shared memory that thread 1 wrote"];
    planted(
        body,
        ("bar.warp.sync -1;", "mov.u32 %y, 0;"),
        (FaultKind::Race, 5, 0, 0),
        detail,
    );
}

const UPDATES: &str = "
setp.eq.u32 %p, %t, 0;
@%p st.shared.u32 [tile], %x;
bar.sync 0;
red.shared.add.u32 [tile], 1;
atom.shared.max.u32 %y, [tile], %t;
bar.sync 1;
ld.shared.u32 %y, [tile];
bar.sync 2;
atom.shared.add.u32 %y, [tile], 1;
bar.sync 3;
@%p st.shared.u32 [tile], %x;
ret;";

#[test]
fn atomics_race_with_plain_accesses_and_not_with_atomics() {
    for (barrier, line, thread, detail) in [
        (
            "bar.sync 0;",
            4,
            1,
            "updates byte 0 of shared memory atomically that thread 0 wrote",
        ),
        (
            "bar.sync 1;",
            7,
            0,
            "reads byte 0 of shared memory that warp 0 updated atomically",
        ),
        (
            "bar.sync 2;",
            9,
            0,
            "updates byte 0 of shared memory atomically that warp 0 read",
        ),
        (
            "bar.sync 3;",
            11,
            0,
            "writes byte 0 of shared memory that warp 0 updated atomically",
        ),
    ] {
        planted(
            UPDATES,
            (barrier, "mov.u32 %y, 0;"),
            (FaultKind::Race, line, 0, thread),
            &[detail, "no barrier between"],
        );
    }
}

#[test]
fn atomics_of_eight_bytes_race_in_both_words() {
    let body = "
setp.eq.u32 %p, %t, 0;
mov.u64 %at, 0;
@%p st.shared.u64 [tile], %at;
bar.sync 0;
atom.shared.add.u64 %at, [tile], 1;
bar.sync 1;
@%p st.shared.u16 [tile+6], %h;
ret;";
    planted(
        body,
        ("bar.sync 1;", "mov.u32 %y, 0;"),
        (FaultKind::Race, 7, 0, 0),
        &["writes byte 4 of shared memory that warp 0 updated atomically"],
    );
}

#[test]
fn a_thread_may_update_what_it_wrote() {
    let body = "
st.shared.u32 [%here], %x;
red.shared.add.u32 [%here], 1;
ld.shared.u32 %x, [%here];
st.shared.u32 [%here], %x;
ret;";
    planted(
        body,
        ("red.shared.add.u32 [%here]", "red.shared.add.u32 [%here+4]"),
        (FaultKind::Race, 2, 0, 0),
        &["updates byte 4 of shared memory atomically that thread 1 wrote"],
    );
}

const ASYNC: &str = "
setp.lt.u32 %p, %t, 64;
@%p cp.async.ca.shared.global [%here], [%inp], 4;
cp.async.commit_group;
cp.async.wait_group 0;
bar.sync 0;
ld.shared.u32 %x, [%there];
ret;";

#[test]
fn copies_read_before_their_wait() {
    let detail = &["byte 128 of shared memory awaits a cp.async"];
    planted(
        ASYNC,
        ("cp.async.wait_group 0;", "cp.async.wait_group 1;"),
        (FaultKind::AsyncNotWaited, 6, 0, 0),
        detail,
    );
    planted(
        ASYNC,
        ("cp.async.wait_group 0;", "mov.u32 %y, 0;"),
        (FaultKind::AsyncNotWaited, 6, 0, 0),
        detail,
    );
    // A copy outside every group is not waited for.
    planted(
        ASYNC,
        ("cp.async.commit_group;", "mov.u32 %y, 0;"),
        (FaultKind::AsyncNotWaited, 6, 0, 0),
        detail,
    );
}

#[test]
fn copies_waited_for_by_their_own_thread_only() {
    // Its barrier goes: warp 0 would read what warp 1 copies later.
    let body = "
cp.async.ca.shared.global [%here], [%inp], 4;
cp.async.wait_all;
setp.ge.u32 %p, %t, 32;
bar.sync 0;
@%p ld.shared.u32 %x, [%there];
ret;";
    let detail = &["byte 0 of shared memory that thread 0 wrote"];
    planted(
        body,
        ("bar.sync 0;", "mov.u32 %y, 0;"),
        (FaultKind::Race, 5, 0, 32),
        detail,
    );
}

#[test]
fn copies_from_outside() {
    let detail = &["cp.async of 4 bytes from byte 256 of inp (256 bytes)"];
    planted(
        ASYNC,
        ("[%inp]", "[%inp+4]"),
        (FaultKind::OutOfBounds, 2, 0, 63),
        detail,
    );
    planted(
        ASYNC,
        ("[%inp]", "[%inp+2]"),
        (FaultKind::Misaligned, 2, 0, 0),
        &["byte 2 of inp"],
    );
    // The source is read, and found unwritten, at the wait.
    planted(
        ASYNC,
        ("[%inp]", "[%out]"),
        (FaultKind::Uninitialised, 4, 0, 0),
        &["byte 0 of out"],
    );
}

#[test]
fn copies_over_what_others_still_read() {
    let body = "
setp.ge.u32 %p, %t, 32;
st.shared.u32 [%here], %t;
bar.sync 0;
@!%p ld.shared.u32 %x, [%here];
bar.sync 1;
@%p cp.async.ca.shared.global [%there], [%inp], 4;
cp.async.wait_all;
ret;";
    let detail = &["writes byte 0 of shared memory that thread 0 read"];
    planted(
        body,
        ("bar.sync 1;", "mov.u32 %y, 0;"),
        (FaultKind::Race, 6, 0, 32),
        detail,
    );
}

#[test]
fn races_are_found_in_any_order() {
    let broken = text(&TURN.replacen("bar.sync 0;", "mov.u32 %y, 0;", 1));
    for seed in 0..8 {
        let options = Options {
            order_seed: Some(seed),
            ..Options::default()
        };
        let fault =
            run_with(&broken, options, Launch::new([1, 1, 1], [64, 1, 1])).expect_err("found");
        assert!(
            matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialised),
            "{fault}"
        );
    }
}
