"""Whether runs show what their experiment expects."""
