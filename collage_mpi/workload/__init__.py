"""Models of the arrivals of images and of the service times of ranks."""
