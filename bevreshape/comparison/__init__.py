"""The comparison of view transformers: tuned alike, trained alike, tested once, with an answer for given constraints."""
