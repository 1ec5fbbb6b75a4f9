# --- site: what makes collage-mpi and its MPI available -------------------------------------
{{ s.setup | join("\n") }}
