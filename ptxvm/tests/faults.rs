//! Planted faults: a kernel that runs clean, and the same text with one line changed, for every
//! rule that the machine checks. What it says must name the rule, the place, the thread, the buffer.

#[path = "faults/memory.rs"]
mod memory;
#[path = "faults/races.rs"]
mod races;
#[path = "faults/warps.rs"]
mod warps;

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

const TURN: &str = "
st.shared.u32 [%here], %t;
bar.sync 0;
ld.shared.u32 %x, [%there];
bar.sync 0;
st.shared.u32 [%here], %x;
ret;";

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
fn a_launch_sees_nothing_of_the_one_before() {
    let mut machine = Machine::new(Options::default());
    let mut args = Vec::new();
    for label in ["out", "inp"] {
        let address = machine.alloc(256, label);
        machine.copy_in(address, &[1; 256]).expect("it fits");
        args.push(address.to_le_bytes());
    }
    let mut run = |body: &str, threads| {
        let program = machine.load(&text(body)).expect("the text is PTX");
        let launch = Launch::new([2, 1, 1], [threads, 1, 1]);
        machine.launch(&program, "planted", launch, &[&args[0], &args[1]])
    };
    let write = "
st.shared.u32 [%here], %t;
st.local.u32 [%own], %t;
ret;";
    let first = run(write, 64).expect("each writes its own");
    for read in ["ld.shared.u32 %x, [%here];", "ld.local.u32 %x, [%own];"] {
        let fault = run(&format!("{read}\nret;"), 64).expect_err(read);
        assert_eq!((fault.kind, fault.line), (FaultKind::Uninitialised, 1));
        // The fault left nothing behind either, nor does a launch of more warps.
        assert_eq!(run(write, 64).as_ref(), Ok(&first));
        let moved = write.replace("[%here]", "[%there]");
        run(&moved, 96).expect("three warps");
        run(&moved, 64).expect("another thread's place in another launch");
        assert_eq!(run(write, 64).as_ref(), Ok(&first));
    }
}
