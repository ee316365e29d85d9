"""Nothing for Python; ``leases.pxd`` is what other extensions see of leases."""
