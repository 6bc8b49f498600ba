"""What the compiler raises."""

__all__ = ["CompileError"]


class CompileError(ValueError):
    """A network that an accelerator cannot run; the message names the layer and what would do."""
