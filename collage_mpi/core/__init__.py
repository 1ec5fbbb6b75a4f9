"""The core: which rank gets which images, and which answer is each image's outcome.

It is pure. `Core.step(now_ns, events)` returns the actions that a driver carries out: over MPI, or
on virtual time. docs/architecture.md lists its invariants.

Positions and slots. The order of the input gives each image a position. Group g has the positions
from g x size to (g + 1) x size - 1. While an image is in flight, it has a slot in the table.
Inside the core an array of slots stands for images. Events, actions and rows name positions.

The table. `core/table` holds a column for each thing that is known of the images in flight. Its
records are the later rows, and answers resolve images by assignments to their slots. Bits of the
state mark the images that need more: audited, with a kept answer, or in trouble. `Table.take`
returns the rows of resolved images. A slot is used again when its row is taken and no task and no
waiting work refers to it.

Answers. The answers of a message are one event, and all messages of a poll are one step. An answer
counts for those of its images that are unresolved. Tasks that share images know each other
(`Task.peers`), so the core can cancel those that are no longer needed.

One rule assigns the work: a rank with room takes the oldest work that it may take. Of the ranks
with room, the rank with the fewest messages is served first, and of equal ones the fastest. A slow
rank (over 1.5 times the median service time) leaves to quicker ranks the work that these would end
sooner. Of a batch it takes only the inputs that it would end before them (`Ranks.portion`). In a
closed loop with images left there is always more work, so the rank takes at least one input. With
`--assign turn` each image is bound to the next rank in turn, as in the paper, and waits for that
rank alone.

Decisions worth knowing:

- A cover is a task that an image can count on (`Table`, column `holds` less column `deaf`): it
  waits, or is out on a rank that is heard. An image whose last cover is gone takes the next step
  of `retries`. An image that failed before is sent alone, because it may fail the others of its
  message.
- A cascade is a list of stages. A stage is a kind of network (`kinds.STAGES`, or the collage) with
  a threshold; the last stage is the exact network. What a stage is unsure of, and no other task
  covers, waits for the next stage that a ready rank holds. Audits and retries ask the exact
  network.
- Waiting images leave together in a cascade. A rank takes first the oldest image that was sent
  before. If there is none and enough images wait that were never sent, it takes them as one
  collage; otherwise it takes the oldest image. A collage may hold images of several groups, in its
  first cells.
- With `--placement fastest` the M fastest ranks take no image alone, so that one of them is soon
  free for a collage. Other ranks may take a collage too, by the rule, with the M-th fastest rank
  in place of the median. Idle ranks that take no image alone ask for no images.
- Copies of the end game are not attempts. When no image is left to come, idle ranks copy images
  that are still out. The flag `spare` marks the copies. They do not count as failures, and a
  failed image is not copied.
- The core makes the batches. In a closed loop a batch of groups comes in together, and work waits
  until all of it is there. Credit counts messages, because messages occupy buffers.
- Silence is not a failure. A silent rank may answer and then takes work again. Only failures and
  losses count against an image's three attempts. `faults/failure_detector` combines the layers
  that notice silent and lost ranks.
- Ranks that die together do not count against one image. If an image has only lost ranks so far,
  its last try waits until no rank was lost for a second.
- Failing ranks pause. After five failed messages in a row a rank is retired. A message of images
  that failed on another rank does not count, because these images may be at fault. A retired rank
  is recalled when it becomes the last rank of a kind.
- A resolved image is not sent. If images of a waiting collage are resolved, their cells are left
  blank. The networks are trained with blank cells.
- A row that cannot be read keeps its place in the group, is not sent, and resolves as an error at
  once. Where workers read (`row_reader`), it fails its task. The task is then sent to other ranks,
  of other hosts if there are any, up to three times. Such a failure does not count against a rank
  (`of_input`); that of a whole file does, because the host may be the cause. A collage leaves an
  unreadable image blank.
- A row waits 4 s at most for another answer (`checks`); once rows wait, parts are written every 5
  s. So what is resolved is committed after some 10 s, however slow a rank is. The pixels stay as
  long as an answer is awaited: a third rank decides later too, but then the row is written. It is
  not replaced, because its cell may be closed: it is counted and named, and `--redo-rank` asks its
  images again.
- The end waits for late answers (at most 30 s; 1 s after an end game). Without them the record
  would lack the slowest service times.
- An image is shrunk once, in batches, in the thread that reads ahead. Rank 0's loop only pastes
  cells, directly into the message. Where workers read, their reading thread does both
  (`job/encoders`).
- Time stamps are taken when a receive completes; a latency ends there. `decode_ns` comes later and
  is recorded separately.
"""
