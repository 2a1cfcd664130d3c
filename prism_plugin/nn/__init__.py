"""The network's parts: encoders, message passing, experts, and how rows are computed fast."""
