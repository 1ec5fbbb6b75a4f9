# --- run; pass the signal on; wait ------------------------------------------------------------
# The ranks write what they have and leave with 6. Not in the first 15 s: one that is still
# starting would die of the signal.
trap 'while ((SECONDS < 15)); do sleep 1; done; kill -USR2 "$job"' USR2
"${launch[@]}" "${words[@]}" &
job=$!
while wait "$job" && code=0 || code=$?; ((code == 140)); do :; done   # 140: woken by the signal
