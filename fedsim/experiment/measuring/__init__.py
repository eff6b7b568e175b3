"""What a run measures in a round: barriers and other measures, their cost, and the gate of a strategy."""
