"""`multiprocessing.Pool` on actors."""

from multiprocessing import TimeoutError

from ftray.util.multiprocessing.pool import AsyncResult, IMapIterator, Pool

__all__ = ["AsyncResult", "IMapIterator", "Pool", "TimeoutError"]
