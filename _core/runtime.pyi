"""Nothing for Python; ``runtime.pxd`` is what other extensions see of the runtime."""
