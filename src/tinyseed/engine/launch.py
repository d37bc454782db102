"""Launching the processes of a run through Lightning Fabric; a single process on the CPU does without (alone.py)."""

import os
from collections.abc import Callable
from typing import Any

from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from tinyseed.engine.processes import divide_cores, watch
from tinyseed.threads import number_is_ours


class WatchedDDP(DDPStrategy):
    """Data-parallel training whose processes end when one of them has failed.

    Fabric's own launcher kills the first process without a word if another one fails, and leaves the others alone if
    the first one is killed.
    """

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class _Launcher(_SubprocessScriptLauncher):
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        divided = number_is_ours()  # before others inherit it
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        watch(os.getppid(), self.procs)
        if divided:
            divide_cores(self.num_processes)
        return function(*args, **kwargs)
