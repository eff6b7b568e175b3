"""Which unit of one model corresponds to which of another: by weights, by activations, by gradients."""
