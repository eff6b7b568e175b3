"""What the layers of a model put out: read, compared, and summed up batch by batch."""
