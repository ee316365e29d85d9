"""The backend: each batch of calls that joblib makes is a task."""

from __future__ import annotations

from typing import Any

from joblib._parallel_backends import AutoBatchingMixin
from joblib.parallel import ParallelBackendBase

import ftray
from ftray import _engine
from ftray.util.concurrent import Executor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

# What joblib itself hands to every backend, for memory maps: ftray shares large arguments anyway.
_OF_JOBLIB = ("context", "max_nbytes", "mmap_mode", "temp_folder", "verbose")


class RayBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the calls of a `joblib.Parallel` as tasks.

    Parameters
    ----------
    ray_remote_args : dict, optional
        Options of the tasks, as for ``@ftray.remote``.
    """

    supports_retrieve_callback = True

    def __init__(self, ray_remote_args: dict[str, Any] | None = None, **given: Any) -> None:
        super().__init__(**given)
        self._remote_args = ray_remote_args
        self._executor: Executor | None = None
        self._n_jobs = 1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks run at a time; -1: as many as the session has CPUs, -2: one less, ..."""
        if n_jobs == 0:
            raise ValueError(
                "n_jobs == 0 in Parallel has no meaning: use -1 for all CPUs, or a number above 0"
            )
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        _engine.ensure()
        return max(1, int(ftray.cluster_resources().get("CPU", 1)) + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **given: Any,
    ) -> int:
        """Get ready for one call of `joblib.Parallel`."""
        unknown = [name for name in given if name not in _OF_JOBLIB]
        if unknown:
            raise TypeError(
                f"the backend of ftray does not take {', '.join(unknown)}; it takes ray_remote_args"
            )
        self.parallel = parallel
        if ray_remote_args is not None:
            self._remote_args = ray_remote_args
        self._n_jobs = self.effective_n_jobs(n_jobs)
        self._executor = Executor(self._n_jobs, **(self._remote_args or {}))
        return self._n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Run a batch."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the batch's results, or raise."""
        return out.result()

    def terminate(self) -> None:
        """End of the call."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """After an error: what was not begun is dropped, what runs is ended."""
        if self._executor is not None:
            self._executor.abort()
            self._executor = None
        if ensure_ready:
            self.configure(self._n_jobs, self.parallel)
