"""Nothing for Python; ``spills.pxd`` is what other extensions see of spilling."""
