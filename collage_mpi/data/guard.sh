#!/bin/sh
# Beside `collage-mpi launch`: sh guard.sh NAME=VALUE SECONDS [SCRATCH [SHM [TEMP [PROC]]]]
# launch says a line when its job is over. When there is none launch was killed, its end of the pipe
# has closed, and the job has so long to end by itself; then all processes that were started with
# NAME=VALUE in their environment are killed, stopped ones too, and launch's folder SCRATCH goes.
# Of a job whose MPI never came up (the line is then "sweep") nobody knows what its ranks had in
# shared memory. It is what has appeared there meanwhile, is this user's, and nobody has open.
# MPICH's launcher writes a map of the machine to TEMP, which ranks read while they start MPI. Where
# the launcher was killed the map stays. It is nobody's once no such launcher of this user lives, or
# when it is older than any start takes. What earlier launches have left, and is as old, goes first;
# so do segments of any age that nobody has open, where this shell sees all processes of the machine.
# In a container that shares /dev/shm it does not see those of others, which may be starting MPI.
# shellcheck disable=SC2046  # the names that segments and maps print have no blanks
trap '' HUP INT TERM USR1 USR2
cd "${4:-/dev/shm}" 2>/dev/null || cd /   # where there is none nothing of ours is found
temp=${5:-/tmp} proc=${6:-/proc}
segments() {
    find "$PWD" -maxdepth 1 -user "$(id -u)" \
        '(' -name 'mpich_shm_*' -o -name 'sm_segment.*' -o -name 'ucx_shm_posix_*' ')' "$@"
}
maps() { find "$temp" -maxdepth 1 -user "$(id -u)" -name 'hydra_hwloc_xmlfile_*' "$@"; }
remove_segments() {
    for file; do
        case $before in *" $file "*) continue ;; esac
        # Opened, then mapped, then closed: looked for in this order, it is not missed.
        [ -z "$(find /proc/[0-9]*/fd -lname "$file" 2>/dev/null)" ] &&
            ! cat /proc/[0-9]*/maps 2>/dev/null | grep -qF " $file" && rm -f "$file"
    done
}
remove_own_maps() {
    [ $# -gt 0 ] || return
    find "$proc" -maxdepth 2 -path '*/[0-9]*/comm' -user "$(id -u)" -exec \
        grep -qsx -e 'mpi[re].*' -e hydra_pmi_proxy {} ';' -print 2>/dev/null | grep -q . && return
    for file; do
        case $before in *" $file "*) continue ;; esac
        rm -f "$file"
    done
}
there=" $(segments | tr '\n' ' ')$(maps | tr '\n' ' ')"
before=
sees_all() { [ "$(readlink "$proc/self/ns/pid")" = 'pid:[4026531836]' ]; }   # PROC_PID_INIT_INO
if sees_all; then remove_segments $(segments); else remove_segments $(segments -mmin +15); fi
maps -mmin +15 -exec rm -f {} +
before=$there
over() {
    remove_own_maps $(maps)
    exit 0
}
sweep() {
    remove_segments $(segments)
    over
}
read -r last && { [ "$last" = sweep ] && sweep; over; }
left=$2
while [ "$left" -gt -10 ]; do
    holders=$(cd /proc && grep -lszxF -e "$1" [0-9]*/environ)
    [ -z "$holders" ] && { case $3 in */collage-mpi-launch-*) rm -rf "$3" ;; esac; sweep; }
    if [ "$left" -le 0 ]; then
        for holder in $holders; do kill -KILL "${holder%/environ}"; done
    fi
    left=$((left - 1))
    sleep 1
done
