"""From an experiment's file to finished runs: rounds, checkpoints, sweeps and tuning."""
