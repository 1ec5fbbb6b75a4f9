"""The job on its ranks: rank 0 and the workers.

How a job goes:

1. Rank 0 checks settings, world, shards and networks against each other, and takes a number in the
   output folder (`ledger/jobs`), before any rank loads anything. A job with other settings than
   the run's is refused.
2. `welcome` tells every rank its kinds, networks, shapes, device policy and how its networks wait.
   Each rank loads its networks, warms up and answers `hello`, or reports an error, which rank 0
   prints. Unless `--pixels` is `rank0`, rank 0 first sends `shards`, a list of its shards. A rank
   whose host has other shards, or none, reports this. With `--pixels auto` it is then sent pixels.
3. The service times of one single and one collage rank are measured one after the other, while all
   other ranks wait (three rounds). The core goes by the ratio of the two times. `--batch auto`
   then times 1, 2, 4 ... groups (`settings/batches`); all ranks try the chosen batch, so that no
   GPU captures a graph during the job. Then the job makes `run.N.json`, if it is the first, and
   begins its share.
4. The core gets events until `Finish`, and ranks get `end`. Images that other jobs took over
   meanwhile are left out when they are read. A job that has nothing to do waits until the run is
   complete or images come back from a job that died. After a minute it lets idle ranks go, but one
   of each kind (`release`): the core gives them up as lost. It commits its last rows and gives
   back what it still holds. The summary is made of committed rows only.
5. `stop` tells the exit code that all ranks use.

Teams. One coordinator feeds some tens of ranks. With `--teams G` the world is split into G equal
teams of consecutive ranks. Each team is a job, with its own number, clock, task numbers and rows,
and knows nothing of the others but the folder. Transport, monitors and rows use the rank numbers
of the whole world.

`job/teams` holds what is common: rank 0 prints, passes on a signal (`halt`), hears how each other
team ended (`ended(code, why)`) and tells all the exit code (`stop`). Rank 0 watches the other
coordinators as these watch their workers; the ranks of a lost coordinator leave, and the other
jobs take over its images by the ledger. If rank 0 is lost, the other teams go on where MPI lets
them.

`began_ns` of each session (Unix time) aligns the clocks of jobs; it decides nothing. Readers see
jobs only as sessions. Numbers of groups are counted within a session.
"""
