"""What can go wrong on the way to a bitstream."""

__all__ = ["BuildError"]


class BuildError(ValueError):
    """A bitstream that cannot be made; the message says what is wrong and what would do."""
