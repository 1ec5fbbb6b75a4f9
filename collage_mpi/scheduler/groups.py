"""Puts images into groups, decides how many may arrive (C6), and keeps the scheduler's timers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.settings import SchedulerSettings
from collage_mpi.scheduler.state import GroupState, ImageState, Turn


class Timers:
    """Sets timers through `turn.actions`, and calls what is due."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._calls: dict[int, Callable[[], None]] = {}
        self._next = 0

    def set(self, at_ns: int, call: Callable[[], None], group: GroupState | None = None) -> int:
        """Run `call` at or after `at_ns`. A group's timers are cancelled at its end.

        Returns:
            The timer's id.
        """
        timer = self._next
        self._next += 1
        self._calls[timer] = call
        if group is not None:
            group.timers.add(timer)
        self._turn.actions.append(ev.SetTimer(timer, max(at_ns, self._turn.now_ns)))
        return timer

    def start(self, delay_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        """Run `call` in `delay_ns`; the returned function cancels the timer."""
        return partial(self.cancel, self.set(self._turn.now_ns + delay_ns, call))

    def cancel(self, timer: int) -> None:
        """Cancel the timer, unless it has fired."""
        if self._calls.pop(timer, None) is not None:
            self._turn.actions.append(ev.CancelTimer(timer))

    def drop(self, group: GroupState) -> None:
        """Cancel the timers of a group that is over."""
        for timer in sorted(group.timers):
            self.cancel(timer)
        group.timers.clear()

    def fire(self, timer: int) -> None:
        """Run what the timer was set for; nothing if it was cancelled."""
        call = self._calls.pop(timer, None)
        if call is not None:
            call()


class Groups:
    """Groups images by order of arrival, in the same way for every scheme, so that schemes compare.

    Args:
        settings: group size, depth, drain and linger are used.
        turn: takes the Admit actions.
        dispatch: knows which tasks are out and which ranks are idle.
        timers: for linger and the longest drain.
        closed: called with each group that gets no further image and has unresolved ones.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        turn: Turn,
        dispatch: Dispatch,
        timers: Timers,
        closed: Callable[[GroupState], None],
    ) -> None:
        self.settings = settings
        self.filling: GroupState | None = None
        self.unresolved = 0  # images
        self.in_flight: dict[int, GroupState] = {}  # closed, with unresolved images
        self.input_closed = False
        self._turn, self._dispatch, self._timers = turn, dispatch, timers
        self._closed = closed
        self._step = settings.admitted_together
        self._whole_batches = settings.whole_batches
        self._depth = settings.depth * self._step
        self._next_group = 0
        self._promised = 0  # images that were asked for (Admit) and have not arrived
        self._cancel_drain: Callable[[], None] | None = None
        self._drain_over = False

    # ---- membership ---------------------------------------------------------

    def open(self, t0_ns: int) -> GroupState:
        """Open the group of the next images. `t0_ns`: where the first image's latency starts."""
        group = self.filling = GroupState(self._next_group, t0_ns)
        self._next_group += 1
        if self.settings.linger_ns is not None:
            at_ns = self._turn.now_ns + self.settings.linger_ns
            self._timers.set(at_ns, partial(self.cut_short, group), group)
        return group

    def place(self, image_id: int, group: GroupState, t0_ns: int, count: int = 1) -> ImageState:
        """Put the image, or a run of `count` images, into the group's next cells."""
        image = ImageState(image_id, group, group.size, t0_ns, count)
        self._promised -= count
        group.images.append(image)
        group.size += count
        group.unresolved += count
        self.unresolved += count
        return image

    @property
    def batch_is_in(self) -> bool:
        """Whether no image is awaited that could join the present batch of groups."""
        whole = self.filling is None and self._next_group % self._step == 0
        return whole or self._promised == 0

    def cut_short(self, group: GroupState) -> None:
        """Close the group before it is full, and send all gathered tasks."""
        self._dispatch.gathering = True
        self.close(group)
        self._dispatch.gathering = False
        self._dispatch.flush()

    def close(self, group: GroupState) -> None:
        """Close the group: it gets no further image."""
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
        """Note that the image has its outcome; a group whose images all have one is over."""
        group = image.group
        group.unresolved -= image.count
        self.unresolved -= image.count
        if group.unresolved == 0 and group.closed:
            del self.in_flight[group.id]
            self._timers.drop(group)

    def number_from(self, number: int) -> None:
        """The next image belongs to a group with this number or a higher one."""
        if self.filling is not None and self.filling.id < number:
            self.let_go()
            self._make_up()
        self._next_group = max(self._next_group, number)

    def end_input(self) -> None:
        """No further image will arrive: close the open group."""
        self.input_closed = True
        self._promised = 0
        self.let_go()

    def pause(self) -> None:
        """As far as is known, no further image will arrive: close the open group."""
        self.let_go()
        self._make_up()

    def _make_up(self) -> None:
        """Ask for so many images that those on their way fill whole groups.

        Otherwise the last group would stay incomplete, because nobody asks for single images.
        """
        lacking = -self._promised % self.settings.group_size
        if lacking:
            self._promised += lacking
            self._turn.actions.append(ev.Admit(lacking))

    def let_go(self) -> None:
        """Let the open group and all gathered tasks leave."""
        if self.filling is not None:
            self.cut_short(self.filling)
        else:
            self._dispatch.flush()

    # ---- admission ----------------------------------------------------------

    def admit(self, silent_tasks: Callable[[], int]) -> None:
        """Ask for further images, as whole groups, while fewer than `depth` groups are in flight.

        If groups come in together, `depth` counts batches of groups, and whole batches are asked
        for. With `paced`, one at a time is asked for, when a rank is idle.

        Args:
            silent_tasks: how many tasks are out on silent ranks. A drain does not wait for them.
        """
        drain = self.settings.drain
        if self.input_closed or (drain and (self.unresolved or self._promised)):
            return  # early: `admit` is called after every event
        size, step, depth = self.settings.group_size, self._step, self._depth
        if drain:
            missing = depth if self._drained(silent_tasks) else 0
        else:
            # With whole batches each unresolved image counts, else each group that is not over.
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
        """Whether a rank is idle, or no image is unresolved, and no image is on its way."""
        idle = self._dispatch.wants_images or not self.unresolved
        return idle and not self._promised

    def _drained(self, silent_tasks: Callable[[], int]) -> bool:
        """Whether all ranks are idle; silent ranks do not count, nor do any after `end_ns`."""
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
