#!/usr/bin/env bash
# Check and measure mtsp on one GPU, in one call of less than ten minutes:
#
#   bash tools/bench/gpu.sh [OUT]          # OUT: folder for the output (default: runs/gpu)
#   QUICK=1 bash tools/bench/gpu.sh        # small sizes; also runs without a GPU, to test this script
#
# First correctness: CUDA against the CPU, then whole runs in fp32, bf16, fp16 and compiled, in one process of NCCL, and
# sharded by FSDP2. Then images per second and memory of EncNet-50 at 480x480 and SegFlow with ResNet-101 at 480x854, and
# what the regularizer costs of a step. A part that fails is named at the end, and the rest still runs.
set -u
cd "$(dirname "$0")/../.."
out=${1:-runs/gpu}
python=${PYTHON:-python}
quick=${QUICK:+--quick}
mkdir -p "$out"
failed=()
gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
if [ "$gpu" = 0 ]; then
  [ -n "$quick" ] || { echo "no GPU: set QUICK=1 to test this script without one" >&2; exit 1; }
  export ACCELERATE_USE_CPU=true
fi

part() {  # part NAME SECONDS COMMAND...: run a command with a time limit, and keep its output
  local name=$1 limit=$2 left=$((580 - SECONDS))
  shift 2
  echo "== $name"
  limit=$((limit < left ? limit : left > 1 ? left : 1))
  [ -z "$quick" ] || limit=3600  # a CPU that is busy with other work may be slow
  if ! timeout "$limit" "$@" 2>"$out/$name.log" | tee "$out/$name.txt"; then
    failed+=("$name")
    tail -n 5 "$out/$name.log"
  fi
}

set -o pipefail
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null || true
part correctness 100 "$python" tools/bench/gpu/checks.py

data=$out/data
[ -d "$data/DAVIS" ] || "$python" tools/prepare_data.py synthesize davis --root "$data/DAVIS" --clips 6 --seed 1 \
  --size 128x192 >"$out/data.log" 2>&1
run() {  # run NAME SETTINGS...: train a small SegFlow for some steps and print its results
  local name=$1
  shift
  rm -rf "$out/$name"
  part "$name" 60 "${launch[@]}" tools/train.py --config configs/demo_source.yaml --run-dir "$out/$name" \
    "data={davis: {dataset: {name: davis, root: $data/DAVIS}, augment: {preset: segflow, resize: [128, 192]}}}" \
    train.steps=6 "train.stages=[{steps: 6, batch_size: {davis: 4}}]" "tasks={segmentation: {}}" \
    "evaluation={data: [davis], at_start: false}" train.workers=2 tracking.images=0 "$@"
  [ ! -f "$out/$name/results.json" ] || "$python" -c '
import json, sys
found = json.load(open(sys.argv[1]))["davis"]
print(", ".join(f"{key} {found[key]:.4f}" for key in ("J_mean", "iou", "pixel_accuracy")))' "$out/$name/results.json"
}
launch=("$python")
run fp32
run bf16 train.precision=bf16
[ "$gpu" = 0 ] || run fp16 train.precision=fp16
[ -n "$quick" ] || run compiled train.compile=true train.precision=bf16
launch=("$python" -m torch.distributed.run --standalone --nproc_per_node 1)
run one_process_group
if [ "$gpu" = 1 ]; then
  launch=(accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 1)
  run fsdp2
fi

part encnet 120 "$python" tools/bench/encnet.py --only step --rounds 2 ${quick:+$quick}
part segflow 160 "$python" tools/bench/step.py --rounds 2 --limit 140 ${quick:+$quick}
part regularizers 60 "$python" tools/bench/regularizers.py --networks resnet50 ${quick:+$quick}

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]} (see $out)"
  exit 1
fi
echo "all parts passed; their output is in $out"
