"""The comparison of view transformers: all tuned and trained alike, tested once, and an answer under constraints."""
