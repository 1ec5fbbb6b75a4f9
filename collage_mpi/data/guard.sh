#!/bin/sh
# Beside `collage-mpi launch`, for the case that it is killed: sh guard.sh NAME=VALUE SECONDS
# launch says a line when its job is over. When there is none its end of the pipe has closed, and
# the job has so long to end by itself; then all processes that were started with NAME=VALUE in
# their environment are killed, stopped ones too.
trap '' HUP INT TERM USR1 USR2
read -r _ && exit 0
left=$2
while [ "$left" -gt -10 ]; do
    holders=$(cd /proc && grep -lszxF -e "$1" [0-9]*/environ)
    [ -z "$holders" ] && exit 0
    if [ "$left" -le 0 ]; then
        for holder in $holders; do kill -KILL "${holder%/environ}"; done
    fi
    left=$((left - 1))
    sleep 1
done
