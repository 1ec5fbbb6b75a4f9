#!/bin/sh
# Beside `collage-mpi launch`: sh guard.sh NAME=VALUE SECONDS [SCRATCH [SHM [TEMP [PROC]]]]
# launch says a line when its job is over: "over", or "sweep" if MPI never came up. When there is no
# line launch was killed, its end of the pipe has closed, and the job has so long to end by itself.
# Then all processes that were started with NAME=VALUE in their environment are killed, stopped ones
# too, and launch's folder SCRATCH goes.
# After a killed launch or a start that failed nobody knows what the ranks had in shared memory. It is
# what has appeared there meanwhile, is this user's, and nobody has open. Where this shell sees all
# processes of the machine, what earlier launches left goes too; in a container it does not see those
# of others that share /dev/shm and may be starting MPI.
# MPICH's launcher writes a map of the machine to TEMP, which ranks read while they start MPI. A map
# that has appeared meanwhile is nobody's once no such launcher of this user lives. A map that is
# older than any start takes goes first.
# shellcheck disable=SC2046,SC2086  # the names that segments and maps print have no blanks
trap '' HUP INT TERM USR1 USR2
shm=${4:-/dev/shm} temp=${5:-/tmp} proc=${6:-/proc}
segments() {
    find "$shm" -maxdepth 1 -user "$(id -u)" \
        '(' -name 'mpich_shm_*' -o -name 'sm_segment.*' -o -name 'ucx_shm_posix_*' ')' 2>/dev/null
}
maps() { find "$temp" -maxdepth 1 -user "$(id -u)" -name 'hydra_hwloc_xmlfile_*' "$@" 2>/dev/null; }
new_maps() {
    for map in $(maps); do
        case $others in *" $map "*) ;; *) echo "$map" ;; esac
    done
}
remove() {
    for file; do
        case $before in *" $file "*) continue ;; esac
        # Opened, then mapped, then closed: looked for in this order, it is not missed.
        [ -z "$(find /proc/[0-9]*/fd -lname "$file" 2>/dev/null)" ] &&
            ! cat /proc/[0-9]*/maps 2>/dev/null | grep -qF " $file" && rm -f "$file"
    done
}
maps -mmin +15 -exec rm -f {} +
others=" $(maps | tr '\n' ' ')"
before=
[ "$(readlink "$proc/self/ns/pid")" = 'pid:[4026531836]' ] && remove $(segments)  # PROC_PID_INIT_INO
before=" $(segments | tr '\n' ' ')"
read -r last
left=$2
while [ -z "$last" ] && [ "$left" -gt -10 ]; do
    holders=$(cd /proc && grep -lszxF -e "$1" [0-9]*/environ)
    [ -z "$holders" ] && last=sweep && case $3 in */collage-mpi-launch-*) rm -rf "$3" ;; esac
    [ "$left" -le 0 ] && for holder in $holders; do kill -KILL "${holder%/environ}"; done
    left=$((left - 1))
    [ -n "$last" ] || sleep 1
done
[ "$last" = sweep ] && remove $(segments)
left=$(new_maps)
[ -n "$left" ] || exit 0
find "$proc" -maxdepth 2 -path '*/[0-9]*/comm' -user "$(id -u)" -exec \
    grep -qsx -e 'mpi[re].*' -e hydra_pmi_proxy {} ';' -print 2>/dev/null | grep -q . ||
    rm -f $left
exit 0
