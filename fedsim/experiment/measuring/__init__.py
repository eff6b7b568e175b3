"""What a run measures in a round: barriers and their neighbours, what they cost, and the gate of a strategy."""
