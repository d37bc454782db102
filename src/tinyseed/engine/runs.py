"""Runs that train together: they see the same batches, and one pass of the teacher serves all of them.

One may fail or end earlier than the others. Each is what it would be alone, bit by bit.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial

from tinyseed.data.augmentation import View
from tinyseed.data.loader import TrainingBatch, TrainingViews, training_batches
from tinyseed.engine.log import DivergedError, Log, show
from tinyseed.engine.monitor import Monitor
from tinyseed.engine.rendering import rendered
from tinyseed.engine.run import Learner, Run, build_learner, claimed, settle
from tinyseed.engine.run_folder import Quarantine, RunFolder, open_run_folder
from tinyseed.engine.runtime import Runtime, computing_threads
from tinyseed.engine.shared import Shared, open_shared
from tinyseed.engine.students import Index
from tinyseed.engine.teacher_cache import Kept, opened
from tinyseed.engine.teacher_engine import use_engine
from tinyseed.errors import InputError, RunError
from tinyseed.methods.base import Method
from tinyseed.methods.catalog import spec_of
from tinyseed.methods.distillation import Distillation
from tinyseed.progress import Progress
from tinyseed.settings.base import MOST_EPOCHS
from tinyseed.settings.train import DistillSettings, TrainSettings
from tinyseed.signals import Stopped, StopRequest


class ViewsError(InputError):
    """Runs that look at different views of the images cannot train together."""


class Runs:
    """The runs of one pass over the data; a single run is the case of one.

    Attributes:
        shared: what they have in common.
        all: the runs, those that have failed or are finished among them.
        index: of their folder, where there are several.
        kept: the teacher's vectors and crops on disk, where they are kept.
        views: how an image becomes the views that the methods take.
    """

    def __init__(
        self, shared: Shared, runs: Sequence[Run], index: Index | None = None, kept: Kept | None = None
    ) -> None:
        self.shared = shared
        self.all = tuple(runs)
        self.index = index
        self.kept = kept
        self.views = views_of([run.method for run in runs], shared, kept)
        self._said = set[str]()
        self._sharing: list[Run] = []
        # Of several processes all have to end a run at the same time; what one of them meets ends them all.
        self._isolated = RunError if shared.runtime.group.size == 1 else DivergedError

    @property
    def step(self) -> int:
        """Steps done by those that are furthest behind; the others join when their step comes."""
        return min((run.step for run in self.all if run.going and not run.done), default=0)

    @property
    def together(self) -> list[Run]:
        """Those that take the next step."""
        step = self.step
        return [run for run in self.all if run.going and not run.done and run.step == step]

    def restore(self) -> None:
        """Continue where the last checkpoints were written; the time is that of the run that is furthest behind.

        Raises:
            InputError: a checkpoint is broken, or images or teacher are others than the run began with.
        """
        self.shared.clock.elapsed = min(
            run.restore() if run.folder.checkpoint.exists() else 0.0 for run in self.all
        )

    def next(self, request: StopRequest) -> list[Run]:
        """The runs that take the next step, none at the end; those that have done their last one are finished.

        Raises:
            Stopped: a signal asked to stop, and all were saved.
        """
        self.finish(request)
        together = self.together
        if together != self._sharing:
            share_queues(together)
            self._sharing = together
        return together

    def each(self, runs: Iterable[Run], work: Callable[[Run], object]) -> None:
        """Do something for each run that is still going; an error ends that run only."""
        for run in runs:
            if run.going:
                try:
                    work(run)
                except self._isolated as error:
                    run.error = error
                    if self.index is not None:
                        run.log.say(f"failed: {error}")
                        self.note()

    def note(self, *, ended: bool = False) -> None:
        """Note in the index how far the runs are."""
        if self.index is not None and self.shared.runtime.is_main:
            with suppress(RunError):  # a full disk: the folders say the same
                self.index.write(self.all, ended=ended)

    def batches(self) -> Generator[TrainingBatch, None, None]:
        """This process' batches from the current step on, on its device; waiting for them is timed."""
        self.shared.clock.start()
        for run in self.all:
            run.log.restart()
        while True:
            with closing(self._loaded(self.step)) as loaded:
                yield from loaded

    def preview(self) -> None:
        """Show those that are at their beginning the images that they want to see before the first step.

        These are the views of an epoch that no run reaches, so that they too follow from the seed alone. The time
        counts as training. Queues are not shared yet: not all of them may be filled.
        """
        beginners = [run for run in self.all if run.going and run.step == 0]
        images = max((run.method.preview_images for run in beginners), default=0)
        if not images:
            return
        shared, plan, began = self.shared, self.shared.plan, time.monotonic()
        never = int(MOST_EPOCHS.high) * plan.steps_per_epoch
        loaded = training_batches(
            self.views,
            plan,
            first_step=never,
            workers=shared.workers,
            pin_memory=shared.runtime.device.type == "cuda",
        )
        with closing(loaded):
            for done in range(0, images, plan.batch_size // plan.micro_batches):
                batch = next(loaded)
                self.each(beginners, lambda run, bad=batch.bad: run.log.quarantine.add(bad))
                views = rendered(batch.to(shared.runtime.device))
                for run in beginners:
                    if done < run.method.preview_images:
                        with shared.runtime.autocast():
                            run.method.preview(views)
        shared.clock.elapsed += shared.runtime.agreed(time.monotonic() - began)

    def _loaded(self, first_step: int) -> Generator[TrainingBatch, None, None]:
        """Batches from a step on, for as long as the steps follow each other."""
        shared, on_gpu = self.shared, self.shared.runtime.device.type == "cuda"
        loaded = training_batches(
            self.views, shared.plan, first_step=first_step, workers=shared.workers, pin_memory=on_gpu
        )
        step = first_step
        with closing(loaded):
            while step == self.step:  # else the last run that was behind has ended
                for _ in range(shared.settings.accumulate):
                    began = time.perf_counter()
                    batch = next(loaded)
                    waited = time.perf_counter() - began
                    for run in self.together:
                        run.log.waited += waited
                    self.each(self.together, lambda run, bad=batch.bad: run.log.quarantine.add(bad))
                    self.say_once(batch.note)
                    yield batch.to(shared.runtime.device)
                    self.say_once("" if self.kept is None else self.kept.targets.note)
                step += 1

    def say_once(self, note: str) -> None:
        """Show a note that stays, unless it has been shown before; every process may have one."""
        if note and note not in self._said:
            self._said.add(note)
            self.all[0].log.progress.say(note)

    def write_logs(self, runs: Sequence[Run]) -> None:
        """Where a line of the log is due, write one for each run and show them as progress."""
        self.each(runs, lambda run: run.write_log() if run.log_due else None)
        shown = [run for run in runs if run.going and run.log_due]
        if shown:
            longest = max(shown, key=lambda run: run.total_steps)
            logs = [run.log for run in shown]
            show(logs, longest.total_steps, longest.seconds_left, final=longest.done)

    def evaluate(self, runs: Iterable[Run], request: StopRequest) -> None:
        """Evaluate runs on held-out images.

        Raises:
            Stopped: a signal asked to stop, and all were saved; the evaluation is done when they are resumed.
        """
        evaluated = list(runs)
        self.each(evaluated, lambda run: run.evaluate(request))
        if evaluated:
            (number,) = self.shared.runtime.largest([float(request.number)])
            if number:
                self.save_and_stop(int(number))
        for run in evaluated:
            run.log.restart()

    def agree(self, runs: Sequence[Run], request: StopRequest) -> tuple[int, bool]:
        """Agree with the other processes on the time, the signal to stop at, and whether checkpoints are due.

        Clocks and signals differ between processes, steps and learning rates must not: the largest of each counts for
        all. Several processes agree only where a line of the log is due.

        Returns:
            The number of the signal, 0 for none; and whether checkpoints are due.
        """
        runtime, clock = self.shared.runtime, self.shared.clock
        if runtime.group.size > 1 and not runs[0].log_due:
            return 0, False
        overdue = clock.overdue(self.shared.settings.checkpoint_minutes)
        here = [float(request.number), clock.now, float(overdue)]
        number, clock.elapsed, due = runtime.largest(here)
        return int(number), bool(due)

    def save(self, runs: Iterable[Run]) -> None:
        """Write the checkpoints of runs."""
        self.each(runs, Run.save)

    def save_and_stop(self, number: int) -> None:
        """Save, since this signal asks to stop; those that are ahead have come from a checkpoint, and wait.

        Raises:
            Stopped: unless all runs have failed.
        """
        step = min((run.step for run in self.all if run.going), default=0)
        self.save(run for run in self.all if run.going and run.step == step)
        if not any(run.going for run in self.all):
            return
        message = f"stopped at step {step} and saved; resume with `resume`"
        raise Stopped(number, message if self.shared.runtime.is_main else "")

    def finish(self, request: StopRequest) -> None:
        """Evaluate those runs once more that have done their last step, and write their models and reports.

        Raises:
            Stopped: a signal asked to stop, and all were saved.
        """
        done = [run for run in self.all if run.going and run.done]
        self.evaluate(done, request)
        self.each(done, Run.finish)
        if done:
            self.note()


def seen_by(methods: Sequence[Method], settings: TrainSettings) -> tuple[View, ...]:
    """The views that are taken of each image: those of the method that takes most; others take the first of them.

    Raises:
        ViewsError: they do not take the same.
    """
    each = [method.views(settings.image_size) for method in methods]
    longest = max(each, key=len)
    if any(views != longest[: len(views)] for views in each):
        remedy = "these runs look at different views of the images; train each by itself"
        raise ViewsError(settings.out, remedy, argument="out")
    return longest


def taught_by(methods: Sequence[Method], settings: TrainSettings) -> tuple[View, ...]:
    """The first of these views: those that the teacher sees for one of the methods."""
    of_each = [
        method.taught(method.views(settings.image_size))
        for method in methods
        if isinstance(method, Distillation)
    ]
    return max(of_each, key=len, default=())


def views_of(methods: Sequence[Method], shared: Shared, kept: Kept | None) -> TrainingViews:
    """How an image becomes the views that the methods take.

    Raises:
        InputError: they do not take the same.
    """
    settings, data = shared.settings, shared.data
    return TrainingViews(
        source=data.source,
        views=seen_by(methods, settings),
        seed=settings.views_seed,
        candidates=data.training,
        reader=data.reader,
        epochs=settings.view_epochs,
        kept=None if kept is None else kept.crops,
        mixup=settings.mixup if isinstance(settings, DistillSettings) else 0.0,
    )


def engine_for(settings: Mapping[str, TrainSettings], shared: Shared) -> tuple[str, ...]:
    """Let the engine of the settings compute the teacher; returns what people should know of it.

    Raises:
        InputError: the engine cannot run here, cannot compute this network, or agrees too little with torch.
    """
    of_first = next(iter(settings.values()))
    if shared.teacher is None or not isinstance(of_first, DistillSettings):
        return ()
    agreement = use_engine(shared.teacher, of_first, shared.data, shared.runtime)
    return () if agreement is None else (str(agreement),)


@contextmanager
def kept_for(methods: Sequence[Method], shared: Shared) -> Iterator[Kept | None]:
    """The teacher's vectors and crops that runs keep; their methods then take their targets from there.

    Raises:
        InputError: the folder was filled from something else, or the disk is too small.
    """
    settings, teacher = shared.settings, shared.teacher
    if teacher is None or not isinstance(settings, DistillSettings):
        yield None
        return
    views, taught = seen_by(methods, settings), taught_by(methods, settings)
    with opened(settings, shared.runtime, shared.data, teacher, views, taught=taught) as kept:
        for method in methods:
            if kept is not None and isinstance(method, Distillation):
                method.targets = kept.targets
        yield kept


def share_queues(runs: Sequence[Run]) -> None:
    """Let students whose queues have the same rows of the teacher keep them in the same memory.

    Queues of different places have the same rows only while they are empty.
    """
    methods = [run.method for run in runs if isinstance(run.method, Distillation)]
    shared = [queues for method in methods if (queues := method.teacher_queues())]
    for queues in zip(*shared, strict=False):
        for place, queue in enumerate(queues):
            any(queue.share(earlier) for earlier in queues[:place])


@contextmanager
def open_runs(
    settings: Mapping[str, TrainSettings], index: Index | None = None, *, quiet: bool
) -> Iterator[Runs]:
    """Set runs up, or restore them from their last checkpoints; progress is shown until the context is left.

    Nothing is written to a folder before all of every run is known to be right.

    Args:
        settings: of each run by its name, which is empty for a single one.
        index: of their folder, where there are several.
        quiet: whether to show no progress.

    Raises:
        InputError: data, teacher or settings are wrong, or another process has a folder.
    """
    shared = open_shared(next(iter(settings.values())))
    runtime = shared.runtime
    with ExitStack() as held:
        if index is not None:
            _refuse_shared_scale(runtime)
            held.enter_context(claimed(index.out, runtime, index.look))
        locks = [
            held.enter_context(claimed(of_run.out, runtime, partial(open_run_folder, of_run)))
            for of_run in settings.values()
        ]
        progress = held.enter_context(Progress(quiet=quiet or not runtime.is_main))
        first = next(iter(settings.values()))
        before = RunFolder(first.out).settled("threads")
        threads = held.enter_context(computing_threads(first.threads, before, runtime))
        settled = {name: settle(of_run, RunFolder(of_run.out), shared) for name, of_run in settings.items()}
        learners = [build_learner(of_run, shared) for of_run in settled.values()]
        agreement = engine_for(settled, shared)
        kept = held.enter_context(kept_for([learner.method for learner in learners], shared))
        introduce(
            settled,
            shared,
            progress,
            (*([threads] if threads else ()), *agreement, *(() if kept is None else kept.notes)),
        )
        monitors = open_monitors(settled, shared)
        if monitors[0].note is not None:
            progress.say(monitors[0].note)
        settled = calibrated(settled, learners, monitors, shared, progress)
        runs = Runs(
            shared,
            [
                Run(
                    settings=of_run,
                    shared=shared,
                    learner=learner,
                    monitor=monitor,
                    log=Log(RunFolder(of_run.out), runtime.group, progress, monitor.quarantine, name=name),
                    lock=lock,
                )
                for (name, of_run), learner, monitor, lock in zip(
                    settled.items(), learners, monitors, locks, strict=True
                )
            ],
            index,
            kept,
        )
        runs.restore()
        for run in runs.all:
            run.prepare()
        for run in runs.all:
            run.begin()
        runs.note()
        try:
            yield runs
        finally:
            runs.note(ended=True)


def _refuse_shared_scale(runtime: Runtime) -> None:
    """Refuse float16, whose loss scale belongs to the process: one student's overflow would change the others' steps.

    Raises:
        InputError: float16 was asked for.
    """
    if runtime.precision == "16":
        remedy = (
            "float16 scales the losses of all students together; give bf16 or 32, or train each by itself"
        )
        raise InputError(16, remedy, argument="precision")


def introduce(
    settings: Mapping[str, TrainSettings], shared: Shared, progress: Progress, notes: Sequence[str]
) -> None:
    """Say what is trained, and on what."""
    first = next(iter(settings.values()))
    networks = first.networks if len(settings) == 1 else f"{len(settings)} runs, {', '.join(settings)}"
    methods = dict.fromkeys(spec_of(of_run).label for of_run in settings.values())
    progress.say(f"{', '.join(methods)}: {networks}")
    for note in (*shared.data.notes, *notes):
        progress.say(note)
    progress.begin("step")


def calibrated(
    settings: Mapping[str, TrainSettings],
    learners: Sequence[Learner],
    monitors: Sequence[Monitor],
    shared: Shared,
    progress: Progress,
) -> dict[str, TrainSettings]:
    """The settings of each run, with those chosen that depend on the teacher's embeddings.

    Raises:
        InputError: they cannot be chosen.
    """
    found: dict[str, TrainSettings] = {}
    for (name, of_run), learner, monitor in zip(settings.items(), learners, monitors, strict=True):
        rows = None if monitor.teacher is None else monitor.teacher.rows
        agree = shared.runtime.agreed
        found[name], note = learner.method.calibrate(of_run, rows, agree)
        if note is not None:
            progress.say(f"{name}: {note}" if name else note)
    return found


def open_monitors(settings: Mapping[str, TrainSettings], shared: Shared) -> list[Monitor]:
    """A monitor for each run, which lists unreadable images in its folder; the teacher is measured once for all.

    Raises:
        InputError: the teacher tells no images apart.
    """
    images, processes = len(shared.data.training), shared.runtime.group.size
    quarantines = [Quarantine(RunFolder(of_run.out), images, processes) for of_run in settings.values()]
    of_first = next(iter(settings.values()))
    first = Monitor(of_first, shared.data, shared.runtime, quarantines[0], shared.teacher)
    return [first, *(first.listing(quarantine) for quarantine in quarantines[1:])]
