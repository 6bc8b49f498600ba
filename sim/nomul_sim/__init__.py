"""Simulation: the normative golden model, and the generated RTL behind the same device interface.

Import what you need from its module (``nomul_sim.golden``); this file stays empty so that the golden model works
where no simulator is installed.
"""
