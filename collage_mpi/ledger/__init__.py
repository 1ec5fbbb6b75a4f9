"""One ledger for all jobs of a run: who does which positions, and which rows count.

`job/shared` uses it for jobs, `results/sole` for runs of one process, and `results/parts` reads
it.

Records. The positions of a run are cut into cells. `leases/START.GEN` is change GEN of the cell
that begins at START. A record holds the whole state of its cell: the parts that count (file, size,
CRC-32, positions, which of them are error rows, positions of the other rows), who holds which of
the other positions and by which threshold, the positions whose holders died (once, twice, three
times, more often), and the digest of record GEN-1. The positions of nobody are free. A cell in
which every position counts is closed. The run is complete when all cells are closed; `COMPLETE.N`
then names the digest of the last records.

The one operation. An owner reads the last record that it can see and proposes the next one. It
writes the text to a temporary file in the same folder, syncs it, and makes the name by link(2).
Taking, committing, giving back, taking over and splitting are this operation, also several at
once. After a link that failed for whatever reason the owner reads the name: the record there is
valid, whoever made it, and the owner goes on from what it still holds. A record that others could
not read, because it is too large, is not made. An owner is 128 random bits, so it knows its own
records. A row counts from the moment its record exists, and never stops to count. A record must
follow from the one before it: the same parts and perhaps more, new rows only of positions that
their owner held, no positions given to another owner, and none after the cell is closed. Anything
else is damage, told by the name of the file (exit code 4). Only a part that states its reason may
have rows of positions that count already. Readers take the last row of a position.

What the folder promises. A file that exists is seen as it is by who opens it. A name may be
believed missing for a minute, and a listing may be old. So listings are hints: they say which
cells are open and which owners live, and nothing is decided by what they lack. Who is told that a
name exists and does not see it waits. A folder may be full or read-only while beats, which are
written in place, get through. So a failed link counts as a failure until a link works again. Each
failure counts for the time since the one before, at most 16 s. After 600 s of failures the job
ends with exit code 3.

Packing. The first file of a cell is filled up to whole blocks of 64 bytes, and its last block is
blank. Who closes the cell writes there, in place, which record is the last and its digest, syncs
the file, and removes the records between. So who opens the first file, which is never removed,
sees whether the cell is packed. An owner that slept may then make a record under a name that is
free again. Such a record is void: whoever makes or reads a later record opens the first file
before it believes the record. (A rename over the first file would not do: NFS renames a file that
is open away before, and a host that dies between the two leaves the name empty.) A packed cell has
three files, and there are at most 4,096 cells.

Files of leases. Before a closed cell is packed, its job makes `rows/START.parquet` of its rows
(for other programs), by one link, so an image is never in two of these files. It reads the file
back, and only then marks the cell. The mark says that the rows lie in `rows/`; then the parts go,
so no row lies twice on the disk. A part with rows of several cells goes with the last one: who
packs a cell looks at the others' marks when its own is on the disk. If a job dies between two
steps, another one goes on, at the latest before `COMPLETE.N`. The content follows from the records
alone, so jobs that make the file at the same time make the same. A file that cannot be made (parts
have different columns) leaves the cell as it is, with its parts. Readers open what the mark says.
A part that no record names, because its job has lost all positions, is removed by that job.
A part that is gone when they come to it has been packed meanwhile: they look at the mark again.

A row of a later run that replaces an older one goes into the file of that one: before `COMPLETE.N`
the job makes the file again and renames it into its place. A rename compares nothing, and a job
that slept may put an older content back. So nothing depends on it: the parts of replacing rows
stay, and of a file in `rows/` the package reads only rows that no run has replaced, which each
content of it has. `verify --repair` mends what others read.

Work. A cell is about a minute of work of the job that began the run. A job takes some 10 s of work
at a time, first in its own cell, then in the next untouched one, from a random place on. Where a
link is refused it goes on at another random place. When no cell is untouched it takes at most half
of what is free.

Who lives. An owner overwrites `beats/OWNER` in place every 2 s. What it says (rate, first position
not begun) is a hint. Each owner watches the next two in the order of names, and an idle one all
holders. An owner is silent after 30 s without a change. Only the time between two beats of the
watcher counts, at most 3 s each, so a server that hangs for minutes, or a suspended watcher,
condemns nobody. The positions of a silent owner become free and count one death. Positions with a
death are taken in shares of an eighth, with two of a sixty-fourth, with three one by one, and
those with four become error rows.

The end. When nothing is free, an idle job takes the later half of what another job has not begun,
if it ends sooner. The other job learns it when its next link is refused: jobs write parts every 5
s then. Idle jobs compete, so each of them waits longer after each link that was refused (2 to 16 s
at most). Who finds all cells closed makes `COMPLETE.N` and then writes to `news.N`, which is there
from the beginning, so that the others see it at once. A listing, every 20 s, tells which cells are
packed, and so how much is left. Idle jobs look at these only when no other cell is open, each
after a random wait (0 to 20 s, by the number of jobs), so that one of them does it for all. With
`--leave` a job ends when others hold all that is left, as far as it knows.

Runs. `run.N.json` is made by link, too, and fixes positions, cells, format and the settings of the
rows. Who comes second reads it. A later number adds positions; `again` lists the older positions
whose images its first positions ask again, and readers take the last row. `dropped` lists older
positions whose rows count no longer. So what `COMPLETE.N` says stays true. The job that made the
run begins at its first cell, all others at random ones. A `whole` run is one cell: a second job is
refused while the first one gives signs of life.

Jobs. `jobs/NNNN.json` is made by link: an owner gets the first number that nobody has. Names of
parts begin with it.

Updates. `shards/members` holds the list of a source: name, size, time and digest of each picture,
and whether it is gone. It is a file of `index/` that is named by its content, and `run.N.json`
names it. `shards/update` compares the lists that a run has of a source with what is there, without
I/O; `shards/reader.as_before` numbers the shards: new pictures of a source become another shard,
so its older images keep their keys and numbers. `job/run.next_run` makes the next number of the
run: changed pictures are in `again`, removed ones in `dropped` if they are pruned or had no
answer. A run without positions only records what is gone. A list is taken only from a complete
run; two updates agree by the link of `run.N.json`, and who has found something else is refused.

Growing. A run whose settings say that the listing is open has the images that were listed when it
began. When all of them have their rows, the number after it has those that were listed meanwhile;
the last one says that the listing is over. Who lists is nowhere recorded: every job may make the
next number, and a job that has found other images than the number that is there plans anew by the
lists of the run. If no job lists, the next one compares all names, as in an update.

Readers. `reading` opens names that a listing or a mark tells of, and nothing else: a host that
asks too early believes for a minute that a name is missing. A packed cell is read once. `late` are
names that must be there and cannot be seen.

The threshold of `--agree` is `thresholds/1.json`, made by link too: every job decides by its own
pairs and by the rows of others, and all go by the one that is there (`job/agreed`). The drawn
images come first in the order of the run, so that an image's position is its number in the draw.
Several candidates are a chain in which no answer counts, so each drawn image passes through all of
them, and its row has all answers. Each job chooses by these (`events.Stages`); only the record,
which names one, binds all jobs.
"""
