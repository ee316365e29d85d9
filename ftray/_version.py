"""The version of the package; the build's is in ``pyproject.toml``, a test holds both together."""

__version__ = "0.1.0"
