"""Models with some layers of another model, evaluated with no operation done twice."""
