"""What a run would do, counted without training it: examples, bytes, and about how long it takes."""
