"""Seeded simulations: the real decision machines, a made-up network, an independent checker."""
