"""joblib on tasks: ``with joblib.parallel_config(backend="ray"): ...`` after `register_ray`."""

from __future__ import annotations

__all__ = ["register", "register_ray"]


def register_ray() -> None:
    """Make the backend known to joblib under the name ``"ray"``.

    Raises
    ------
    ImportError
        joblib is not installed.
    """
    _register("ray")


def register() -> None:
    """Make the backend known to joblib under the name ``"ftray"``; otherwise as `register_ray`."""
    _register("ftray")


def _register(name: str) -> None:
    try:
        from joblib import register_parallel_backend
    except ImportError as error:
        raise ImportError("ftray.util.joblib needs joblib 1.5 or newer: pip install joblib") from error
    from ftray.util.joblib.ray_backend import RayBackend

    register_parallel_backend(name, RayBackend)
