"""Nothing for Python; ``intake.pxd`` is what other extensions see of it."""
