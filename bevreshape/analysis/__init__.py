"""Instruments for any view transformer: what it costs, what it has learned, and what it withstands."""
