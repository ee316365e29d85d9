"""Nothing for Python; ``sites.pxd`` is what other extensions see of call sites."""
