#!/usr/bin/env bash
# A visit to a GPU machine that has no cargo: what runs there is made here and carried.
#
#   scripts/visit.sh pack [FOLDER]       here: programs, tests, benches and golden cases in FOLDER
#                                        (visit/), at most 50 MB
#   FOLDER/visit.sh run [STEP...]        there: every step, or those named; logs and numbers in $OUT
#   scripts/visit.sh summary BACK        here: docs/gpu.md from what came back
#   scripts/visit.sh dry-run             here: all of it from an empty folder, the virtual machine in
#                                        place of the card; changes nothing
#
# run takes VISIT_DEVICE (cuda:0), and VISIT_SHORT=1 for the least of each step. pack takes
# VISIT_CARGO, the profile's option (--release), and CROSSTUNE_GOLDENS.
set -euo pipefail

steps="doctor conformance kernels golden train benches steps torch ncu"
tests="conformance kernels device device_steps"
benches="ops step"
most=$((50 * 1000 * 1000))

# executables COMMAND...: builds by a command of cargo; prints "name executable" for each.
executables() {
    # A dry run takes what the tests have built.
    local profile="${VISIT_CARGO---release}"
    # shellcheck disable=SC2086
    cargo "$1" $profile "${@:2}" --locked --package crosstune --package ptxvm --features crosstune/cuda \
        --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    made = json.loads(line)
    # ptxvm has tests of the same names.
    if made.get("executable") and not made["manifest_path"].endswith("ptxvm/Cargo.toml"):
        print(made["target"]["name"], made["executable"])
'
}

pack() {
    local folder="${1:-visit}" targets=() name file
    rm -rf "$folder"
    mkdir -p "$folder/bin"
    for name in $tests; do targets+=(--test "$name"); done
    for name in $benches; do targets+=(--bench "$name"); done
    # With a test target cargo builds the program that it runs.
    executables test --no-run "${targets[@]}" >"$folder/made.txt"
    executables build --example bench_step >>"$folder/made.txt"
    while read -r name file; do
        strip -o "$folder/bin/$name" "$file"
    done <"$folder/made.txt"
    rm "$folder/made.txt"
    for name in crosstune bench_step $tests $benches; do
        [ -x "$folder/bin/$name" ] || { echo "pack: $name was not built" >&2; exit 1; }
    done
    local goldens="${CROSSTUNE_GOLDENS:-}"
    if [ -d "$goldens" ]; then
        mkdir -p "$folder/goldens"
        cp -r "$goldens" "$folder/goldens/"
        # The limits that its kernels' noise sets lie beside it.
        cp "${goldens%/}_f16_noise.json" "$folder/goldens/" 2>/dev/null || true
        # Images of another command's tests.
        rm -f "$folder"/goldens/*/{vit,bert,preprocess}_*
    else
        echo "pack: no CROSSTUNE_GOLDENS, so the golden step will be left out" >&2
    fi
    cp scripts/visit.sh scripts/torch_step.py "$folder/"
    git describe --always --dirty --abbrev=12 >"$folder/commit.txt" 2>/dev/null || echo unknown >"$folder/commit.txt"
    # The programs hold the same library: a dictionary as large as most of them finds that.
    tar -C "$folder" -c bin | xz -T1 --lzma2=preset=1,dict=128MiB >"$folder/bin.tar.xz"
    rm -r "$folder/bin"
    local bytes
    bytes=$(du -sb "$folder" | cut -f1)
    if [ "$bytes" -gt "$most" ]; then
        echo "pack: $folder has $bytes bytes, expected at most $most" >&2
        exit 1
    fi
    echo "packed $folder: $bytes bytes"
}

# step NAME SECONDS COMMAND...: runs it, whatever comes of it; one line in steps.tsv.
step() {
    local name="$1" seconds="$2" began result
    shift 2
    began=$(date +%s)
    echo "== $name: $*" | tee -a "$OUT/log.txt"
    if timeout "$seconds" "$@" >"$OUT/.step" 2>&1; then result=passed; else result="failed ($?)"; fi
    cat "$OUT/.step" >>"$OUT/log.txt"
    printf '%s\t%s\t%s\n' "$name" "$result" "$(($(date +%s) - began))" | tee -a "$OUT/steps.tsv"
    [ "$result" = passed ] || { tail -n 40 "$OUT/.step"; return 1; }
}

left_out() {
    printf '%s\tleft out: %s\t0\n' "$1" "$2" | tee -a "$OUT/steps.tsv"
}

run() {
    cd "$(dirname "${BASH_SOURCE[0]}")"
    export OUT="${OUT:-$PWD/out}"
    mkdir -p "$OUT"
    [ -d bin ] || tar -xJf bin.tar.xz 2>/dev/null || python3 -c 'import tarfile; tarfile.open("bin.tar.xz").extractall()'
    local device="${VISIT_DEVICE:-cuda:0}" short="${VISIT_SHORT:-}" wanted="${*:-$steps}" failed=0 name
    # Tests take the virtual machine where no GPU is named; benches take it by its name.
    unset CROSSTUNE_TEST_DEVICE
    [ "$device" = vm ] || export CROSSTUNE_TEST_DEVICE="$device"
    export CROSSTUNE_BIN="$PWD/bin/crosstune" CRITERION_HOME="$OUT/.criterion" TMPDIR="${TMPDIR:-/tmp}"
    unset CROSSTUNE_SHARED CROSSTUNE_GOLDENS
    for name in goldens/*/; do [ -d "$name" ] && export CROSSTUNE_GOLDENS="$PWD/${name%/}"; done
    # Date, driver, commit.
    { date -u +%F; head -n 1 /proc/driver/nvidia/version 2>/dev/null || echo "no NVIDIA driver"; cat commit.txt; } >"$OUT/visit.txt"
    for name in $wanted; do
        case " $steps " in *" $name "*) "run_$name" || failed=1 ;; *) echo "no step $name; they are: $steps" >&2; exit 2 ;; esac
    done
    rm -rf "$OUT/.step" "$OUT/.criterion"
    return $failed
}

run_doctor() {
    step doctor 120 bin/crosstune doctor --device "$device" --json || return 1
    cp "$OUT/.step" "$OUT/doctor.json"
}

run_conformance() {
    step conformance 300 bin/conformance --nocapture
}

run_kernels() {
    # shellcheck disable=SC2086
    # Limits of what the compiler made need the compiler, and no card.
    step kernels 540 bin/kernels ${short:+layer_norm::} --skip limits:: --skip report:: --skip worse::
}

run_golden() {
    [ -n "${CROSSTUNE_GOLDENS:-}" ] || { left_out golden "no golden cases were carried"; return 0; }
    if [ -n "$short" ]; then one_case; fi
    step golden 540 bin/device_steps --nocapture
}

# The first of the golden cases alone.
one_case() {
    python3 -c '
import json, sys
path = sys.argv[1]
all = json.load(open(path))
all["cases"] = all["cases"][:1]
json.dump(all, open(path, "w"))
' "$CROSSTUNE_GOLDENS/manifest.json"
}

# Trains from the command line on the card and on the CPU, in a world that the test makes.
run_train() {
    step train 540 bin/device --nocapture ${short:+learns}
}

run_benches() {
    local short_of=(--bench)
    [ -z "$short" ] || short_of=(--test "linear|ceiling")
    CROSSTUNE_TEST_DEVICE="$device" step benches 560 bin/ops "${short_of[@]}" || return 1
    sed -n '/^on .*ceilings:/,$p' "$OUT/.step" >"$OUT/ops.txt"
}

run_steps() {
    local size=large batch=105
    [ -z "$short" ] || { size=tiny batch=2; }
    CROSSTUNE_TEST_DEVICE="$device" step steps 300 bin/bench_step train --size $size --batch $batch \
        --steps 3 --profile "$OUT/profile" || return 1
    grep '^{' "$OUT/.step" >>"$OUT/compare.jsonl"
    mv "$OUT/profile/profile.json" "$OUT/"
    rm -r "$OUT/profile"
    for batch in $([ -z "$short" ] && echo 5 28 105 || echo 2); do
        CROSSTUNE_TEST_DEVICE="$device" step "steps-$batch" 300 bin/bench_step train --size $size \
            --batch "$batch" --steps 10 --warmup 3 || return 1
        grep '^{' "$OUT/.step" >>"$OUT/compare.jsonl"
    done
}

# PyTorch on the same steps, where it is.
run_torch() {
    local size=large on=cuda batch
    python3 -c 'import torch' 2>/dev/null || { left_out torch "no PyTorch"; return 0; }
    [ "$device" != vm ] || on=cpu
    [ -z "$short" ] || size=tiny
    for batch in $([ -z "$short" ] && echo 5 28 105 || echo 2); do
        step "torch-$batch" 300 python3 torch_step.py train --size $size --batch "$batch" --steps 10 \
            --warmup 3 --device $on || return 1
        grep '^{' "$OUT/.step" >>"$OUT/compare.jsonl"
    done
}

# The kernels of the op that the profile shows to take longest.
run_ncu() {
    command -v ncu >/dev/null || { left_out ncu "no ncu"; return 0; }
    [ "$device" != vm ] || { left_out ncu "no card"; return 0; }
    [ -f "$OUT/profile.json" ] || { left_out ncu "no profile: run the step steps first"; return 0; }
    local kernel
    kernel=$(python3 -c '
import json, re, sys
op = json.load(open(sys.argv[1]))["ops"][0]["op"]
stems = {"InputGrad": "linear_input", "WeightGrad": "linear_weight", "LoraGrad": "lora", "AdamStep": "adam"}
stem = re.sub("(?<!^)([A-Z])", r"_\1", op).lower()
print(stems.get(op, re.sub("_grad$", "_backward", stem)))
' "$OUT/profile.json")
    step ncu 300 ncu --set basic --launch-count 3 --kernel-name "regex:$kernel" \
        bin/bench_step train --size large --batch 28 --steps 1 --warmup 0 || return 1
    cp "$OUT/.step" "$OUT/ncu.txt"
}

dry_run() {
    local here="$PWD" before
    # Not local: the trap needs it.
    empty=$(mktemp -d)
    trap 'rm -rf "$empty"' EXIT
    before=$(sha256sum docs/gpu.md)
    VISIT_CARGO="${VISIT_CARGO-}" pack "$empty/visit"
    # Nothing of this checkout, no cargo: what was carried alone.
    (cd "$empty" && env -i HOME="$empty" PATH=/usr/local/bin:/usr/bin:/bin VISIT_DEVICE=vm VISIT_SHORT=1 \
        OUT="$empty/back" bash visit/visit.sh run)
    python3 "$here/scripts/visit_summary.py" "$empty/back"
    [ "$before" = "$(sha256sum docs/gpu.md)" ] || { echo "dry-run: docs/gpu.md was changed" >&2; exit 1; }
    echo "dry run passed; docs/gpu.md is as it was"
}

case "${1:-}" in
    pack | dry-run | summary) cd "$(dirname "$0")/.." ;;
esac
case "${1:-}" in
    pack) pack "${2:-visit}" ;;
    run) shift && run "$@" ;;
    summary) python3 scripts/visit_summary.py "${2:?the folder that came back}" --write docs/gpu.md ;;
    dry-run) dry_run ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
