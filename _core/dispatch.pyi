"""Nothing for Python; ``dispatch.pxd`` is what other extensions see of where frames go."""
