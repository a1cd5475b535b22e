"""What a training takes: memory, arithmetic and time, predicted without running it."""
