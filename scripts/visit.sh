#!/usr/bin/env bash
# A visit to a GPU machine that has no cargo: what runs there is made here and carried.
#
#   scripts/visit.sh pack [FOLDER]       here: programs, tests, benches and golden cases in FOLDER
#                                        (visit/), at most 50 MB
#   FOLDER/visit.sh run [STEP...]        there: every step, or those named; logs and numbers in $OUT
#   scripts/visit.sh summary BACK        here: docs/gpu.md from what came back
#   scripts/visit.sh kernels-of OP       the kernels that a node of the graph launches
#   scripts/visit.sh dry-run             here: all of it from an empty folder, the virtual machine in
#                                        place of the card; changes nothing
#
# run takes VISIT_DEVICE (cuda:0), and VISIT_SHORT=1 for the least of each step. pack takes
# VISIT_CARGO, the profile's option (--release), and CROSSTUNE_GOLDENS.
set -euo pipefail

steps="doctor conformance kernels golden towers train benches steps torch ncu"
tests="conformance kernels device device_steps device_towers"
benches="ops"
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
    if [ -e "$folder" ] && [ ! -f "$folder/commit.txt" ] && ! rmdir "$folder" 2>/dev/null; then
        echo "pack: $folder has no commit.txt, so pack did not make it; expected a new folder" >&2
        exit 1
    fi
    rm -rf "$folder"
    mkdir -p "$folder/bin"
    git describe --always --dirty --abbrev=12 >"$folder/commit.txt" 2>/dev/null || echo unknown >"$folder/commit.txt"
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
    objdump -T "$folder"/bin/* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1 | cut -d _ -f 2 >"$folder/glibc.txt"
    if [ -n "${CROSSTUNE_GOLDENS:-}" ]; then
        pack_goldens "${CROSSTUNE_GOLDENS%/}"
    else
        echo "pack: no CROSSTUNE_GOLDENS, so the golden step will be left out" >&2
    fi
    cp scripts/visit.sh scripts/torch_step.py "$folder/"
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

# pack_goldens GOLDENS: the golden cases and, beside them, the limits that PyTorch's f16 sets.
pack_goldens() {
    local noise="$1_f16_noise.json"
    for name in "$1/manifest.json" "$noise"; do
        [ -f "$name" ] || { echo "pack: CROSSTUNE_GOLDENS: $name is absent" >&2; exit 1; }
    done
    mkdir -p "$folder/goldens"
    cp -r "$1" "$noise" "$folder/goldens/"
    # They may have been copied from where nothing can be written.
    chmod -R u+w "$folder/goldens"
    # Images of another command's tests.
    rm -f "$folder"/goldens/*/{bert,preprocess}_*
}

# step NAME SECONDS COMMAND...: runs it, whatever comes of it; one line in steps.tsv. To pass, its output
# must also hold the pattern $expect and not the pattern $refuse, where they are given.
step() {
    local name="$1" seconds="$2" began result=passed
    shift 2
    began=$(date +%s)
    echo "== $name: $*" | tee -a "$OUT/log.txt"
    timeout "$seconds" "$@" >"$OUT/.step" 2>&1 || result="failed ($?)"
    if [ "$result" = passed ] && [ -n "${expect:-}" ] && ! grep -qE -e "$expect" "$OUT/.step"; then
        result="failed (printed nothing like: $expect)"
    fi
    if [ "$result" = passed ] && [ -n "${refuse:-}" ] && grep -qE -e "$refuse" "$OUT/.step"; then
        result="failed (printed: $refuse)"
    fi
    cat "$OUT/.step" >>"$OUT/log.txt"
    printf '%s\t%s\t%s\n' "$name" "$result" "$(($(date +%s) - began))" | tee -a "$OUT/steps.tsv"
    [ "$result" = passed ] || { tail -n 40 "$OUT/.step"; return 1; }
}

left_out() {
    printf '%s\tleft out: %s\t0\n' "$1" "$2" | tee -a "$OUT/steps.tsv"
}

# run_tests NAME SECONDS PROGRAM...: a step of a test program, which passes if a test ran.
run_tests() {
    expect='^test result: ok\. [1-9]' step "$@"
}

# keep_json NAME: the line of JSON that the step printed.
keep_json() {
    mkdir -p "$OUT/runs"
    grep '^{' "$OUT/.step" >"$OUT/runs/$1.json"
}

# forget NAME: what an earlier run left of the step.
forget() {
    sed -i "/^$1[-\t]/d" "$OUT/steps.tsv"
    rm -f "$OUT/runs/$1.json" "$OUT/runs/$1"-*.json
    case "$1" in
        doctor) rm -f "$OUT/doctor.json" ;;
        benches) rm -f "$OUT/ops.txt" ;;
        steps) rm -rf "$OUT/profile" "$OUT/profile.json" ;;
        ncu) rm -f "$OUT/ncu.txt" ;;
    esac
}

# The driver's version in a line, or that there is none.
driver() {
    head -n 1 /proc/driver/nvidia/version 2>/dev/null && return
    echo "NVRM version: $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" |
        grep '[0-9]' || echo "no NVIDIA driver"
}

# at_least VERSION LEAST
at_least() {
    [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# What the programs need of the machine, told before anything runs.
check_machine() {
    local found needed
    needed=$(cat glibc.txt)
    found=$(getconf GNU_LIBC_VERSION 2>/dev/null | grep -o '[0-9.]*$' || true)
    at_least "${found:-0}" "$needed" || { echo "run: glibc: found ${found:-none}, expected $needed or later" >&2; exit 1; }
    [ "$device" != vm ] || return 0
    found=$(driver | grep -oE '[0-9]+\.[0-9.]+' | head -n 1 || true)
    at_least "${found:-0}" 580 || { echo "run: NVIDIA driver: found ${found:-none}, expected 580 or later" >&2; exit 1; }
}

# The programs, once and whole: the sum is written last.
unpack() {
    sha256sum --check --status bin/unpacked.txt 2>/dev/null && return
    rm -rf bin
    tar -xJf bin.tar.xz 2>/dev/null || python3 -c 'import tarfile; tarfile.open("bin.tar.xz").extractall()'
    sha256sum bin.tar.xz >bin/unpacked.txt
}

run() {
    [ -z "${OUT:-}" ] || OUT=$(realpath -m "$OUT")
    cd "$(dirname "${BASH_SOURCE[0]}")"
    export OUT="${OUT:-$PWD/out}"
    local device="${VISIT_DEVICE:-cuda:0}" short="${VISIT_SHORT:-}" wanted="${*:-$steps}" failed=0 name
    for name in $wanted; do
        case " $steps " in *" $name "*) ;; *) echo "no step $name; they are: $steps" >&2; exit 2 ;; esac
    done
    check_machine
    unpack
    mkdir -p "$OUT/.nothing"
    touch "$OUT/steps.tsv"
    # Tests take the virtual machine where no GPU is named; benches take it by its name.
    unset CROSSTUNE_TEST_DEVICE
    [ "$device" = vm ] || export CROSSTUNE_TEST_DEVICE="$device"
    export CROSSTUNE_BIN="$PWD/bin/crosstune" CRITERION_HOME="$OUT/.criterion" TMPDIR="${TMPDIR:-/tmp}"
    # What was carried and nothing else: unset, it would be a folder beside the checkout that built this.
    export CROSSTUNE_SHARED="$OUT/.nothing"
    unset CROSSTUNE_GOLDENS CROSSTUNE_CHECKPOINTS CROSSTUNE_TRACES
    for name in goldens/*/; do [ ! -d "$name" ] || export CROSSTUNE_GOLDENS="$PWD/${name%/}"; done
    { date -u +%F; driver; cat commit.txt; } >"$OUT/visit.txt"
    for name in $wanted; do
        forget "$name"
        "run_$name" || failed=1
    done
    rm -rf "$OUT/.step" "$OUT/.criterion" "$OUT/.nothing" "$OUT/.goldens"
    return $failed
}

run_doctor() {
    # Standard output alone is the report.
    # shellcheck disable=SC2016
    step doctor 120 bash -o pipefail -c 'bin/crosstune doctor --device "$0" --json | tee "$1"' \
        "$device" "$OUT/doctor.json" || { rm -f "$OUT/doctor.json"; return 1; }
}

run_conformance() {
    run_tests conformance 300 bin/conformance --nocapture
}

run_kernels() {
    # Limits of what the compiler made need the compiler, and no card.
    # shellcheck disable=SC2086
    run_tests kernels 540 bin/kernels ${short:+layer_norm::} --skip limits:: --skip report:: --skip worse::
}

run_golden() {
    [ -n "${CROSSTUNE_GOLDENS:-}" ] || { left_out golden "no golden cases were carried"; return 0; }
    local goldens="$CROSSTUNE_GOLDENS"
    if [ -n "$short" ]; then
        goldens="$OUT/.goldens/one"
        one_case "$goldens"
    fi
    CROSSTUNE_GOLDENS="$goldens" refuse=SKIPPED run_tests golden 540 bin/device_steps --nocapture
}

# CLIP's towers, for pictures and texts, against the CPU.
run_towers() {
    run_tests towers 300 bin/device_towers ${short:+pictures} --nocapture
}

# one_case FOLDER: the first of the golden cases alone, as links.
one_case() {
    rm -rf "$1"
    mkdir -p "$1"
    ln -s "$CROSSTUNE_GOLDENS"/* "$1/"
    ln -sf "${CROSSTUNE_GOLDENS}_f16_noise.json" "$1_f16_noise.json"
    rm "$1/manifest.json"
    python3 -c '
import json, sys
all = json.load(open(sys.argv[1]))
all["cases"] = all["cases"][:1]
json.dump(all, open(sys.argv[2], "w"))
' "$CROSSTUNE_GOLDENS/manifest.json" "$1/manifest.json"
}

# Trains from the command line on the card and on the CPU, in a world that the test makes.
run_train() {
    run_tests train 540 bin/device --nocapture ${short:+learns}
}

run_benches() {
    local short_of=(--bench) result=0
    [ -z "$short" ] || short_of=(--test linear)
    CROSSTUNE_TEST_DEVICE="$device" step benches 560 bin/ops "${short_of[@]}" || result=1
    # The table that ends it; of benches that did not end, what they printed.
    sed -n '/^on .*ceilings:/,$p' "$OUT/.step" >"$OUT/ops.txt"
    [ -s "$OUT/ops.txt" ] || cp "$OUT/.step" "$OUT/ops.txt"
    return $result
}

run_steps() {
    local size=large batch=105
    [ -z "$short" ] || { size=tiny batch=2; }
    CROSSTUNE_TEST_DEVICE="$device" step steps 300 bin/bench_step train --size $size --batch $batch \
        --steps 3 --profile "$OUT/profile" || return 1
    keep_json steps
    mv "$OUT/profile/profile.json" "$OUT/"
    rm -r "$OUT/profile"
    for batch in $([ -z "$short" ] && echo 5 28 105 || echo 2); do
        CROSSTUNE_TEST_DEVICE="$device" step "steps-$batch" 300 bin/bench_step train --size $size \
            --batch "$batch" --steps 10 --warmup 3 || return 1
        keep_json "steps-$batch"
    done
}

# PyTorch on the same steps, where it is.
run_torch() {
    local size=large on="$device" batch
    python3 -c 'import torch' 2>/dev/null || { left_out torch "no PyTorch"; return 0; }
    if [ "$device" = vm ]; then
        on=cpu
    elif ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        left_out torch "PyTorch sees no GPU"
        return 0
    fi
    [ -z "$short" ] || size=tiny
    for batch in $([ -z "$short" ] && echo 5 28 105 || echo 2); do
        step "torch-$batch" 300 python3 torch_step.py train --size $size --batch "$batch" --steps 10 \
            --warmup 3 --device "$on" || return 1
        keep_json "torch-$batch"
    done
}

# kernels_of OP: the kernels that a node launches, as `a|b`; nothing where it launches none.
kernels_of() {
    local name
    case "$1" in
        ZeroGrads | GradNorm) ;; # a fill, and what AdamStep's kernels measure
        AdamStep) echo "adam_partials_f32|adam_factors_f32|adam_step_f32" ;;
        Linear) echo "lora_project_f16|linear_forward_f16|linear_forward_small_f16" ;;
        InputGrad) echo "linear_backward_f16|linear_backward_small_f16" ;;
        WeightGrad) echo "linear_backward_weight_f32|linear_backward_bias_f32" ;;
        LoraGrad) echo "lora_project_backward_f16|lora_backward_params_f16" ;;
        EmbeddingGrad)
            echo "embedding_again_f16|embedding_backward_table_f32|$(kernels_of LayerNormGrad)|$(kernels_of Add)"
            ;;
        LayerNorm) echo "layer_norm_forward_f16|layer_norm_forward_wide_f16" ;;
        LayerNormGrad) echo "layer_norm_backward_f16|layer_norm_backward_frozen_f16|layer_norm_backward_params_f32" ;;
        Attention) echo "attention_forward_32_f16|attention_forward_64_f16|attention_forward_128_f16" ;;
        AttentionGrad)
            echo "attention_backward_queries_32_f16|attention_backward_queries_64_f16|attention_backward_queries_128_f16|attention_backward_32_f16|attention_backward_64_f16|attention_backward_128_f16"
            ;;
        Contrastive) echo "contrastive_forward_f16|contrastive_loss_f32" ;;
        Mse) echo mse_forward_f32 ;;
        PhmGrad) echo "phm_backward_f16|phm_backward_params_f32" ;;
        *)
            # L2Norm is l2_norm_forward_f16, L2NormGrad l2_norm_backward_f16.
            name=$(sed 's/\(.\)\([A-Z]\)/\1_\2/g' <<<"$1" | tr '[:upper:]' '[:lower:]')
            case "$name" in *_grad) echo "${name%_grad}_backward_f16" ;; *) echo "${name}_forward_f16" ;; esac
            ;;
    esac
}

# The kernels of the op that the profile shows to take longest.
run_ncu() {
    command -v ncu >/dev/null || { left_out ncu "no ncu"; return 0; }
    [ "$device" != vm ] || { left_out ncu "no card"; return 0; }
    [ -f "$OUT/profile.json" ] || { left_out ncu "no profile: run the step steps first"; return 0; }
    local op kernels=
    for op in $(python3 -c '
import json, sys
print(*(line["op"] for line in json.load(open(sys.argv[1]))["ops"]))
' "$OUT/profile.json"); do
        kernels=$(kernels_of "$op")
        [ -z "$kernels" ] || break
    done
    # Where no kernel was met, ncu says so and ends well.
    expect="^ *($kernels)[ (]" step ncu 300 ncu --set basic --launch-count 3 \
        --kernel-name "regex:^($kernels)\$" \
        bin/bench_step train --size large --batch 28 --steps 1 --warmup 0 || return 1
    cp "$OUT/.step" "$OUT/ncu.txt"
}

# own_lengths VISIT BACK: whether the steps that came back had the tokens that they have where nothing but
# an empty folder can be read.
own_lengths() {
    local found want
    mkdir -p "$1/nothing"
    found=$(grep -o '"real_tokens":[0-9.]*' "$2/runs/steps-2.json")
    want=$(CROSSTUNE_SHARED="$1/nothing" CROSSTUNE_TEST_DEVICE=vm "$1/bin/bench_step" train --size tiny --batch 2 \
        --steps 10 --warmup 3 | grep -o '"real_tokens":[0-9.]*')
    if [ "$found" != "$want" ]; then
        echo "dry-run: steps had $found, expected $want: files were read that were not carried" >&2
        exit 1
    fi
}

dry_run() {
    local here="$PWD" before
    # Not local: the trap needs it.
    empty=$(mktemp -d)
    trap 'rm -rf "$empty"' EXIT
    before=$(sha256sum docs/gpu.md)
    VISIT_CARGO="${VISIT_CARGO-}" pack "$empty/visit"
    # Lengths of captions that nothing may read.
    mkdir -p "$empty/decoy/tools"
    echo '{"train.de": [40, 40], "train.en": [40, 40]}' >"$empty/decoy/tools/bench_lengths.json"
    # Nothing of this checkout, no cargo: what was carried alone.
    (cd "$empty" && env -i HOME="$empty" PATH=/usr/local/bin:/usr/bin:/bin VISIT_DEVICE=vm VISIT_SHORT=1 \
        CROSSTUNE_SHARED="$empty/decoy" OUT="$empty/back" bash visit/visit.sh run)
    own_lengths "$empty/visit" "$empty/back"
    if [ -n "${CROSSTUNE_GOLDENS:-}" ] && ! grep -q $'^golden\tpassed' "$empty/back/steps.tsv"; then
        echo "dry-run: golden cases were carried, but their step did not run" >&2
        exit 1
    fi
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
    kernels-of) kernels_of "${2:?the name of an op}" ;;
    dry-run) dry_run ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
