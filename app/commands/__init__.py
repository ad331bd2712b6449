"""What a person types, beside `serve`."""
