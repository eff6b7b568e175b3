"""What one client does: trains, keeps its state, fine-tunes and is evaluated."""
