//! Barriers, endless loops, instructions that need every lane.

use ptxvm::FaultKind;

use super::{planted, run, text};

#[test]
fn barriers_in_a_branch() {
    let body = "
and.b32 %y, %t, 1;
setp.eq.u32 %p, %y, 2;
@%p bra skip;
bar.sync 0;
skip:
ret;";
    planted(
        body,
        ("%y, 2;", "%y, 1;"),
        (FaultKind::DivergentBarrier, 4, 0, 0),
        &["lanes 0x55555555", "the others took another branch"],
    );
}

#[test]
fn barriers_that_a_warp_never_reaches() {
    let body = "
setp.ge.u32 %p, %t, 64;
@%p ret;
bar.sync 0;
ret;";
    planted(
        body,
        ("%t, 64;", "%t, 32;"),
        (FaultKind::MissingBarrier, 3, 0, 0),
        &["warp 0 waits", "warp 1 has ended"],
    );
}

#[test]
fn barriers_of_different_numbers() {
    let body = "
setp.ge.u32 %p, %t, 64;
@%p bra other;
bar.sync 1;
ret;
other:
bar.sync 2;
ret;";
    planted(
        body,
        ("%t, 64;", "%t, 32;"),
        (FaultKind::Deadlock, 3, 0, 0),
        &["warp 0 waits at barrier 1", "warp 1 at barrier 2"],
    );
}

#[test]
fn loops_without_an_end() {
    let body = "
mov.u32 %y, 0;
again:
add.u32 %y, %y, 1;
setp.lt.u32 %p, %y, 9;
@%p bra again;
ret;";
    // It stands at whatever instruction the fuel ran out on.
    let fault = run(&text(
        &body.replace("setp.lt.u32 %p, %y, 9;", "setp.ge.u32 %p, %y, 0;"),
    ))
    .expect_err("found");
    assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
    assert!((3..=5).contains(&fault.line), "{fault}");
    assert!(
        fault
            .detail
            .contains("10000 instructions without a barrier"),
        "{fault}"
    );
    run(&text(body)).expect("nine rounds end");
}

#[test]
fn shuffles_with_missing_lanes() {
    let body = "
setp.lt.u32 %p, %t, 64;
@%p shfl.sync.bfly.b32 %x, %t, 1, 31, 0xFFFFFFFF;
ret;";
    planted(
        body,
        ("%t, 64;", "%t, 16;"),
        (FaultKind::MissingLanes, 2, 0, 0),
        &["the mask names lanes 0xffffffff, but 0x0000ffff"],
    );
    let body = "
setp.lt.u32 %p, %t, 16;
@%p shfl.sync.down.b32 %x, %t, 4, 0x101F, 0xFFFF;
ret;";
    // Without the segment lane 12 reads lane 16.
    planted(
        body,
        ("0x101F", "0x1F"),
        (FaultKind::MissingLanes, 2, 0, 12),
        &["reads lane 16"],
    );
    planted(
        body,
        ("0xFFFF;", "0xFF;"),
        (FaultKind::MissingLanes, 2, 0, 8),
        &["lane 8 is not in the mask"],
    );
}

#[test]
fn matrix_instructions_with_missing_lanes() {
    let body = "
mov.u32 %r0, 0;
mov.u32 %r1, 0;
mov.u32 %r2, 0;
mov.u32 %r3, 0;
setp.lt.u32 %p, %t, 64;
@%p mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r0, %r1, %r2, %r3}, {%x, %x}, {%x}, {%r0, %r1, %r2, %r3};
ret;";
    planted(
        body,
        ("%t, 64;", "%t, 31;"),
        (FaultKind::MissingLanes, 6, 0, 31),
        &["only lanes 0x7fffffff"],
    );
}
