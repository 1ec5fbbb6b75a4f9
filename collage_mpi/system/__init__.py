"""This process, its host and the launchers, and the declaration of settings."""
