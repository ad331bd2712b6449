"""What comes from the network: checkpoints and images."""
