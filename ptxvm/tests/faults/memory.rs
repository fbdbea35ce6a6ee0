//! Addresses, alignment, memory that nobody wrote.

use ptxvm::FaultKind;

use super::{COPY, TURN, planted};

#[test]
fn global_reads_out_of_bounds() {
    planted(
        COPY,
        ("[%inp]", "[%inp+4]"),
        (FaultKind::OutOfBounds, 1, 0, 63),
        &["byte 256 of inp (256 bytes)"],
    );
    planted(
        COPY,
        ("[%inp]", "[%inp+-4]"),
        (FaultKind::OutOfBounds, 1, 0, 0),
        &["4 bytes", "before inp"],
    );
}

#[test]
fn global_writes_out_of_bounds() {
    planted(
        COPY,
        ("[%out]", "[%out+8]"),
        (FaultKind::OutOfBounds, 2, 0, 62),
        &["byte 256 of out (256 bytes)"],
    );
    planted(
        COPY,
        ("[%out]", "[%at]"),
        (FaultKind::OutOfBounds, 2, 0, 0),
        &["near no buffer"],
    );
}

#[test]
fn global_reads_of_what_nobody_wrote() {
    planted(
        COPY,
        ("[%inp]", "[%out]"),
        (FaultKind::Uninitialised, 1, 0, 0),
        &["byte 0 of out"],
    );
}

#[test]
fn global_atomics_on_what_nobody_wrote() {
    let body = "
st.global.u32 [%out], %x;
red.global.add.u32 [%out], %x;
ret;";
    planted(
        body,
        ("st.global.u32 [%out], %x;", "mov.u32 %y, 0;"),
        (FaultKind::Uninitialised, 2, 0, 0),
        &["byte 0 of out"],
    );
}

#[test]
fn misaligned_accesses() {
    let detail = &["4 bytes at byte 2 of inp"];
    planted(
        COPY,
        ("[%inp]", "[%inp+2]"),
        (FaultKind::Misaligned, 1, 0, 0),
        detail,
    );
    let body = "
st.shared.u32 [%here], %x;
bar.sync 0;
ld.shared.u32 %y, [%here];
ret;";
    let detail = &["4 bytes at byte 1 of shared memory"];
    planted(
        body,
        ("%y, [%here]", "%y, [%here+1]"),
        (FaultKind::Misaligned, 3, 0, 0),
        detail,
    );
    let vector = "
mov.u32 %y, 16;
mad.lo.u32 %here, %t, %y, 0;
and.b32 %here, %here, 504;
setp.lt.u32 %p, %t, 32;
@%p st.shared.v4.u32 [%here], {%x, %x, %x, %x};
ret;";
    let detail = &["16 bytes at byte 8 of shared memory"];
    planted(
        vector,
        ("%y, 16", "%y, 8"),
        (FaultKind::Misaligned, 5, 0, 1),
        detail,
    );
}

#[test]
fn the_threads_own_memory() {
    let body = "
st.local.u32 [%own+8], %x;
ld.local.u32 %y, [%own+8];
ret;";
    let own = "of the thread's own memory";
    planted(
        body,
        ("st.local.u32 [%own+8], %x;", "mov.u32 %y, 0;"),
        (FaultKind::Uninitialised, 2, 0, 0),
        &[own, "byte 8"],
    );
    planted(
        body,
        ("%y, [%own+8]", "%y, [%own+16]"),
        (FaultKind::OutOfBounds, 2, 0, 0),
        &[own, "byte 16"],
    );
    planted(
        body,
        ("%y, [%own+8]", "%y, [%own+10]"),
        (FaultKind::Misaligned, 2, 0, 0),
        &[own, "byte 10"],
    );
}

#[test]
fn arguments() {
    let body = "
ld.param.u32 %y, [inp+4];
ret;";
    let detail = &["byte 16 of the kernel's arguments"];
    planted(
        body,
        ("[inp+4]", "[inp+8]"),
        (FaultKind::OutOfBounds, 1, 0, 0),
        detail,
    );
}

#[test]
fn shared_memory_out_of_bounds() {
    let detail = &["4 bytes at byte 512 of shared memory (512 bytes)"];
    planted(
        TURN,
        ("%x, [%there]", "%x, [%there+384]"),
        (FaultKind::OutOfBounds, 3, 0, 0),
        detail,
    );
}

#[test]
fn shared_memory_that_nobody_wrote() {
    let detail = &["byte 256 of shared memory"];
    planted(
        TURN,
        ("%x, [%there]", "%x, [%there+128]"),
        (FaultKind::Uninitialised, 3, 0, 0),
        detail,
    );
}
