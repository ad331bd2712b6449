"""From settings to a model that answers."""
