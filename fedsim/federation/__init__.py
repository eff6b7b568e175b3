"""The clients of a run: what data and model they hold, what they do, and where they run."""
