"""Nothing for Python; ``tasks.pxd`` is what other extensions see of the task manager."""
