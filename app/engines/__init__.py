"""Pixels become probabilities."""
