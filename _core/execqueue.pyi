"""Nothing for Python; ``execqueue.pxd`` is what other extensions see of the queue of calls to run here."""
