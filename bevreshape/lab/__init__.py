"""What the article claims, as measurements."""
