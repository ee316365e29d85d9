"""Nothing for Python; ``inspect.pxd`` is what other extensions see of the answers."""
