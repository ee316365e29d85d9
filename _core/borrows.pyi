"""Nothing for Python; ``borrows.pxd`` is what other extensions see of the borrowing protocol."""
