"""What connects an accelerator's host streams to the world outside of the chip."""
