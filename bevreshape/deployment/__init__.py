"""What an exported model needs outside this package."""
