# --- site: what makes collage-mpi and its MPI available -------------------------------------
@SETUP@
