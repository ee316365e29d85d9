"""Nothing for Python; ``context.pxd`` is what other extensions see of what a thread executes."""
