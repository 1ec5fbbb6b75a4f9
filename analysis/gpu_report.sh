#!/usr/bin/env bash
# All that docs/networks.md owes of a GPU, in one folder, in under ten minutes on one GPU.
#
#   analysis/gpu_report.sh OUT                  on the GPU that CUDA sees first
#   analysis/gpu_report.sh OUT --device cpu     a small version, so that this cannot rot: a minute or two
#
# Writes OUT/report.md: the machine; the GPU's answers beside the CPU's and each way's time; singles
# of batch 1 and 9 beside a collage at 416 px, eager, as graphs and compiled; one batch at a time beside
# two; decoding of JPEGs; whole jobs of 2, 4 and 11 ranks on the one GPU with their proof. A part that
# fails or takes too long says so there and the others go on; the exit code is then 1. Needs
# collage-mpi[vision] and an MPI.
set -uo pipefail

out="${1:?the folder for the report}"
device=cuda
[[ "${2:-}" == --device ]] && device="${3:?cpu or cuda}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python}"
cli=("$python" -m collage_mpi)
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

case "$device" in
    cuda) slack=1 images=1800 batches=(1 4 16) beside=9 networks=(--sides 3 4 5 --compile) calls=40 slots=(1 8 64) ranks=(2 4 11) ;;
    cpu) slack=5 images=36 batches=(1) beside=2 networks=(--sides 3) calls=1 slots=(1) ranks=(2) ;;
    *)
        echo "gpu_report: --device is $device; it needs cpu or cuda" >&2
        exit 2
        ;;
esac
if [[ -e "$out" ]]; then
    echo "gpu_report: $out exists: name another folder, or remove it" >&2
    exit 2
fi
mkdir -p "$out" || exit 2
echo "# One machine's report, device $device" >"$out/report.md"
data="$("$python" -c 'from importlib.resources import files; print(files("collage_mpi") / "data")')"
failed=0

part() { # title, seconds it may take (575 in all), command
    local title=$1 limit=$2 began=$SECONDS code=0
    shift 2
    echo "gpu_report: $title" >&2
    {
        printf '\n## %s\n\n```\n' "$title"
        timeout -k 10 $((limit * slack)) "$@" 2>&1 || code=$?
        printf '```\n\n%d s' $((SECONDS - began))
        case $code in
            0) echo ;;
            124) echo "; CUT OFF" ;;
            *) echo "; FAILED with code $code" ;;
        esac
    } >>"$out/report.md"
    [[ $code == 0 ]] || failed=1
}

[[ $device == cpu ]] || part "The GPU" 10 \
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
part "The software" 20 "$python" -c 'import torch; from importlib.metadata import version
print("torch", torch.__version__, "torchvision", version("torchvision"), "CUDA", torch.version.cuda)'
part "Answers beside the CPU's float32, and times" 110 "$python" "$here/inference_speed.py" \
    --device "$device" --images "$images" --batches "${batches[@]}" --calls "$calls"
part "Batch 1, batch $beside and a collage at 416 px" 150 "$python" "$here/preset_speed.py" \
    --family reference --batches 1 "$beside" --calls "$calls" --device "$device" "${networks[@]}"
part "One batch at a time beside two" 50 "$python" "$here/two_slots.py" \
    --device "$device" --batches "${slots[@]}" --calls "$calls"
part "Decoding JPEGs" 40 "$python" "$here/decode_speed.py" --device "$device" --calls "$calls"
for n in "${ranks[@]}"; do # 11 ranks are side 3 with its collage rank; fewer hold singles alone
    scheme=(--scheme none --singles $((n - 1)))
    ((n == 11)) && scheme=(--scheme collage --confidence 0)
    part "A job of $n ranks" 50 "${cli[@]}" launch -n "$n" -- run --device "$device" \
        --shards "$data/fashion_demo.h5" --single "$data/fashion_single.safetensors" \
        --collage "$data/fashion_collage_side3.safetensors" --limit "$images" \
        --out "$out/ranks$n" "${scheme[@]}"
    part "Its proof" 15 "${cli[@]}" verify "$out/ranks$n"
done
echo "gpu_report: $out/report.md" >&2
exit $failed
