"""What the functional and chaos tests share: synchronisation, processes, drivers, leak checks."""
