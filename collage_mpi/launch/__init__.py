"""Starting ranks and seeing a job to its end."""
