"""Mutants that change nothing anyone could observe, by the line that they make, and why."""

SAME: dict[tuple[str, str], str] = {
    (
        "collage_mpi/faults/process_monitor.py",
        "if not self._awaited or (now_ns >= PORT_LIMIT_NS):",
    ): "a ns sooner",
    (
        "collage_mpi/job/coordinator.py",
        "return None if next_ns is None else max((-1), next_ns - now_ns)",
    ): "neither is a time to sleep",
    (
        "collage_mpi/job/handshake.py",
        "times = [((other.cpu_ns), single.cpu_ns or 0) for other, single in rounds]",
    ): "here all have it, which only its type does not know",
    (
        "collage_mpi/shards/reader.py",
        "self.decoders = min(MOST_DECODERS, threads_per_rank(local_size() or (0)))",
    ): "for no rank there are as many threads as for one",
    (
        "collage_mpi/job/worker.py",
        "encoder = self.networks.encoder if KIND[batch.tasks[(-1)].kind].encoded else None",
    ): "the tasks of a message are of one kind",
    (
        "collage_mpi/mpi/answers.py",
        "absent = (-1), 0.0, ABSENT, 0",
    ): "the class of a cell that is absent is not read",
    (
        "collage_mpi/mpi/transport.py",
        "self._control = ReceiveRing("
        "comm, mpi, Inbox(coordinator, TAG_CONTROL, CONTROL_BYTES, (3)))",
    ): "one more receive is ready than needs be",
    (
        "collage_mpi/results/summary.py",
        "first, last = came.get(session, (1 << 63, -((0) << 63)))",
    ): "no image comes before the clock of its session begins",
    (
        "collage_mpi/results/statistics.py",
        "size = 1 << ((3) * n - 1).bit_length()",
    ): "more zeros behind the values than their lags need",
    (
        "collage_mpi/results/statistics.py",
        "lags = int(noise[0]) if len(noise) else len(sums) - (0)",
    ): "a slice ends where its array does",
    (
        "collage_mpi/results/summary.py",
        "first, last = self.span_ns.get(session, (1 << (62), -(1 << 63)))",
    ): "146 years",
    (
        "collage_mpi/shards/reader.py",
        "return self.infos[(-1)].fit if len(fits) == 1 else None",
    ): "all have the same",
    (
        "collage_mpi/shards/reader.py",
        "labels = np.empty(len(wanted), dtype=np.int64) if self.infos[(-1)].has_labels else None",
    ): "shards of which some alone have labels are refused",
    (
        "collage_mpi/shards/reader.py",
        "if not self.infos[(-1)].has_labels:",
    ): "shards of which some alone have labels are refused",
    (
        "collage_mpi/simulation/simulator.py",
        "self._stamp_ns = (-1)",
    ): "set by the first event, before it is read",
    (
        "collage_mpi/simulation/simulator.py",
        "self._sequence += (2)",
    ): "the numbers only rise",
    (
        "collage_mpi/workload/straggler_settings.py",
        "def draw_ns(self, rank: int, group: int, attempt: int, at_ns: int = (-1)) -> int:",
    ): "a rank's spells just before the start are those at the start",
    (
        "collage_mpi/workload/straggler_settings.py",
        "return median_s * math.exp(min(sigma * z, (120.0))) * slowing(moment)",
    ): "a draw is cut far below either, unless the median is below 1e-17 s",
    (
        "collage_mpi/workload/straggler_settings.py",
        "return factor if (mode <= share) else 1.0",
    ): "one draw in 2 ** 53 is the share itself",
}
