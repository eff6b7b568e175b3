"""Which unit of one model belongs to which of another: by weights, by activations, by training through."""
