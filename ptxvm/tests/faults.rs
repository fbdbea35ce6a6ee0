//! Planted faults: a kernel that runs clean, and the same text with one line changed, for every
//! rule that the machine checks. What it says must name the rule, the place, the thread, the buffer.

use ptxvm::{Fault, FaultKind, Launch, Machine, Options};

const HEAD: &str = r#"
.version 8.0
.target sm_80
.address_size 64
.file 1 "planted.cu"
.visible .entry planted(.param .u64 out, .param .u64 inp)
{
    .shared .align 16 .b8 tile[512];
    .local .align 16 .b8 own[16];
    .reg .pred %p, %q;
    .reg .b16 %h;
    .reg .b32 %t, %x, %y, %r<4>, %here, %there, %b;
    .reg .b64 %out, %inp, %at, %own;
    ld.param.u64 %out, [out];
    ld.param.u64 %inp, [inp];
    mov.u32 %t, %tid.x;
    mov.u32 %b, %ctaid.x;
    mul.wide.u32 %at, %t, 4;
    add.u64 %inp, %inp, %at;
    add.u64 %out, %out, %at;
    mov.u32 %here, tile;
    mad.lo.u32 %here, %t, 4, %here;
    xor.b32 %y, %t, 32;
    mov.u32 %there, tile;
    mad.lo.u32 %there, %y, 4, %there;
    mov.u64 %own, own;
    mov.u32 %x, 7;
"#;

/// A kernel of lines `.loc 1 n`, from `BODY` n = 1 on; 64 threads, 2 blocks.
fn text(body: &str) -> String {
    let mut out = HEAD.to_string();
    for (i, line) in body.trim().lines().enumerate() {
        out += &format!(".loc 1 {} 1\n{line}\n", i + 1);
    }
    out + "}\n"
}

/// 64 words each: `inp` is written, but for its last byte in `gap`; `out` is not.
fn run_with(text: &str, options: Options, launch: Launch) -> Result<(), Box<Fault>> {
    let mut machine = Machine::new(options);
    let program = machine.load(text).expect("the text is PTX");
    let out = machine.alloc(256, "out");
    let inp = machine.alloc(256, "inp");
    machine.copy_in(inp, &[1; 256]).expect("it fits");
    let args = [out.to_le_bytes(), inp.to_le_bytes()];
    machine
        .launch(&program, "planted", launch, &[&args[0], &args[1]])
        .map(|_| ())
}

fn run(text: &str) -> Result<(), Box<Fault>> {
    let options = Options {
        fuel: 10_000,
        ..Options::default()
    };
    run_with(text, options, Launch::new([2, 1, 1], [64, 1, 1]))
}

/// The body runs clean; with `from` turned into `to` it fails as told.
fn planted(
    body: &str,
    (from, to): (&str, &str),
    (kind, line, block, thread): (FaultKind, u32, u32, u32),
    detail: &[&str],
) {
    let clean = text(body);
    run(&clean).unwrap_or_else(|fault| panic!("the clean kernel: {fault}"));
    assert_eq!(body.matches(from).count(), 1, "{from:?} stands once");
    let fault = *run(&text(&body.replace(from, to))).expect_err("the fault is found");
    assert_eq!(fault.kind, kind, "{fault}");
    assert_eq!(fault.kernel, "planted");
    assert_eq!(
        (fault.file.as_str(), fault.line),
        ("planted.cu", line),
        "{fault}"
    );
    assert_eq!(
        (fault.block, fault.thread),
        ([block, 0, 0], [thread, 0, 0]),
        "{fault}"
    );
    assert_eq!(fault.inlined_at, None);
    let words = fault.to_string();
    for part in detail.iter().chain(&[kind.words(), "planted.cu"]) {
        assert!(words.contains(part), "{words:?} does not say {part:?}");
    }
}

const COPY: &str = "
ld.global.u32 %x, [%inp];
st.global.u32 [%out], %x;
ret;";

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
fn a_block_of_its_own_fails() {
    let body = "
setp.eq.u32 %p, %b, 1;
@%p add.u64 %inp, %inp, 0;
ld.global.u32 %x, [%inp];
st.global.u32 [%out], %x;
ret;";
    planted(
        body,
        ("%inp, 0;", "%inp, 128;"),
        (FaultKind::OutOfBounds, 3, 1, 32),
        &["byte 256 of inp"],
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

const TURN: &str = "
st.shared.u32 [%here], %t;
bar.sync 0;
ld.shared.u32 %x, [%there];
bar.sync 0;
st.shared.u32 [%here], %x;
ret;";

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
fn traps() {
    let body = "
setp.eq.u32 %p, %t, 64;
@%p trap;
ret;";
    planted(
        body,
        ("%t, 64;", "%t, 37;"),
        (FaultKind::Trap, 2, 0, 37),
        &["the kernel trapped"],
    );
}

#[test]
fn threads_are_named_in_three_dimensions() {
    let broken = text(&COPY.replace("[%out]", "[%out+8]"));
    let fault = run_with(
        &broken,
        Options::default(),
        Launch::new([1, 1, 1], [8, 4, 2]),
    );
    // %tid.x is below 8: only the offset goes wrong, not far enough.
    assert_eq!(fault, Ok(()));
    let broken = text(
        "
mov.u32 %x, %tid.z;
setp.eq.u32 %p, %x, 1;
@%p trap;
ret;",
    );
    let fault = run_with(
        &broken,
        Options::default(),
        Launch::new([1, 1, 1], [8, 4, 2]),
    )
    .expect_err("found");
    assert_eq!(fault.thread, [0, 0, 1]);
}

#[test]
fn inlined_functions_are_named() {
    let broken = text(COPY).replace(
        ".loc 1 2 1",
        ".loc 1 40 7, function_name $L__info_string0, inlined_at 1 23 5",
    );
    let broken = broken.replace("[%out], %x", "[%out+8], %x");
    let fault = run(&broken).expect_err("found");
    assert_eq!(
        (fault.line, fault.inlined_at),
        (40, Some(("planted.cu".into(), 23)))
    );
}

#[test]
fn launches_that_no_device_takes() {
    let clean = text(COPY);
    for (grid, block, shared_bytes, part) in [
        ([1, 1, 1], [1025, 1, 1], 0, "1 to 1,024 threads"),
        ([1, 1, 1], [0, 1, 1], 0, "1 to 1,024 threads"),
        ([0, 1, 1], [32, 1, 1], 0, "a block or more"),
        ([1, 1, 1], [32, 1, 1], 200 << 10, "bytes of shared memory"),
    ] {
        let launch = Launch {
            grid,
            block,
            shared_bytes,
        };
        let fault = run_with(&clean, Options::default(), launch).expect_err(part);
        assert_eq!(fault.kind, FaultKind::Launch);
        assert!(fault.detail.contains(part), "{fault}");
    }
    let mut machine = Machine::new(Options::default());
    let program = machine.load(&clean).expect("the text is PTX");
    let launch = Launch::new([1, 1, 1], [1, 1, 1]);
    for (kernel, args, part) in [
        ("other", vec![&[0u8; 8][..]; 2], "no such kernel"),
        ("planted", vec![&[0; 8]], "takes 2 arguments, got 1"),
        (
            "planted",
            vec![&[0; 8], &[0; 4]],
            "argument 1 has 8 bytes, got 4",
        ),
    ] {
        let fault = machine
            .launch(&program, kernel, launch, &args)
            .expect_err(part);
        assert_eq!(fault.kind, FaultKind::Launch);
        assert!(fault.detail.contains(part), "{fault}");
    }
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
