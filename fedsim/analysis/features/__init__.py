"""The outputs of a model's layers: read, compared, and summed up batch by batch."""
