# What comes after the script's name goes to the command as it is, e.g. --scheme none.
# In front of sbatch CM_SHARDS, CM_SINGLE, CM_COLLAGE, CM_OUT (an earlier job's: go on), CM_SIDE,
# CM_SINGLES, CM_COLLAGE_RANKS, CM_LAUNCHER, CM_VENV=... replace what is below.
{% if not het %}
# CM_STAGE=/dev/shm copies the input to each node first.
{% endif %}
