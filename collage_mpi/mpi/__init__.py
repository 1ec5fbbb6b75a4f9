"""Messages and how they travel."""
