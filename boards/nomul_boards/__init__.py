"""Accelerators on boards: a network in, a bitstream and the program for it out (:mod:`nomul_boards.build`)."""
