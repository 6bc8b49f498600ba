"""The compiler: lowers an integer graph to a program for one accelerator."""

from .errors import CompileError
from .lowering import compile_graph
from .program import Layer, Placement, Program

__all__ = ["CompileError", "Layer", "Placement", "Program", "compile_graph"]
