#!/usr/bin/env bash
# Runs every test of the project. What the tests need and cargo does not bring is installed first:
# nvcc into .cuda/ (no GPU is needed), and, with the research data beside the checkout (../shared),
# real checkpoints into target/, made from hash-checked Python packages. Without that data, the tests
# that want it say that they were skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

shared="${CROSSTUNE_SHARED:-../shared}"
export CROSSTUNE_CHECKPOINTS="${CROSSTUNE_CHECKPOINTS:-$PWD/target/checkpoints}"

make_checkpoint() {
    local site="$PWD/target/python" failed=0
    if [ ! -d "$site/onnx" ]; then
        # --target needs neither a virtual environment nor write access to Python's own folders.
        python3 -m pip install --quiet --disable-pip-version-check --upgrade --target "$site" \
            numpy==2.2.6 safetensors==0.5.3 onnx==1.23.2
    fi
    for what in e5 vit; do
        PYTHONPATH="$site" python3 "$shared/tools/make_checkpoints.py" --only "$what" \
            --out "$CROSSTUNE_CHECKPOINTS" || failed=1
    done
    return $failed
}

made() {
    [ -f "$CROSSTUNE_CHECKPOINTS/$1/model.safetensors" ]
}

# Decodes pictures for a comparison; the test that wants it says where it is not.
if [ -d "$shared/data/images" ] && [ ! -d target/python/PIL ]; then
    python3 -m pip install --quiet --disable-pip-version-check --target target/python pillow==13.0.0 ||
        echo "WARNING: no Pillow could be installed"
fi

if made m-clip-e5-small && made vit-s14; then
    echo "using the checkpoints in $CROSSTUNE_CHECKPOINTS"
elif [ -f "$shared/tools/make_checkpoints.py" ]; then
    make_checkpoint || echo "WARNING: not every real checkpoint could be made; tests of the others are skipped"
else
    echo "no $shared: tests on research data and real weights are skipped, each saying so"
fi

# Arguments mean one run of cargo test, with them.
if [ $# -gt 0 ]; then
    exec cargo test --locked "$@"
fi

bash scripts/cuda.sh
cargo test --locked
# The feature adds modules and changes none of those tested above, so whole runs are not repeated
# with it: the library's own tests, the test files that name the feature, the examples in docs. The
# virtual machine's tests go with them: built apart, its dependencies would have fewer features, and
# all of it be compiled again.
cargo test --locked --features cuda --lib
with_feature=()
for file in $(grep -l 'feature = "cuda"' tests/*.rs) ptxvm/tests/*.rs; do
    with_feature+=(--test "$(basename "$file" .rs)")
done
both=(--locked --package crosstune --package ptxvm --features crosstune/cuda)
cargo test "${both[@]}" "${with_feature[@]}"
cargo test "${both[@]}" --doc
# Benches once, on tiny shapes, through the kernels; then a visit to a GPU machine, all but the GPU.
CROSSTUNE_TEST_DEVICE=vm cargo test "${both[@]}" --bench ops --bench step
goldens="$shared/goldens/open"
[ -d "$goldens" ] || goldens=""
CROSSTUNE_GOLDENS="${CROSSTUNE_GOLDENS:-$goldens}" bash scripts/visit.sh dry-run
