"""``python -m ftray.compat``; see `ftray.compat`."""

from ftray.compat._run import main

main()
