"""Nothing for Python; ``values.pxd`` is what other extensions see of values of objects."""
