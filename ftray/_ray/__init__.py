"""ftray on Ray: the engine behind ``init(engine="ray")``, and checkpoints of Ray's own actors."""
