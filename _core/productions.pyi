"""Nothing for Python; ``productions.pxd`` is what other extensions see of it."""
