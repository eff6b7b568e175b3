#!/usr/bin/env bash
# Check and measure fedsim on one GPU in at most 8 minutes: bash benchmarks/gpu.sh [WHEELS]
#
# The machine needs torch, torchvision and NumPy. WHEELS is a folder of wheels for the rest, each with what it needs:
# pandas for connectivity and the speed of barriers, scipy for matching. What cannot be imported is left out, and the
# result says so. Results go to $OUT, or to benchmarks/results. The exit status is 1 if a check or a step failed.
set -eu
cd "$(dirname "$0")/.."
out="${OUT:-benchmarks/results}"
if [ $# -gt 0 ]; then
    more="$(mktemp -d)"
    # Without dependencies, as torch and NumPy are there: the folder has to hold all others.
    python3 -m pip install --quiet --no-index --no-deps --target "$more" "$1"/*.whl
    export PYTHONPATH="$more${PYTHONPATH:+:$PYTHONPATH}"
fi
failed=0
report() {
    echo "$1: failed with $2"
    failed=1
}
timeout 150 python3 benchmarks/gpu.py --out "$out" || report benchmarks/gpu.py $?
for name in training barriers; do
    timeout 160 python3 "benchmarks/$name.py" --device cuda --repeats 1 || report "benchmarks/$name.py" $?
    if [ -f "benchmarks/results/$name-cuda.json" ] && [ "$out" != benchmarks/results ]; then
        cp "benchmarks/results/$name-cuda.json" "$out"
    fi
done
exit "$failed"
