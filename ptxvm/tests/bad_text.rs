//! Texts that are not PTX, or not PTX that the machine knows: an error with its line, never a panic.

use ptxvm::{Machine, Options, ParseError};

const HEAD: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 p)
{
    .reg .pred %p<4>;
    .reg .b32 %r<4>;
    .reg .b64 %d<4>;
";

fn load(text: &str) -> Result<(), ParseError> {
    Machine::new(Options::default()).load(text).map(|_| ())
}

#[test]
fn errors_name_the_line() {
    // Each stands at line 9 of a kernel.
    for (line, part) in [
        ("    frobnicate.b32 %r1, %r2;", "frobnicate"),
        ("    add.u32 %r1, %r2;", "2 operands where 3"),
        ("    add.u32 %r1, %r2, %r3, %r0;", "4 operands where 3"),
        ("    add.u32 %r1, %r2, %d1;", "Double register where a Word"),
        ("    add.u64 %d1, %d2, %r1;", "Word register where a Double"),
        (
            "    add.cc.f32 %r1, %r2, %r3;",
            "carries are not known for F32",
        ),
        ("    mul.lo.cc.u32 %r1, %r2, %r3;", "carries are not known"),
        ("    addc.u32 %r1, %r2;", "2 operands where 3"),
        ("    madc.lo.u32 %r1, %r2, %r3;", "3 operands where 4"),
        ("    add.ftz.f16 %r1, %r2, %r3;", "flushed in f32 only"),
        ("    add.sat.s32 %r1, %r2, %r3;", "saturation"),
        ("    add.rz.f32 %r1, %r2, %r3;", "not known"),
        ("    mov.u32 %r1, %clock;", "%clock"),
        ("    mov.u32 %r1, %r9;", "%r9"),
        ("    mov.u32 %r1, nowhere;", "nowhere"),
        ("    mov.u32 %r1, 0f3F8000001;", "is not a number"),
        ("    mov.u32 %r1, 0xFG;", "is not a number"),
        ("    mov.u32 %r1, 12a;", "is not a number"),
        ("    mov.u32 %r1, 99999999999999999999;", "is not a number"),
        ("    @%r1 ret;", "Word register where a Pred"),
        ("    @%x ret;", "no predicate %x"),
        ("    bra;", "no label"),
        ("    bra nowhere;", "no label nowhere"),
        ("    shfl.sync.b32 %r1, %r2, 0, 31, -1;", "shfl"),
        ("    shfl %r1, %r2, 0, 31, -1;", "shfl"),
        ("    vote %p1, %p2, -1;", "vote"),
        ("    redux.sync %r1, %r2, -1;", "redux"),
        ("    setp %p1, %r1, %r2;", "no type"),
        ("    setp.u32 %p1, %r1, %r2;", "comparison u32"),
        ("    set %r1, %r1, %r2;", "needs two types"),
        ("    shf %r1, %r2, %r3, 1;", "no type"),
        ("    mul.wide.u32 %d1, %r1;", "operand 3 is missing"),
        ("    shl.b64 %d1, %d2;", "operand 3 is missing"),
        (
            "    ld.global.v4.u64 {%d0, %d1, %d2, %d3}, [%d1];",
            "4 parts",
        ),
        ("    ld.global.v3.u32 {%r0, %r1, %r2}, [%d1];", "3 parts"),
        ("    ld.global.u32 {}, [%d1];", "0 parts"),
        ("    ld.global.pred %p1, [%d1];", "ld.global.pred"),
        ("    ld.global.u32 %r1, %d1;", "is no address"),
        ("    mov.b32 %r1, {};", "0 parts"),
        ("    mov.b32 {%r1, %r2, %r3}, %r1;", "3 parts"),
        (
            "    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2}, [%r1];",
            "3 matrices",
        ),
        (
            "    mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r0}, {%r1}, {%r2}, {%r3};",
            "only m16n8k16",
        ),
        (
            "    cp.async.ca.shared.global [%r1], [%d1], 12;",
            "a copy of 12 bytes",
        ),
        (
            "    cp.async.bulk.shared.global [%r1], [%d1], 16;",
            "only cp.async",
        ),
        ("    call.uni f, (%r1);", "functions are not run"),
        ("    bar.arrive 0, 64;", "only whole-block"),
        ("    atom.global.add.f16 %r1, [%d1], %r2;", "halves"),
        ("    .reg .b128 %q;", "registers of type .b128"),
        ("    .reg .b32 %q<99999999999>;", "99999999999 registers"),
        ("    .shared .align 3 .b8 x[4];", "aligned to 3"),
        ("    .shared .b64 x[9999999999999];", "too large"),
        ("    .local .b8 x[4294967296][4294967296];", "too large"),
        ("    .frame 4;", ".frame"),
        (
            "    mov.u32 %r1, [[[[[[[[[[[[[[[[%r2]]]]]]]]]]]]]]]];",
            "too many brackets",
        ),
        ("    mov.u32 %r1 %r2;", "after an operand of mov.u32"),
        ("    ld.global.u32 %r1, [%d1+x];", "expected an integer"),
        ("    ?", "expected a statement"),
        ("    mov.u32 %r1, \u{e9};", "outside a comment"),
    ] {
        let error = load(&format!("{HEAD}{line}\n    ret;\n}}\n")).expect_err(line);
        assert_eq!(error.line, 9, "{line}: {error}");
        assert!(error.to_string().contains(part), "{line}: {error}");
    }
}

#[test]
fn texts_that_end_too_soon() {
    for (text, line, part) in [
        (format!("{HEAD}    ret;\n"), 9, "expected a statement"),
        (
            format!("{HEAD}    {{\n    ret;\n}}\n"),
            11,
            "expected a statement",
        ),
        (format!("{HEAD}    mov.u32 %r1"), 9, "after an operand"),
        (
            format!("{HEAD}    ld.global.u32 %r1, [%d1"),
            9,
            "expected ]",
        ),
        (
            format!("{HEAD}    ret;\n}}\n}}\n"),
            11,
            "expected a directive",
        ),
        ("\n.file 1 \"x".into(), 2, "without an end"),
        ("\n.section .debug {".into(), 2, "without an end"),
        ("\n.visible .func f(".into(), 2, "without an end"),
        ("\n\nvisible".into(), 3, "visible"),
        ("\n.weird 3".into(), 2, ".weird"),
    ] {
        let error = load(&text).expect_err(&text);
        assert_eq!(error.line, line, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

/// A kernel with something of everything.
const VALID: &str = r#"// a comment
.version 8.0
.target sm_80, debug
.address_size 64
.file 1 "all.cu", 123, 456
.extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
.const .align 4 .b8 c[8] = {1, 2, 3, -4};
.global .align 4 .f32 g = 0f3F800000;
.extern .shared .align 16 .b8 dynamic[];
.visible .entry k(.param .u64 .ptr .global .align 4 out, .param .align 8 .b8 s[16])
.maxntid 128, 1, 1
{
    .shared .align 16 .b8 tile[1024];
    .local .align 8 .b8 own[16];
    .reg .pred %p<4>;
    .reg .b16 %h<4>;
    .reg .b32 %r<9>, %single;
    .reg .b64 %d<4>;
    .loc 1 12 3
    ld.param.u64 %d0, [out];
    ld.param.v2.u32 {%r0, %r1}, [s+8];
    .loc 1 40 7, function_name $L__info_string0+3, inlined_at 1 12 3
    mov.u32 %r2, %tid.x; mov.b32 %r3, {%h0, %h1};
    { .reg .pred q; setp.lt.and.s32 q|%p2, %r2, -5, !%p1; @!q bra inner; inner: }
    /* a longer
       comment */
    shfl.sync.down.b32 %r4|%p1, %r2, 1, 31, -1;
    lop3.b32 %r1, %r2, %r3, %r4, 0x96;
    mad.wide.u32 %d1, %r2, 4, %d0;
    atom.global.add.u32 %r5, [%d1+-4], 1;
    cp.async.cg.shared.global [%r1], [%d1], 16, %r2;
    cp.async.commit_group; cp.async.wait_group 0;
    ldmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 {%r6, %r7}, [%r1];
    mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r0, %r1, %r2, %r3}, {%r6, %r7}, {%r4}, {%r0, %r1, %r2, %r3};
    cvt.rn.f16x2.f32 %r1, %r2, 0f40490FDB;
    bar.sync 0;
$L__BB0_1:
    @%p1 bra $L__BB0_1;
    st.global.v4.f32 [%d0], {%r1, %r2, %r3, %r4};
    ret;
}
.section .debug_str { $L__info_string0: .b8 102,0 }
"#;

#[test]
fn the_text_to_spoil_is_valid() {
    load(VALID).expect("valid");
}

/// Loads; an error names a line of the text.
fn survives(text: &str) {
    if let Err(error) = load(text) {
        let lines = text.lines().count() as u32 + 1;
        assert!(error.line <= lines, "{error} in {lines} lines");
        assert!(!error.reason.is_empty());
    }
}

#[test]
fn truncated_texts_do_not_panic() {
    for end in 0..VALID.len() {
        survives(&VALID[..end]);
        survives(&VALID[end..]);
    }
}

#[test]
fn spoiled_texts_do_not_panic() {
    let bytes = VALID.as_bytes();
    let alphabet = b"%{}[]();:,.+-!|@_\"/*<>= \n09xfUrdbshmL$";
    let mut state = 1u64;
    let mut draw = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..20_000 {
        let mut text = bytes.to_vec();
        for _ in 0..=draw(4) {
            let at = draw(text.len());
            match draw(5) {
                0 => text[at] = alphabet[draw(alphabet.len())],
                1 => text.insert(at, alphabet[draw(alphabet.len())]),
                2 => {
                    text.remove(at);
                }
                // A stretch is lost, or comes twice.
                3 => {
                    let end = (at + draw(40)).min(text.len());
                    text.drain(at..end);
                }
                _ => {
                    let end = (at + draw(40)).min(text.len());
                    let stretch = text[at..end].to_vec();
                    let to = draw(text.len());
                    text.splice(to..to, stretch);
                }
            }
        }
        survives(&String::from_utf8(text).expect("still ASCII"));
    }
}
