"""Figures, tables, progress, and the report page."""
