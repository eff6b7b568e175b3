"""What is called while runs run: the user's callbacks, and the trackers, which are fed from a run's records."""
