"""Nothing for Python; ``nodelink.pxd`` is what other extensions see of the stream to ftrayd."""
