"""Images into a collage or a stripe, scores into answers."""
