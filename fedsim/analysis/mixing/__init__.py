"""Models with some layers of another model, evaluated without repeating any operation."""
