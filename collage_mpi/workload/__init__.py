"""When images come and how long ranks take: models of both."""
