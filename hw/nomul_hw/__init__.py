"""The machine: everything that becomes Verilog.

``formats``, ``arithmetic``, ``config`` and ``descriptor`` are plain Python and NumPy, shared with the golden model and
the compiler; importing them does not import Amaranth.
"""
