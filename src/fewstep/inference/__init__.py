"""Opening what can be sampled, and drawing pictures from it."""
