#!/bin/sh
# Beside `collage-mpi launch`: sh guard.sh NAME=VALUE SECONDS [FOLDER]
# launch says a line when its job is over. When there is none launch was killed, its end of the pipe
# has closed, and the job has so long to end by itself; then all processes that were started with
# NAME=VALUE in their environment are killed, stopped ones too.
# Of a job whose MPI never came up (the line is then "sweep") nobody knows what its ranks had in
# shared memory. It is what has appeared there meanwhile, is this user's, and nobody has open.
trap '' HUP INT TERM USR1 USR2
cd "${3:-/dev/shm}" 2>/dev/null || cd /   # where there is none nothing of ours is found
ours() {
    find "$PWD" -maxdepth 1 -user "$(id -u)" '(' -name 'mpich_shm_*' -o -name 'sm_segment.*' ')'
}
before=" $(ours | tr '\n' ' ')"
sweep() {
    for file in $(ours); do
        case $before in *" $file "*) continue ;; esac
        # Opened, then mapped, then closed: looked for in this order, it is not missed.
        [ -z "$(find /proc/[0-9]*/fd -lname "$file" 2>/dev/null)" ] &&
            ! cat /proc/[0-9]*/maps 2>/dev/null | grep -qF " $file" && rm -f "$file"
    done
    exit 0
}
read -r last && { [ "$last" = sweep ] && sweep; exit 0; }
left=$2
while [ "$left" -gt -10 ]; do
    holders=$(cd /proc && grep -lszxF -e "$1" [0-9]*/environ)
    [ -z "$holders" ] && sweep
    if [ "$left" -le 0 ]; then
        for holder in $holders; do kill -KILL "${holder%/environ}"; done
    fi
    left=$((left - 1))
    sleep 1
done
