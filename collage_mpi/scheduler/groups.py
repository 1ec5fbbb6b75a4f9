"""Images into groups, how many may come in (C6), and timers, which end with their group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.settings import SchedulerSettings
from collage_mpi.scheduler.state import GroupState, ImageState, Turn


class Timers:
    """Asks for timers through `turn.actions`; a stale one changes nothing."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._calls: dict[int, Callable[[], None]] = {}
        self._next = 0

    def set(self, at_ns: int, call: Callable[[], None], group: GroupState | None = None) -> int:
        """Call at or after `at_ns`; a group's timers end with it. Its id."""
        timer = self._next
        self._next += 1
        self._calls[timer] = call
        if group is not None:
            group.timers.add(timer)
        self._turn.actions.append(ev.SetTimer(timer, max(at_ns, self._turn.now_ns)))
        return timer

    def start(self, delay_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        """Call `delay_ns` from now; the result cancels it."""
        return partial(self.cancel, self.set(self._turn.now_ns + delay_ns, call))

    def cancel(self, timer: int) -> None:
        """It need not fire, if it has not yet."""
        if self._calls.pop(timer, None) is not None:
            self._turn.actions.append(ev.CancelTimer(timer))

    def drop(self, group: GroupState) -> None:
        """The group is done: its timers need not fire."""
        for timer in sorted(group.timers):
            self.cancel(timer)
        group.timers.clear()

    def fire(self, timer: int) -> None:
        """It is due."""
        call = self._calls.pop(timer, None)
        if call is not None:
            call()


class Groups:
    """Groups by order of arrival, whatever the scheme, so that schemes compare.

    Args:
        settings: group size, depth, drain, linger and image timeout.
        turn: where Admit goes.
        dispatch: what is sent, and who is idle.
        timers: linger, image timeout, the longest drain.
        closed: called with a group that has all its images, some unresolved.
        timed_out: called with a group when the image timeout of some of its images is over.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        turn: Turn,
        dispatch: Dispatch,
        timers: Timers,
        closed: Callable[[GroupState], None],
        timed_out: Callable[[GroupState], None],
    ) -> None:
        self.settings = settings
        self.filling: GroupState | None = None
        self.unresolved = 0  # images
        self.in_flight: dict[int, GroupState] = {}  # closed, with unresolved images
        self.input_closed = False
        self._turn, self._dispatch, self._timers = turn, dispatch, timers
        self._closed, self._timed_out = closed, timed_out
        self._step = settings.admitted_together
        self._whole_batches = settings.whole_batches
        self._depth = settings.depth * self._step
        self._next_group = 0
        self._promised = 0  # admitted, not yet arrived
        self._cancel_drain: Callable[[], None] | None = None
        self._drain_over = False

    # ---- membership ---------------------------------------------------------

    def open(self, t0_ns: int) -> GroupState:
        """A group that the next images belong to; its clock starts with its first one."""
        group = self.filling = GroupState(self._next_group, t0_ns)
        self._next_group += 1
        linger_ns = self._linger_ns()
        if linger_ns is not None:
            at_ns = self._turn.now_ns + linger_ns
            self._timers.set(at_ns, partial(self.cut_short, group), group)
        return group

    def _linger_ns(self) -> int | None:
        """How long the group that begins may wait for further images.

        While a threshold is chosen, images wait for their group: no longer than half their timeout.
        """
        linger_ns, timeout_ns = self.settings.linger_ns, self.settings.image_timeout_ns
        if not self._dispatch.calibrating or timeout_ns is None:
            return linger_ns
        return timeout_ns // 2 if linger_ns is None else min(linger_ns, timeout_ns // 2)

    def place(self, image_id: int, group: GroupState, t0_ns: int, count: int = 1) -> ImageState:
        """The image, or a run of so many, in the group's next cells."""
        image = ImageState(image_id, group, group.size, t0_ns, count)
        limit_ns, last = self.settings.image_timeout_ns, group.images[-1:]
        if limit_ns is not None and (not last or last[0].t0_ns != t0_ns):
            # Images that came together share one timer: in a closed loop, all of a group.
            self._timers.set(t0_ns + limit_ns, partial(self._timed_out, group), group)
        self._promised -= count
        group.images.append(image)
        group.size += count
        group.unresolved += count
        self.unresolved += count
        return image

    @property
    def batch_is_in(self) -> bool:
        """Whether no image is awaited that could join the groups of the present batch."""
        whole = self.filling is None and self._next_group % self._step == 0
        return whole or self._promised == 0

    def cut_short(self, group: GroupState) -> None:
        """It has waited long enough, and so have those that came with it: all of it leaves."""
        self._dispatch.gathering = True
        self.close(group)
        self._dispatch.gathering = False
        self._dispatch.flush()

    def close(self, group: GroupState) -> None:
        """No further image belongs to it."""
        if group.closed:
            return
        group.closed = True
        self.filling = None
        if group.unresolved == 0:
            self._timers.drop(group)
            return
        self.in_flight[group.id] = group
        self._closed(group)

    def resolved(self, image: ImageState) -> None:
        """The image has its outcome."""
        group = image.group
        group.unresolved -= image.count
        self.unresolved -= image.count
        if group.unresolved == 0 and group.closed:
            del self.in_flight[group.id]
            self._timers.drop(group)

    def number_from(self, number: int) -> None:
        """The next image is of the group of that number, or of a later one."""
        if self.filling is not None and self.filling.id < number:
            self.let_go()
            self._make_up()
        self._next_group = max(self._next_group, number)

    def end_input(self) -> None:
        """No further image will come."""
        self.input_closed = True
        self._promised = 0
        self.let_go()

    def pause(self) -> None:
        """No image is left to come, for all that is known."""
        self.let_go()
        self._make_up()

    def _make_up(self) -> None:
        """What is promised fills whole groups again, also behind one that was cut short: for one
        that is filled in part no image would be asked for."""
        lacking = -self._promised % self.settings.group_size
        if lacking:
            self._promised += lacking
            self._turn.actions.append(ev.Admit(lacking))

    def let_go(self) -> None:
        """What is gathered waits for no further image."""
        if self.filling is not None:
            self.cut_short(self.filling)
        else:
            self._dispatch.flush()

    # ---- admission ----------------------------------------------------------

    def admit(self, silent_tasks: Callable[[], int]) -> None:
        """Ask for whole groups while fewer than `depth` are in flight; for whole batches of
        them if they are to come in together, `depth` batches then. `paced`, one at a time.

        `silent_tasks` counts those out on silent ranks: a drain does not wait for them.
        """
        drain = self.settings.drain
        if self.input_closed or (drain and (self.unresolved or self._promised)):
            return  # at once: this follows every event
        size, step, depth = self.settings.group_size, self._step, self._depth
        if drain:
            missing = depth if self._drained(silent_tasks) else 0
        else:
            # Of a run that is long what is open counts, else every group that is not over.
            filling = self.filling.size if self.filling else 0
            there, whole = filling, len(self.in_flight)
            if self._whole_batches:
                there, whole = self.unresolved, 0
            missing = depth - whole - -(-(there + self._promised) // size)
            missing -= missing % step
            if self.settings.paced:
                missing = min(missing, step) if self._wanted() else 0
        if missing > 0:
            self._promised += missing * size
            self._turn.actions.append(ev.Admit(missing * size))

    def _wanted(self) -> bool:
        """Whether a rank has nothing to do: whatever waits it may not take."""
        idle = self._dispatch.wants_images or not self.unresolved
        return idle and not self._promised

    def _drained(self, silent_tasks: Callable[[], int]) -> bool:
        """Whether all ranks are idle; those that are silent, or take for ever, do not count."""
        if not self._drain_over and len(self._dispatch.tasks.out) > silent_tasks():
            if self._cancel_drain is None:
                self._cancel_drain = self._timers.start(self.settings.end_ns, self._stop_draining)
            return False
        if self._cancel_drain is not None:
            self._cancel_drain()
        self._cancel_drain, self._drain_over = None, False
        return True

    def _stop_draining(self) -> None:
        self._cancel_drain, self._drain_over = None, True
