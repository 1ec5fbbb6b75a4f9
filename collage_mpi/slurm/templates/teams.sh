# --- teams: each has 1 + N + M ranks that follow each other, the first of them coordinates ----
teams=${CM_TEAMS:-{{ plan.teams }}}
set -- --teams "$teams" "$@"
