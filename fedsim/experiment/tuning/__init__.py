"""The search of a grid of settings, the best chosen on the clients' validation data."""
